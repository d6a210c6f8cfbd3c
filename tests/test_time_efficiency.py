"""Kernel times against measured shapes, and what their formulas must never do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeplan.estimator.machine import Machine
from moeplan.estimator.time.efficiency import Kernels
from moeplan.hardware import gpu_names, load_gpu

CASES = json.loads((Path(__file__).parent / "reference" / "operator_efficiency.json").read_text())["cases"]
GPUS = {"a100_pcie_bf16": "a100-sxm-80gb", "b200_bf16_ceperm": "b200-sxm"}


def one(value: float) -> np.ndarray:
    return np.array([float(value)])


def predicted_s(kernels: Kernels, case: dict[str, Any]) -> tuple[float, float]:
    """(predicted, measured) seconds of one measured shape."""
    if case["op"].startswith("sdp"):
        pairs = case["batch"] * case["head_num"] * case["seq_len"] ** 2
        # The source counts the full square, forward two and backward five products.
        backward = case["op"] == "sdp_bwd"
        flops = (5 if backward else 2) * pairs * (case["qk_head_dim"] + case["v_head_dim"])
        blocks = one(case["batch"] * case["head_num"] * case["seq_len"] / 128)
        seconds = kernels.attention_s(one(flops / 2), blocks, case["qk_head_dim"], backward)
    else:
        grouped = case["op"] == "group_matmul"
        weight = bool(case["accumulate"])
        groups, m, n, k = (case["ng"], case["M"], case["N"], case["K"]) if grouped else (1, *map(case.get, "mnk"))
        if grouped and case["stage"] == "bwd_grad_act":
            m, n, k = m, k, n
        elif grouped and weight:
            m, n, k = k, n, m
        gradient = 8 if "fp32" in (case.get("out_dtype"), case.get("main_grad_dtype")) else 4
        moved = groups * (2 * m * k + 2 * n * k + m * n * (gradient if weight else 2))
        section = "grouped_gemm" if grouped else "gemm"
        flops = 2 * m * n * k * groups
        seconds = kernels.gemm_s(one(m), one(n), one(k), one(groups), "bf16", section, one(moved), weight)
    return float(seconds[0]), flops / case["measured_tflops"] / 1e12


@pytest.mark.parametrize(
    ("system", "op", "mean"),
    [
        ("a100_pcie_bf16", "matmul", 0.08),
        ("a100_pcie_bf16", "group_matmul", 0.08),
        ("a100_pcie_bf16", "sdp_fwd", 0.06),
        ("a100_pcie_bf16", "sdp_bwd", 0.06),
        # The same B200 shape was measured in two regimes (burst and sustained clocks) up to 45 % apart.
        ("b200_bf16_ceperm", "matmul", 0.17),
        ("b200_bf16_ceperm", "group_matmul", 0.17),
        ("b200_bf16_ceperm", "sdp_fwd", 0.15),
        ("b200_bf16_ceperm", "sdp_bwd", 0.12),
    ],
)
def test_measured_shapes(system: str, op: str, mean: float) -> None:
    kernels = Kernels(load_gpu(GPUS[system]).machine(None), {})
    ratios = []
    for case in CASES:
        if case["system"] == system and case["op"] == op:
            predicted, measured = predicted_s(kernels, case)
            ratios.append(predicted / measured)
    assert len(ratios) >= 12
    # Training runs all kernels back to back at lower clocks than a benchmark of one kernel, and grouped ones over
    # uneven groups: a common factor, bounded.
    common = float(np.median(ratios))
    assert 0.9 < common < 1.25
    assert np.mean(np.abs(np.array(ratios) / common - 1)) < mean


@given(
    m=st.integers(1, 1 << 17),
    n=st.integers(1, 1 << 15),
    k=st.integers(1, 1 << 15),
    gpu=st.sampled_from(gpu_names()),
    precision=st.sampled_from(["bf16", "fp8", "mxfp8"]),
)
def test_no_gemm_beats_the_machine(m: int, n: int, k: int, gpu: str, precision: str) -> None:
    machine = load_gpu(gpu).machine(None)
    kernels = Kernels(machine, {})
    moved = 2.0 * (m * k + n * k + m * n)
    seconds = float(kernels.gemm_s(one(m), one(n), one(k), one(1), precision, "gemm", one(moved))[0])
    assert seconds > 2 * m * n * k / kernels.peak(precision)
    assert seconds > moved / (machine.hbm_gb_per_s * 1e9)


def test_few_tokens_per_expert_cost_efficiency() -> None:
    kernels = Kernels(load_gpu("h100-sxm-80gb").machine(None), {})
    tokens = np.array([16.0, 64.0, 256.0, 1024.0, 4096.0])
    groups = 32768 / tokens
    moved = 2 * groups * (tokens * 2048 + tokens * 4096 + 2048 * 4096)
    seconds = kernels.gemm_s(tokens, one(4096), one(2048), groups, "bf16", "grouped_gemm", moved)
    assert np.all(np.diff(seconds) < 0)


@pytest.mark.parametrize(("name", "factor"), [("gemm", "gemm"), ("attention", "attention"), ("hbm", "hbm")])
def test_calibration_factors_are_speeds(name: str, factor: str) -> None:
    machine = load_gpu("h100-sxm-80gb").machine(None)
    plain, fast = Kernels(machine, {}), Kernels(machine, {factor: 2.0})
    seconds = {
        "gemm": lambda k: k.gemm_s(one(1 << 16), one(1 << 14), one(1 << 14), one(1), "bf16", "gemm", one(1)),
        "attention": lambda k: k.attention_s(one(1e15), one(1e5), 128, False),
        "hbm": lambda k: k.traffic_s(one(1e11), 1, "stream"),
    }[name]
    assert float(seconds(plain)[0] / seconds(fast)[0]) == pytest.approx(2.0, rel=0.01)


def test_power_limits_sustained_clocks() -> None:
    sxm, pcie = (load_gpu(name).machine(None) for name in ("h100-sxm-80gb", "h100-pcie-80gb"))

    def sustained(machine: Machine) -> float:
        kernels = Kernels(machine, {})
        return kernels.share("bf16") * kernels.peak("bf16")

    # Less power slows a GPU, by less than the power that it lost.
    assert 5 / 7 < sustained(replace(sxm, board_watts=500.0)) / sustained(sxm) < 1
    # An H100 PCIe has half of the SXM's power and 114 of its 132 multiprocessors.
    assert 0.5 < sustained(pcie) / sustained(sxm) < 114 / 132
