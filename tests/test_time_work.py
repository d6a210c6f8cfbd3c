"""The work that operators state against closed forms and Megatron's FLOP formula."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moeplan.estimator.columns import DEFAULTS
from moeplan.estimator.shard import shard_of
from moeplan.estimator.table import Table
from moeplan.model import load_model
from moeplan.model.architecture import Layer
from moeplan.operators.base import Shard
from moeplan.operators.work import AttentionCore, Collective, Gemm, Work


def shard(**changes: Any) -> Shard:
    return shard_of(Table.of_rows([{**DEFAULTS, **changes}]))


def items(layer: Layer, cut: Shard) -> list[Work]:
    return [item for operator in layer.operators for item in operator.work(cut)]


def flops(layer: Layer, cut: Shard, without: tuple[str, ...] = ("router",)) -> float:
    """Forward FLOPs of one layer on one rank."""
    total = 0.0
    for item in items(layer, cut):
        if isinstance(item, Gemm) and item.name not in without:
            total += float(np.max(2 * item.tokens * item.outputs * item.inputs * item.groups))
        elif isinstance(item, AttentionCore):
            pairs = item.sequences * item.heads * item.queries * item.keys
            total += float(np.max(2 * pairs * (item.qk_dim + item.v_dim)))
    return total


# GFLOP per token of forward and backward at sequence length 4096 (8192 for Llama), as Megatron-Bridge's performance
# tables imply (published model TFLOPS over published tokens per second), multi-token prediction left out.
@pytest.mark.parametrize(
    ("name", "sequence", "gflops"),
    [
        ("qwen3-30b-a3b", 4096, 23.0),
        ("qwen3-235b-a22b", 4096, 148.1),
        ("deepseek-v3", 4096, 249.7),
        ("kimi-k2", 4096, 204.5),
        ("llama-3-8b", 8192, 51.5),
        ("llama-3-70b", 8192, 449.2),
        ("llama-3.1-405b", 8192, 2524.0),
    ],
)
def test_work_matches_the_published_flops_per_token(name: str, sequence: int, gflops: float) -> None:
    model = load_model(name)
    cut = shard(sequence_length=sequence)
    total = sum(flops(layer, cut) for layer in model.layers)
    total += sum(
        float(np.max(2 * item.tokens * item.outputs * item.inputs))
        for item in model.head.work(cut)
        if isinstance(item, Gemm)
    )
    assert 3 * total / sequence / 1e9 == pytest.approx(gflops, rel=0.005)


@pytest.mark.parametrize("changes", [{"tp": 4}, {"cp": 4}, {"tp": 2, "cp": 2}, {"cp": 4, "cp_comm": "a2a"}])
def test_cutting_a_dense_layer_divides_its_work(changes: dict[str, Any]) -> None:
    layer = load_model("llama-3-70b").layers[0]
    ways = changes.get("tp", 1) * changes.get("cp", 1)
    assert flops(layer, shard(**changes)) == pytest.approx(flops(layer, shard()) / ways, rel=1e-9)


@pytest.mark.parametrize("changes", [{"ep": 8}, {"ep": 4, "etp": 2}, {"tp": 4, "ep": 8}])
def test_balanced_experts_do_the_same_work_however_they_lie(changes: dict[str, Any]) -> None:
    layer = load_model("qwen3-30b-a3b").layers[0]

    def expert(cut: Shard) -> float:
        found = 0.0
        for item in items(layer, cut):
            if isinstance(item, Gemm) and item.grouped:
                found += float(np.max(2 * item.tokens * item.outputs * item.inputs * item.groups))
        return found

    # A rank's experts see the tokens of its own tensor-parallel share, whichever ranks they came from.
    assert expert(shard(**changes)) == pytest.approx(expert(shard()) / changes.get("tp", 1), rel=1e-9)


def test_tokens_per_expert_follow_the_active_ratio() -> None:
    layer = load_model("deepseek-v3").layers[-1]
    cut = shard(ep=64, micro_batch_size=2)
    grouped = [item for item in items(layer, cut) if isinstance(item, Gemm) and item.grouped]
    # 2 x 4096 tokens choose 8 of 256 experts on each of 64 ranks, which hold 4 each.
    assert {float(np.max(item.groups)) for item in grouped} == {4.0}
    assert {float(np.max(item.tokens)) for item in grouped} == {2 * 4096 * 8 / 4}


def test_the_fullest_rank_sets_the_pace_within_what_is_possible() -> None:
    moe = load_model("mixtral-8x7b").moe
    assert moe is not None
    assert float(moe.fullest(shard(ep=8, load_imbalance=1.5))[0]) == 1.5
    # All tokens on one of eight ranks: two choices, one of them there, is four times the mean and no more.
    assert float(moe.fullest(shard(ep=8, load_imbalance=9.0))[0]) == 4.0
    assert float(moe.fullest(shard(ep=8, load_imbalance=1.5, capacity_factor=1.2))[0]) == 1.2


def bytes_of(layer: Layer, cut: Shard, group: str) -> float:
    return sum(
        float(np.max(item.payload)) * (item.forward + item.backward)
        for item in items(layer, cut)
        if isinstance(item, Collective) and item.group == group
    )


def test_sequence_parallelism_gathers_and_scatters_what_all_reduce_would_send() -> None:
    # Korthikanti et al. (arXiv:2205.05198, section 4.2.2): an all-reduce is a reduce-scatter and an all-gather;
    # sequence parallelism only adds the backward gather of the two column-parallel inputs.
    layer = load_model("llama-3-70b").layers[0]
    payload = 4096 * 8192 * 2
    assert bytes_of(layer, shard(tp=8, sp=False), "tp") == 4 * payload
    assert bytes_of(layer, shard(tp=8, sp=True), "tp") == 8 * payload + 2 * payload
    assert bytes_of(layer, shard(), "tp") == 0


def test_expert_exchange_carries_every_copy_once_each_way() -> None:
    layer = load_model("qwen3-30b-a3b").layers[0]
    sent = 4096 * 8 * 2048 * 2
    assert bytes_of(layer, shard(ep=8), "ep") == 4 * sent
