"""Fits the shape terms of kernels to 905 measured shapes, and the error on shapes that the fit has not seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import least_squares
import numpy as np
import time_cases
from numpy.typing import NDArray

from moeplan.estimator.time.efficiency import TILE
from moeplan.hardware import load_gpu

Vector = NDArray[np.float64]
SYSTEMS = {
    "a100_pcie_bf16": ("ampere", "a100-pcie-80gb"),
    "b200_bf16_ceperm": ("blackwell", "b200-sxm"),
}
SECTIONS = {
    "matmul": "gemm",
    "group_matmul": "grouped_gemm",
    "sdp_fwd": "attention_forward",
    "sdp_bwd": "attention_backward",
}
LAUNCH_S = 3e-6
ATTENTION_LAUNCH_S = 30e-6
MEMORY_SHARE = 0.85
SUSTAINED_S = 1e-3
"""Kernels shorter than this weigh less: a benchmark runs them at clocks that training does not sustain."""


@dataclass
class OperatorFit:
    """One operator on one GPU.

    Attributes:
        generation: GPU generation.
        section: Section of the coefficients.
        shapes: Measured shapes.
        numbers: The fitted numbers by name.
        seen: Mean relative error on all shapes.
        held_out: Mean relative error of five-fold cross-validation.
        worst: Largest relative error on all shapes.
    """

    generation: str
    section: str
    shapes: int
    numbers: dict[str, float]
    seen: float
    held_out: float
    worst: float


def fits() -> list[OperatorFit]:
    """Every operator on every measured GPU."""
    cases = time_cases.load("operator_efficiency")
    found = []
    for system, (generation, gpu) in SYSTEMS.items():
        for operator, section in SECTIONS.items():
            chosen = [case for case in cases if case["system"] == system and case["op"] == operator]
            found.append(_fit(generation, gpu, section, chosen))
    return found


def _fit(generation: str, gpu: str, section: str, cases: list[dict[str, Any]]) -> OperatorFit:
    model, names, start = (_attention if section.startswith("attention") else _gemm)(gpu, section, cases)
    measured = _flops(cases) / (_column(cases, "measured_tflops") * 1e12)
    origin = np.log(np.array(start))

    # A kernel of a millisecond runs at the clocks that power allows, a short one in a benchmark at higher ones;
    # training runs at the former whatever its kernels, so long kernels weigh more.
    weight = np.sqrt(measured / (measured + SUSTAINED_S))

    def errors(logs: Vector, rows: Vector | slice = slice(None)) -> Vector:
        return np.asarray(np.log(model(np.exp(origin + logs)) / measured)[rows])

    def solve(rows: Any) -> Vector:
        widths = np.full(len(start), 2.0)
        return least_squares.minimize(
            lambda logs: least_squares.robust(weight[rows] * errors(logs, rows) / 0.03),
            np.zeros(len(start)),
            widths,
            30,
        )

    everything = solve(slice(None))
    relative = np.abs(np.expm1(errors(everything)))
    order = np.random.default_rng(0).permutation(len(cases))
    unseen = []
    for fold in np.array_split(order, 5):
        seen = np.setdiff1d(order, fold)
        unseen += list(np.abs(np.expm1(errors(solve(seen), fold))))
    numbers = dict(zip(names, np.exp(origin + everything).tolist(), strict=True))
    return OperatorFit(
        generation, section, len(cases), numbers, float(relative.mean()), float(np.mean(unseen)), float(relative.max())
    )


def _column(cases: list[dict[str, Any]], name: str) -> Vector:
    return np.array([case[name] for case in cases], float)


def _flops(cases: list[dict[str, Any]]) -> Vector:
    first = cases[0]
    if "seq_len" in first:
        # The source counts the full square: two products forward, five backward (test_fa_efficiency.py of SimuMax).
        pairs = _column(cases, "batch") * _column(cases, "head_num") * _column(cases, "seq_len") ** 2
        products = 5 if first["op"] == "sdp_bwd" else 2
        return np.asarray(products * pairs * (_column(cases, "qk_head_dim") + _column(cases, "v_head_dim")))
    if "ng" in first:
        return np.asarray(2 * np.prod([_column(cases, name) for name in ("ng", "M", "N", "K")], axis=0))
    return np.asarray(2 * np.prod([_column(cases, name) for name in ("b", "m", "n", "k")], axis=0))


Model = tuple[Callable[[Vector], Vector], tuple[str, ...], tuple[float, ...]]


def _gemm(gpu: str, section: str, cases: list[dict[str, Any]]) -> Model:
    machine = load_gpu(gpu).machine(None)
    peak, rate = machine.peak_tflops["bf16"] * 1e12, machine.hbm_gb_per_s * 1e9 * MEMORY_SHARE
    weight = np.array([case["accumulate"] for case in cases])
    wide = np.array(["fp32" in (case["out_dtype"], case.get("main_grad_dtype")) for case in cases])
    if section == "gemm":
        groups, m, n, k = (_column(cases, name) for name in ("b", "m", "n", "k"))
    else:
        groups, m, n, k = (_column(cases, name) for name in ("ng", "M", "N", "K"))
        data = np.array([case["stage"] == "bwd_grad_act" for case in cases])
        m, n, k = np.where(weight, k, m), np.where(data, k, n), np.where(weight, m, np.where(data, n, k))
    output = np.where(weight, np.where(wide, 8, 4), 2)
    memory = groups * (2 * m * k + 2 * n * k + output * m * n) / rate
    flops = 2 * groups * m * n * k

    def seconds(numbers: Vector) -> Vector:
        share, depth, wave, weights = numbers
        sustained = peak * share * np.where(weight, weights, 1.0)
        arithmetic = flops / sustained * (1 + depth / k) * (1 + wave * machine.sms * TILE / (m * n))
        return np.asarray(np.maximum(arithmetic, memory) + LAUNCH_S)

    return seconds, ("share", "depth", "wave", "weight_gradient"), (0.6, 120.0, 0.2, 0.95)


def _attention(gpu: str, section: str, cases: list[dict[str, Any]]) -> Model:
    machine = load_gpu(gpu).machine(None)
    peak = machine.peak_tflops["bf16"] * 1e12
    wide = _column(cases, "qk_head_dim") > 128
    blocks = _column(cases, "batch") * _column(cases, "head_num") * _column(cases, "seq_len") / 128
    kept = _flops(cases) / 2

    def seconds(numbers: Vector) -> Vector:
        share, slower, wave = numbers
        sustained = peak * share * np.where(wide, slower, 1.0)
        return np.asarray(kept / sustained * (1 + wave * machine.sms / blocks) + ATTENTION_LAUNCH_S)

    return seconds, ("share", "wide", "wave"), (0.5, 0.9, 0.5)
