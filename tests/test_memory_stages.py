"""Stage memory: its breakdown, recomputation by blocks and groups, and orders that must hold whatever the figures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeplan.estimator.columns import DEFAULTS
from moeplan.estimator.machine import Machine
from moeplan.estimator.memory import StageMemory, stage_memory
from moeplan.estimator.memory.buffers import outside
from moeplan.estimator.memory.detail import detail
from moeplan.estimator.memory.layers import layer_memory
from moeplan.estimator.shard import shard_of
from moeplan.estimator.stages import structure
from moeplan.estimator.table import Table
from moeplan.model import load_model, model_names
from moeplan.model.architecture import Architecture, Layer

MACHINE = Machine("test", "hopper", 90, 80.0, {"bf16": 1000.0}, 3000.0, 132, 8, 450.0, 64.0, 50.0, 8, 2.0)
MIXTRAL = load_model("mixtral-8x7b")
DEEPSEEK = load_model("deepseek-v3")


def row(**columns: Any) -> dict[str, Any]:
    return {**DEFAULTS, "gpus": 64, "global_batch_size": 256, **columns}


def memory_of(architecture: Architecture, *rows: dict[str, Any]) -> StageMemory:
    table = Table.of_rows(list(rows))
    return stage_memory(architecture, MACHINE, table, structure(architecture, table, all_stages=True), {})


@pytest.mark.parametrize(
    "columns",
    [
        {"pp": 4, "ep": 8},
        {"pp": 2, "vpp": 4, "tp": 2, "ep": 4, "recompute": "full"},
        {"pp": 4, "ep": 8, "recompute": "selective", "recompute_modules": ("moe_act", "layernorm")},
        {"tp": 8, "ep": 8, "sharding": 3, "precision": "fp8"},
    ],
)
def test_the_breakdown_adds_up_to_every_stage_s_peak(columns: dict[str, Any]) -> None:
    table = Table.of_rows([row(**columns)])
    stages = structure(MIXTRAL, table, all_stages=True)
    memory = stage_memory(MIXTRAL, MACHINE, table, stages, {})
    found = detail(MIXTRAL, MACHINE, row(**columns), stages, {})
    assert [stage.stage for stage in found] == list(range(columns.get("pp", 1)))
    for stage in found:
        peak = memory.peak_allocated[0][stages.stage[0] == stage.stage].max()
        assert sum(size for _, size in stage.parts) == pytest.approx(peak, rel=1e-9)
        assert [size for _, size in stage.parts] == sorted((size for _, size in stage.parts), reverse=True)


def test_the_head_holds_the_last_stage_s_peak_and_a_layer_the_first_one_s() -> None:
    # SimuMax on Megatron-Core: "the peak sits in LM-head backward except on non-last stages (SwiGLU, attention, GEMM)".
    llama = load_model("llama-3-70b")
    columns = {"pp": 2}
    table = Table.of_rows([row(**columns)])
    found = detail(llama, MACHINE, row(**columns), structure(llama, table, all_stages=True), {})
    assert (found[0].holds, found[1].holds) == ("mlp.activation", "output_layer")


def test_block_recomputation_keeps_the_input_of_the_first_layers_only() -> None:
    # Megatron-Core: recompute-method block recomputes the first N layers of every stage and leaves the others alone.
    layers, blocks = 32, 8
    none = memory_of(MIXTRAL, row(ep=8))
    block = memory_of(MIXTRAL, row(ep=8, recompute="full", recompute_layers=blocks))
    whole = memory_of(MIXTRAL, row(ep=8, recompute="full"))
    saved = (none.activations - whole.activations)[0, 0] / layers
    assert (none.activations - block.activations)[0, 0] == pytest.approx(blocks * saved)
    every = memory_of(MIXTRAL, row(ep=8, recompute="full", recompute_layers=layers))
    assert every.activations[0, 0] == pytest.approx(whole.activations[0, 0])


def test_uniform_recomputation_keeps_one_input_per_group_and_rebuilds_a_group_at_once() -> None:
    single = memory_of(MIXTRAL, row(ep=8, recompute="full", recompute_method="uniform", recompute_layers=1))
    groups = memory_of(MIXTRAL, row(ep=8, recompute="full", recompute_method="uniform", recompute_layers=4))
    entering = 2 * 4096 * MIXTRAL.hidden
    layers = 32
    assert (single.activations - groups.activations)[0, 0] == pytest.approx(layers * entering * 3 / 4)
    kind = MIXTRAL.kinds[0]
    whole = layer_memory(kind, shard_of(Table.of_rows([row(ep=8)])), MIXTRAL.hidden).kept[0]
    assert groups.transient[0, 0] - single.transient[0, 0] <= 3 * whole * (1 + 1e-9)
    assert groups.transient[0, 0] > single.transient[0, 0]


def test_interleaving_costs_activations_on_the_first_stage() -> None:
    # Korthikanti et al. 2022: 1 + (p - 1) / (p m) times as much.
    plain = memory_of(MIXTRAL, row(pp=4, ep=8)).activations[0, 0]
    interleaved = memory_of(MIXTRAL, row(pp=4, vpp=4, ep=8)).activations[0].max()
    assert interleaved / plain == pytest.approx(1 + 3 / 16, rel=0.01)


def test_more_micro_batches_than_stages_cost_nothing() -> None:
    few, many = (memory_of(MIXTRAL, row(pp=4, ep=8, global_batch_size=16 * m)) for m in (4, 64))
    assert np.array_equal(few.peak_allocated, many.peak_allocated)
    one = memory_of(MIXTRAL, row(pp=4, ep=8, global_batch_size=16))
    assert one.activations[0, 0] < few.activations[0, 0]


def test_multi_token_prediction_brings_a_layer_a_head_s_logits_and_an_embedding_to_the_last_stage() -> None:
    layout = "Et*3|t*4|t*4|" + "t*4|" * 12 + "t*2mL"
    without = layout.replace("m", "")
    columns = {"gpus": 1024, "global_batch_size": 8192, "pp": 16, "ep": 64}
    with_mtp = memory_of(DEEPSEEK, row(**columns, pipeline_layout=layout))
    none = memory_of(DEEPSEEK, row(**columns, pipeline_layout=without, mtp_layers=0))
    parameters = (with_mtp.parameters - none.parameters)[0, -1] / 2
    vocabulary, hidden = 129280, 7168
    experts = 256 / 64 * 3 * 2048 * hidden
    # One MoE layer with its projection, and the embedding's table; the head is the model's own.
    outside_experts = 187_107_328 + 3 * 2048 * hidden + 256 * hidden + 2 * hidden + 2 * hidden * hidden + 3 * hidden
    assert parameters == pytest.approx(experts + outside_experts + vocabulary * hidden, rel=1e-6)


def test_fused_dispatchers_hold_buffers_outside_the_allocator() -> None:
    rows = [row(ep=8, dispatcher=name) for name in ("alltoall", "deepep", "hybridep")]
    plain, deep, hybrid = outside(MIXTRAL, MACHINE, Table.of_rows(rows))
    # DeepEP csrc/config.hpp: 10 channels x 8 peers x 288 tokens of a row, 128 indices, weights and scales.
    assert deep - plain == pytest.approx(10 * 8 * 288 * (2 * 4096 + 128 * 16))
    # HybridEP: what eight ranks might send, rows and one fp32 probability per expert of the NVLink domain.
    assert hybrid - plain == pytest.approx(4096 * 8 * (2 * 4096 + 4 * 8))


_DEGREES = st.sampled_from((1, 2, 4, 8))


@given(tp=st.sampled_from((1, 2, 4)), pp=_DEGREES, ep=_DEGREES, micro=st.sampled_from((1, 2)))
def test_what_saves_memory_never_costs_any(tp: int, pp: int, ep: int, micro: int) -> None:
    base = row(tp=tp, pp=pp, ep=ep, micro_batch_size=micro)
    changes: list[dict[str, Any]] = [
        {"sharding": 0},
        {},
        {"state_dtype": "bf16"},
        {"gradient_dtype": "bf16"},
        {"offload_fraction": 1.0},
        {"recompute": "full"},
    ]
    peaks = memory_of(MIXTRAL, *({**base, **change} for change in changes)).peak_allocated.max(axis=1)
    assert peaks[1] <= peaks[0]
    assert (peaks[2:5] < peaks[1]).all()
    assert peaks[5] <= peaks[1]


@given(tp=st.sampled_from((1, 2, 4)), pp=_DEGREES, ep=_DEGREES)
def test_a_larger_micro_batch_sequence_or_hot_rank_never_needs_less(tp: int, pp: int, ep: int) -> None:
    base = row(tp=tp, pp=pp, ep=ep)
    changes: list[dict[str, Any]] = [{}, {"micro_batch_size": 2}, {"sequence_length": 8192}, {"load_imbalance": 1.5}]
    peaks = memory_of(MIXTRAL, *({**base, **change} for change in changes)).peak_allocated.max(axis=1)
    assert (peaks[1:] >= peaks[0]).all()


def test_sixteen_bit_gradients_are_copied_to_fp32_when_nothing_else_is_alive() -> None:
    # Megatron-Core distrib_optimizer.py: 4 bytes per parameter of the shard, while the optimizer runs.
    base = {"gpus": 8, "ep": 8, "recompute": "full", "gradient_dtype": "bf16", "sequence_length": 128}
    copied = memory_of(MIXTRAL, row(**base))
    aware = memory_of(MIXTRAL, row(**base, state_dtype="bf16"))
    peak = copied.optimizer / 12 * 4 - copied.activations
    assert copied.transient[0, 0] == pytest.approx(peak[0, 0])
    assert aware.transient[0, 0] < copied.transient[0, 0]


@pytest.mark.parametrize(
    ("config", "sequence", "parameters_gb", "backward_gb"),
    [("llama-3-8b", 4096, 2.974, 18.058), ("qwen3-30b-a3b", 4096, 3.737, 21.588)],
)
def test_eager_backward_peak_of_two_layers(
    config: str, sequence: int, parameters_gb: float, backward_gb: float
) -> None:
    # MemTracker on transformers 5.23, two layers, bf16 parameters and both moments, gradients not yet allocated.
    model = load_model(config)
    shard = shard_of(Table.of_rows([row(framework="fsdp2", sequence_length=sequence)]))
    last = layer_memory(Layer((model.final_norm, model.head)), shard, model.hidden)
    saved = 2 * layer_memory(model.kinds[0], shard, model.hidden).kept[0] + last.kept[0]
    assert saved + last.transient[0] == pytest.approx((backward_gb - 3 * parameters_gb) * 1e9, rel=2e-3)


@pytest.mark.parametrize("name", model_names())
def test_every_catalog_model_is_priced_with_all_its_parameters(name: str) -> None:
    model = load_model(name)
    memory = memory_of(model, row(gpus=1, global_batch_size=1, sequence_length=128))
    held = memory.parameters[0, 0] / 2
    expected = model.total_parameters + model.mtp_parameters
    # Megatron-LM pads the vocabulary of embedding and head to a multiple of 128; layers beside it are the model's own.
    padding = 2 * 128 * model.hidden
    assert expected <= held <= expected + padding
    terms = (memory.activations, memory.transient, memory.buffers, memory.optimizer, memory.peak_allocated)
    assert all(np.isfinite(term).all() and (term > 0).all() for term in terms)


def test_a_candidate_costs_the_same_alone_and_among_others() -> None:
    rows = [
        row(ep=8, pp=pp, vpp=vpp, **changes)
        for pp, vpp in ((1, 1), (4, 1), (4, 2))
        for changes in (
            {},
            {"recompute": "full"},
            {"recompute": "full", "recompute_layers": 2},
            {"recompute": "full", "recompute_method": "uniform", "recompute_layers": 2},
            {"recompute": "selective", "recompute_modules": ("moe",)},
            {"sharding": 3, "gradient_dtype": "bf16"},
            {"framework": "fsdp2", "sharding": 3} if pp == 1 else {"precision": "fp8"},
        )
    ]
    together = memory_of(MIXTRAL, *rows)
    for index, one in enumerate(rows):
        alone = memory_of(MIXTRAL, one)
        assert together.peak_allocated[index].max() == alone.peak_allocated[0].max(), one
        assert together.activations[index].max() == alone.activations[0].max(), one


def test_fsdp2_holds_gathered_units_and_reduce_scatter_inputs() -> None:
    # PyTorch _fsdp_collectives.py: the running unit, the prefetched one and the flat buffer that it is copied from, in
    # 16 bits; 16-bit gradients of a unit and two fp32 reduce-scatter inputs. The root unit stays gathered.
    base = row(gpus=64, framework="fsdp2", sequence_length=128)
    sharded, kept = memory_of(MIXTRAL, {**base, "sharding": 3}, {**base, "sharding": 2}).transient[:, 0]
    layer = (MIXTRAL.total_parameters - 2 * 32000 * 4096 - 4096) / 32
    root = 2 * 32000 * 4096 + 4096
    assert sharded - kept == pytest.approx(3 * 2 * layer + 2 * root, rel=1e-6)
    assert kept > (2 + 2 * 4) * layer
