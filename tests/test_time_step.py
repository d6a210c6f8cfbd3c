"""What a step time must do whatever the coefficients are."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest

from moeplan.estimator.columns import DEFAULTS
from moeplan.estimator.machine import Machine
from moeplan.estimator.stages import structure
from moeplan.estimator.table import Table
from moeplan.estimator.time import StepTime, detail, step_time, uncertainty
from moeplan.hardware import load_gpu
from moeplan.model import load_model
from moeplan.model.architecture import Architecture

TERMS = ("compute_s", "exposed_communication_s", "bubble_s", "optimizer_s")


@pytest.fixture(scope="module")
def qwen() -> Architecture:
    return load_model("qwen3-30b-a3b")


@pytest.fixture(scope="module")
def h100() -> Machine:
    return load_gpu("h100-sxm-80gb").machine(None)


def row(**changes: Any) -> dict[str, Any]:
    return {**DEFAULTS, "gpus": 64, "ep": 8, "global_batch_size": 512, **changes}


def times(architecture: Architecture, machine: Machine, *rows: dict[str, Any], **factors: float) -> StepTime:
    table = Table.of_rows(rows)
    return step_time(architecture, machine, table, structure(architecture, table), factors)


VARIETY = [
    {},
    {"tp": 2, "pp": 4, "vpp": 2, "ep": 16},
    {"cp": 4, "cp_comm": "a2a", "sequence_length": 32768, "global_batch_size": 64},
    {"cp": 2, "cp_comm": "allgather"},
    {"precision": "fp8", "dispatcher": "deepep", "overlap_ep": True},
    {"recompute": "full", "dispatcher": "hybridep"},
    {"recompute": "full", "recompute_layers": 3, "pp": 4},
    {"recompute": "selective", "recompute_modules": ("moe_act", "layernorm")},
    {"sharding": 3, "gradient_dtype": "bf16"},
    {"sharding": 0, "optimizer": "sgd", "overlap_grad_reduce": False},
    {"etp": 2, "tp": 2, "overlap_tp": True},
    {"pp": 4, "schedule": "zero_bubble"},
    {"pp": 4, "schedule": "dualpipe"},
    {"load_imbalance": 1.5, "capacity_factor": 1.25},
    {"dispatcher": "allgather", "flash_attention": False, "fused_cross_entropy": False},
    {"offload_modules": ("core_attn", "expert_fc1"), "cuda_graphs": True},
    {"offload_fraction": 0.5, "state_dtype": "bf16", "cuda_graphs": True, "top_k": 4},
]


@pytest.mark.parametrize("changes", VARIETY)
def test_terms_are_finite_and_add_up(qwen: Architecture, h100: Machine, changes: dict[str, Any]) -> None:
    found = times(qwen, h100, row(**changes))
    terms = np.array([getattr(found, name)[0] for name in TERMS])
    assert np.all(np.isfinite(terms)) and np.all(terms >= 0)
    assert found.step_s[0] == terms.sum()
    assert terms[0] > 0


def test_a_table_prices_each_row_as_if_alone(qwen: Architecture, h100: Machine) -> None:
    rows = [row(**changes) for changes in VARIETY]
    together = times(qwen, h100, *rows)
    for position, alone in enumerate(rows):
        assert together.step_s[position] == pytest.approx(times(qwen, h100, alone).step_s[0], rel=1e-12)


@pytest.mark.parametrize("changes", VARIETY)
def test_the_breakdown_adds_up_to_the_step(qwen: Architecture, h100: Machine, changes: dict[str, Any]) -> None:
    one = row(**changes)
    step = float(times(qwen, h100, one).step_s[0])
    parts = detail(qwen, h100, one)
    told = sum(parts.operators.values()) + parts.recompute_s + sum(parts.communication.values())
    assert told + parts.bubble_s + parts.optimizer_s == pytest.approx(step, rel=1e-6)
    assert sum(parts.walls.values()) == pytest.approx(step, rel=1e-6)
    assert 0 < parts.speed_of_light_s < step
    assert parts.walls[parts.wall] == max(parts.walls.values())


@pytest.mark.parametrize(
    ("slower", "faster"),
    [
        ({"recompute": "full"}, {}),
        ({"recompute": "full"}, {"recompute": "selective", "recompute_modules": ("core_attn",)}),
        ({"load_imbalance": 2.0}, {"load_imbalance": 1.2}),
        ({"pp": 4}, {"pp": 4, "vpp": 4}),
        ({"pp": 4}, {"pp": 4, "schedule": "zero_bubble"}),
        ({"overlap_grad_reduce": False, "overlap_param_gather": False}, {}),
        ({"ep": 32}, {"ep": 32, "overlap_ep": True}),
        ({"ep": 64}, {"ep": 64, "dispatcher": "hybridep"}),
        ({"tp": 4}, {"tp": 4, "overlap_tp": True}),
        ({"flash_attention": False}, {}),
        ({"fused_cross_entropy": False}, {}),
        ({"offload_fraction": 1.0}, {}),
        ({"tp": 16}, {"tp": 8}),
        ({"sharding": 3}, {"sharding": 1}),
        ({"offload_modules": ("moe_act",)}, {}),
        ({"offload_modules": ("moe_act",)}, {"offload_modules": ("moe_act",), "activation_offload_fraction": 0.3}),
    ],
)
def test_what_is_slower(qwen: Architecture, h100: Machine, slower: dict[str, Any], faster: dict[str, Any]) -> None:
    found = times(qwen, h100, row(**slower), row(**faster)).step_s
    assert found[0] > found[1]


def test_more_work_takes_proportionally_longer(qwen: Architecture, h100: Machine) -> None:
    found = times(qwen, h100, row(global_batch_size=512), row(global_batch_size=4096)).step_s
    assert 7.0 < found[1] / found[0] < 8.0


def test_uneven_stages_set_the_pace(qwen: Architecture, h100: Machine) -> None:
    even = row(pp=2, pipeline_layout="E" + "t" * 24 + "|" + "t" * 24 + "L")
    uneven = row(pp=2, pipeline_layout="E" + "t" * 36 + "|" + "t" * 12 + "L")
    found = times(qwen, h100, even, uneven).step_s
    # The slow stage holds 36 layers of 24: half as much again per micro batch, head aside.
    assert 1.25 < found[1] / found[0] < 1.5


def test_calibration_factors_move_the_step(qwen: Architecture, h100: Machine) -> None:
    plain = times(qwen, h100, row(tp=2, ep=64)).step_s[0]
    for name in ("gemm", "attention", "hbm", "nvlink", "nic"):
        assert times(qwen, h100, row(tp=2, ep=64), **{name: 1.5}).step_s[0] < plain
    assert times(qwen, h100, row(tp=2, ep=64), host_overhead=1.5).step_s[0] > plain


def test_the_exchange_of_the_first_micro_batch_is_never_hidden(qwen: Architecture, h100: Machine) -> None:
    def exchange(**changes: Any) -> float:
        one = row(**{"ep": 64, "overlap_ep": True, **changes})
        return detail(qwen, h100, one).communication["ep"]

    batches = [64 * m for m in (1, 2, 8, 64)]
    left = [
        exchange(global_batch_size=batch) / exchange(global_batch_size=batch, overlap_ep=False) for batch in batches
    ]
    # Alone, a micro batch finds no other to hide behind; of many, only the first does not.
    assert left[0] == pytest.approx(1.0)
    assert left == sorted(left, reverse=True) and left[-1] < 0.75
    hidden = [1 - share for share in left]
    assert hidden[1] / hidden[3] == pytest.approx((1 / 2) / (63 / 64))


def test_the_fused_path_of_newer_software_is_faster(qwen: Architecture) -> None:
    gb200 = load_gpu("gb200-nvl72").machine(None)
    fusible = row(precision="mxfp8", dispatcher="hybridep", cuda_graphs=True, overlap_ep=True)
    before, untold, since = (
        times(qwen, gb200, fusible, **told).step_s[0] for told in ({"fused_moe": 0.0}, {}, {"fused_moe": 1.0})
    )
    assert since < untold < before
    for name, value in {"precision": "bf16", "dispatcher": "alltoall", "cuda_graphs": False}.items():
        other = {**fusible, name: value}
        assert times(qwen, gb200, other, fused_moe=0.0).step_s[0] == times(qwen, gb200, other, fused_moe=1.0).step_s[0]


def test_compiled_layers_are_faster_than_eager_ones(qwen: Architecture, h100: Machine) -> None:
    eager, megatron = row(framework="fsdp2", sharding=3), row(sharding=3)
    plain, compiled = (times(qwen, h100, eager, **told).step_s[0] for told in ({}, {"compiled": 1.0}))
    assert times(qwen, h100, megatron).step_s[0] < compiled < plain
    assert times(qwen, h100, megatron, compiled=1.0).step_s[0] == times(qwen, h100, megatron).step_s[0]


def test_activations_reach_the_memory_of_a_superchips_host_faster(qwen: Architecture) -> None:
    offloaded = row(offload_modules=("expert_fc1", "moe_act"), micro_batch_size=4)
    superchip = load_gpu("gb200-nvl72").machine(None)
    linked, over_pcie = (
        detail(qwen, machine, offloaded).communication["host"]
        for machine in (superchip, replace(superchip, host_gb_per_s=superchip.pcie_gb_per_s))
    )
    assert linked < over_pcie


def test_uncertainty_is_a_range_around_one() -> None:
    for gpu in ("a100-sxm-80gb", "h100-sxm-80gb", "b200-sxm", "mi300x", "l40s"):
        machine = load_gpu(gpu).machine(None)
        for precision, framework in product(("bf16", "fp8"), ("megatron", "fsdp2", "deepspeed")):
            low, high = uncertainty(machine, precision, framework, calibrated=False)
            assert 0.5 < low < 1 < high < 2
            narrow = uncertainty(machine, precision, framework, calibrated=True)
            assert low <= narrow[0] and narrow[1] <= high
    # What nobody measured is told with a wider range than what somebody did.
    unmeasured = uncertainty(load_gpu("l40s").machine(None), "bf16", "megatron", False)[1]
    assert unmeasured > uncertainty(load_gpu("a100-sxm-80gb").machine(None), "bf16", "megatron", False)[1]
