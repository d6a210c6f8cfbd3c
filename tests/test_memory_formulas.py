"""The papers' formulas, reproduced by the same operators in the configuration that each paper assumes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moeplan.estimator.columns import DEFAULTS
from moeplan.estimator.machine import Machine
from moeplan.estimator.memory import stage_memory
from moeplan.estimator.memory.layers import layer_memory
from moeplan.estimator.memory.states import data_parallel, state_bytes
from moeplan.estimator.shard import shard_of
from moeplan.estimator.stages import structure
from moeplan.estimator.table import Table
from moeplan.model.architecture import Architecture, Layer
from moeplan.operators.attention import Attention, LatentAttention
from moeplan.operators.base import Shard
from moeplan.operators.embedding import Embedding, Head
from moeplan.operators.mlp import DenseMLP
from moeplan.operators.moe import MoE
from moeplan.operators.norm import Norm

HIDDEN, HEADS, SEQUENCE, BATCH = 6144, 64, 2048, 4
"""Megatron's 22B model (Korthikanti et al. 2022, table 3)."""

MACHINE = Machine("test", "hopper", 90, 80.0, {"bf16": 1000.0}, 3000.0, 132, 8, 450.0, 64.0, 50.0, 8, 2.0)


def row(**columns: Any) -> dict[str, Any]:
    return {**DEFAULTS, **columns}


def korthikanti(t: int, **columns: Any) -> float:
    """Bytes that one layer of the paper's model saves: 16 bits, GeLU, dropout, attention without a flash kernel.

    The paper neglects everything that is small beside s*b*h: row statistics of the norms.
    """
    table = Table.of_rows(
        [row(tp=t, micro_batch_size=BATCH, sequence_length=SEQUENCE, flash_attention=False, dropout=True, **columns)]
    )
    shard = shard_of(table)
    layer = Layer(
        (
            Norm(HIDDEN, bias=True),
            Attention(HIDDEN, HEADS, HEADS, HIDDEN // HEADS, HIDDEN // HEADS),
            Norm(HIDDEN, bias=True),
            DenseMLP(HIDDEN, 4 * HIDDEN, gated=False),
        )
    )
    memory = layer_memory(layer, shard, HIDDEN)
    full = columns.get("recompute") == "full"
    statistics = 0.0 if full else 2 * 2 * 4 * float(shard.sequence_tokens[0])
    return float((memory.kept_full if full else memory.kept)[0]) - statistics


@pytest.mark.parametrize("t", [1, 2, 8])
def test_korthikanti_table_2(t: int) -> None:
    sbh = SEQUENCE * BATCH * HIDDEN
    quadratic = 5 * HEADS * SEQUENCE / HIDDEN
    selective: dict[str, Any] = {"recompute": "selective", "recompute_modules": ("core_attn",)}
    # Table 2 of arXiv:2205.05198, row by row.
    assert korthikanti(t, sp=False) == pytest.approx(sbh * (10 + 24 / t + quadratic / t), rel=1e-12)
    assert korthikanti(t, sp=True) == pytest.approx(sbh * (34 / t + quadratic / t), rel=1e-12)
    assert korthikanti(t, sp=False, **selective) == pytest.approx(sbh * (10 + 24 / t), rel=1e-12)
    assert korthikanti(t, sp=True, **selective) == pytest.approx(sbh * 34 / t, rel=1e-12)
    # Full recomputation keeps the layer's input; without sequence parallelism every rank keeps all of it.
    assert korthikanti(t, sp=False, recompute="full") == pytest.approx(2 * sbh, rel=1e-12)


def test_first_stage_keeps_as_many_layers_as_the_model_has_and_more_when_interleaved() -> None:
    # Korthikanti et al. 2022, section 4.2.3: L layers' activations, times 1 + (p - 1) / (p m) when interleaved.
    layers, p = 48, 4
    model = gpt(layers)
    kept = {}
    for vpp in (1, 3):
        table = Table.of_rows([row(gpus=p, pp=p, vpp=vpp, global_batch_size=64)])
        found = structure(model, table, all_stages=True)
        kept[vpp] = found.live[0][found.stage[0] == 0][:, 0].max()
    assert kept[1] == layers
    assert kept[3] == pytest.approx(layers * (1 + (p - 1) / (p * 3)))


def gpt(layers: int) -> Architecture:
    hidden = 512
    layer = Layer((Norm(hidden), Attention(hidden, 8, 8, 64, 64), Norm(hidden), DenseMLP(hidden, 2048)))
    return Architecture("gpt", "gpt", Embedding(51200, hidden), (layer,) * layers, Norm(hidden), Head(51200, hidden))


@pytest.mark.parametrize("n", [1, 8, 64])
@pytest.mark.parametrize(("stage", "own", "shared"), [(0, 16, 0), (1, 4, 12), (2, 2, 14), (3, 0, 16)])
def test_zero_stages(stage: int, own: float, shared: float, n: int) -> None:
    # Rajbhandari et al. 2020 (arXiv:1910.02054): 16 Psi; 4 Psi + 12 Psi/N; 2 Psi + 14 Psi/N; 16 Psi/N.
    assert state_bytes_per_parameter(n, sharding=stage, gradient_dtype="bf16") == pytest.approx(own + shared / n)


@pytest.mark.parametrize("n", [1, 2, 16])
@pytest.mark.parametrize(
    ("state_dtype", "stage", "own", "shared"),
    [("fp32", 0, 18, 0), ("fp32", 1, 6, 12), ("bf16", 1, 6, 6)],
)
def test_megatron_states(state_dtype: str, stage: int, own: float, shared: float, n: int) -> None:
    # docs/user-guide/features/dist_optimizer.md: 18, and 6 + 12/d; with the precision-aware optimizer's bf16 moments
    # two bytes of master remainder and two per moment.
    assert state_bytes_per_parameter(n, sharding=stage, state_dtype=state_dtype) == pytest.approx(own + shared / n)


def state_bytes_per_parameter(n: int, **columns: Any) -> float:
    table = Table.of_rows([row(gpus=n, **columns)])
    dense, expert = data_parallel(table)
    assert dense[0] == expert[0] == n
    per = state_bytes(table)
    whole = per.parameter_whole + per.gradient_whole + per.optimizer_whole
    return float((whole + (per.parameter_shared + per.gradient_shared + per.optimizer_shared) / n)[0])


def test_fsdp2_shards_fp32_parameters_gradients_and_both_moments() -> None:
    # PyTorch FSDP2 under a mixed precision policy: 4 + 4 + 8 bytes per parameter, all sharded.
    assert state_bytes_per_parameter(8, framework="fsdp2", sharding=3) == pytest.approx(16 / 8)


def test_expert_states_shard_over_the_expert_data_parallel_group() -> None:
    # Folded expert parallelism: edp = gpus / (pp ep etp), dp = gpus / (pp tp); cp does not enter either product.
    table = Table.of_rows([row(gpus=256, pp=4, tp=2, cp=2, ep=8, etp=1)])
    dense, expert = data_parallel(table)
    assert (dense[0], expert[0]) == (32, 8)


def zhang_su_shard() -> Shard:
    """The paper's setting: tensor and sequence parallelism 2, attention without a flash kernel."""
    return shard_of(Table.of_rows([row(tp=2, micro_batch_size=1, sequence_length=4096, flash_attention=False)]))


def test_latent_attention_as_zhang_and_su_count_it() -> None:
    """arXiv:2502.07846, four layers on TP2 SP2: 10bsh + 8bs(dcq+dc) + 16bs dh nh + 8bs dhr nh + 10 b nh s^2.

    Per layer and rank their count has the norm's input and the hidden states (2bsh/2 each) and an fp32 softmax among
    its 10bsh and 10 b nh s^2; what both count must agree: compressed tensors with their norms, and the heads.
    """
    heads, compressed, latent, nope, rope, value = 128, 1536, 512, 128, 64, 128
    tokens = 4096
    attention = LatentAttention(7168, heads, compressed, latent, nope, rope, value)
    saved = {t.name: float(t.bytes[0]) for step in attention.steps(zhang_su_shard()) for t in step.saved}
    paper_per_layer = 8 * tokens * (compressed + latent) / 4
    kept = saved["compressed q"] + saved["compressed k/v"] + 2 * tokens / 2 * (compressed + latent)
    # Beside the paper's terms: fp32 statistics of both norms, and the rotary key that shares the latent's storage.
    beside = 2 * 4 * tokens / 2 + 2 * tokens / 2 * rope
    assert kept == pytest.approx(paper_per_layer + beside)
    # 16bs dh nh + 8bs dhr nh over four layers and two ranks' worth of heads: q, k, v and the output.
    heads_bytes = saved["query, key, value"] + saved["attention output"]
    assert heads_bytes == pytest.approx((16 * tokens * nope * heads + 8 * tokens * rope * heads) / 4)


def test_full_recomputation_as_zhang_and_su_count_it() -> None:
    # arXiv:2502.07846: 8bsh over four layers on two ranks' worth of sequence, per rank 2bsh/2 each; their 8bsNr is the
    # routing that they keep so that replays route alike, which Megatron-Core does not keep.
    tokens, hidden = 4096, 7168
    attention = LatentAttention(hidden, 128, 1536, 512, 128, 64, 128)
    layer = Layer((Norm(hidden), attention, Norm(hidden), MoE(hidden, 256, 8, 2048)))
    kept = layer_memory(layer, zhang_su_shard(), hidden).kept_full
    assert 4 * float(kept[0]) == pytest.approx(8 * tokens * hidden / 2)


def test_megascale_moe_activations() -> None:
    """MegaScale-MoE (arXiv:2505.11432): attention and expert part of (2n+2k+3kf+12+5/m) bsh/n elements, n = 1.

    Of the formula at n = 1, 2k + 3kf are the dispatched rows' two copies and the three inner tensors of SwiGLU experts;
    Megatron-Core keeps one copy of the rows (the permuted ones) and the same three inner tensors.
    """
    hidden, top_k, ffn, tokens = 4096, 2, 14336, 4096
    moe = MoE(hidden, 8, top_k, ffn)
    shard = shard_of(Table.of_rows([row(sequence_length=tokens)]))
    saved = {(s.name, t.name): float(t.bytes[0]) for s in moe.steps(shard) for t in s.saved}
    inner = saved["experts.activation", "fc1 output"] + saved["experts.linear_fc2", "fc2 input"]
    ratio = ffn / hidden
    assert inner == pytest.approx(2 * 3 * top_k * ratio * tokens * hidden)
    assert saved["experts.linear_fc1", "fc1 input"] == pytest.approx(2 * top_k * tokens * hidden)


def test_dualpipe_holds_twice_the_parameters_and_one_micro_batch_more() -> None:
    # DualPipe README: 1F1B 1x parameters and PP activations; DualPipe 2x and PP + 1.
    model, pp = gpt(32), 8
    found = {}
    for schedule in ("1f1b", "dualpipe"):
        table = Table.of_rows([row(gpus=pp, pp=pp, schedule=schedule, global_batch_size=64)])
        stages = structure(model, table, all_stages=True)
        first = stages.stage[0] == 0
        found[schedule] = (stages.counts[0][first][:, 0].max(), stages.live[0][first][:, 0].max() / (32 / pp))
    assert found["1f1b"] == (4, pp)
    assert found["dualpipe"] == (8, pp + 1)


def test_a_hot_rank_holds_more_rows_and_a_capacity_factor_bounds_them() -> None:
    moe = MoE(1024, 64, 4, 512)
    layer = Layer((Norm(1024), Attention(1024, 8, 8, 128, 128), Norm(1024), moe))
    rows = [row(ep=8, load_imbalance=1.0), row(ep=8, load_imbalance=1.5), row(ep=8, capacity_factor=1.25)]
    shard = shard_of(Table.of_rows(rows))
    kept = layer_memory(layer, shard, 1024).kept
    per_row = 2 * (1024 + 3 * 512) + 2  # input, fc1 output, fc2 input in 16 bits, and the probability
    balanced = 4096 * 4
    assert kept[1] - kept[0] == pytest.approx(0.5 * balanced * per_row)
    assert kept[2] - kept[0] == pytest.approx(0.25 * balanced * per_row)


def test_capacity_is_rounded_up_per_expert() -> None:
    # Megatron-Core get_capacity: ceil(tokens * top_k * factor / experts) rows for every expert.
    moe = MoE(1024, 160, 6, 512)
    shard = shard_of(Table.of_rows([row(ep=8, capacity_factor=1.0, sequence_length=4096)]))
    assert moe.held(shard)[0] == 154 * 160


@pytest.mark.parametrize("framework", ["megatron", "fsdp2"])
def test_peak_is_the_sum_of_its_terms(framework: str) -> None:
    model = gpt(8)
    table = Table.of_rows([row(gpus=8, framework=framework, sharding=3 if framework == "fsdp2" else 1)])
    memory = stage_memory(model, MACHINE, table, structure(model, table), {})
    names = ("parameters", "gradients", "optimizer", "activations", "transient", "buffers")
    assert np.allclose(sum(getattr(memory, name) for name in names), memory.peak_allocated)
    assert (memory.peak_reserved > memory.peak_allocated).all()


def test_selective_modules_drop_what_megatron_drops() -> None:
    # Per token of one layer in 16 bits (transformer_config.py, recompute_modules).
    hidden, ffn, top_k = 1024, 512, 4
    shared = DenseMLP(hidden, ffn, component="shared_experts")
    latent = LatentAttention(hidden, 8, 256, 128, 64, 32, 64)
    layer = Layer((Norm(hidden), latent, Norm(hidden), MoE(hidden, 16, top_k, ffn, shared=shared)))
    dense = Layer((Norm(hidden), latent, Norm(hidden), DenseMLP(hidden, 4 * hidden)))
    expected = {
        "moe_act": (layer, 2 * top_k * ffn),
        # Both norms' outputs: the down projections' input, the router's and the shared experts'.
        "layernorm": (layer, 3 * 2 * hidden),
        # q, k, v per head and both up projections' inputs.
        "mla_up_proj": (layer, 2 * 8 * (96 + 96 + 64) + 2 * (256 + 128)),
        # All that the shared experts keep; the router keeps the same input and goes on doing so.
        "shared_experts": (layer, 2 * hidden + 2 * 3 * ffn),
        # A checkpoint around norm and block keeps the residual, which the norm keeps anyway.
        "mlp": (dense, 2 * hidden + 2 * 3 * 4 * hidden),
    }
    for module, (kind, per_token) in expected.items():
        table = Table.of_rows([row(), row(recompute="selective", recompute_modules=(module,))])
        kept = layer_memory(kind, shard_of(table), hidden).kept
        assert kept[0] - kept[1] == pytest.approx(4096 * per_token), module


def test_fp8_keeps_gemm_inputs_in_one_byte() -> None:
    hidden, ffn = 1024, 4096
    layer = Layer((Norm(hidden), Attention(hidden, 8, 8, 128, 128), Norm(hidden), DenseMLP(hidden, ffn)))
    kept = layer_memory(layer, shard_of(Table.of_rows([row(), row(precision="fp8")])), hidden).kept
    # One byte less for the inputs of qkv, fc1 and fc2; the output projection's copy comes beside attention's output.
    assert kept[0] - kept[1] == pytest.approx(4096 * (2 * hidden + ffn - hidden))


def test_offloaded_modules_leave_the_gpu_by_their_fraction() -> None:
    hidden = 1024
    layer = Layer((Norm(hidden), Attention(hidden, 8, 8, 128, 128), Norm(hidden), MoE(hidden, 16, 4, 512)))
    rows = [row(), row(offload_modules=("expert_fc1",), activation_offload_fraction=0.5)]
    kept = layer_memory(layer, shard_of(Table.of_rows(rows)), hidden).kept
    assert kept[0] - kept[1] == pytest.approx(0.5 * 4096 * 4 * 2 * hidden)


def test_parts_of_one_row_and_of_many_agree() -> None:
    model = gpt(8)
    rows = [row(gpus=8, tp=t, micro_batch_size=m, sharding=s) for t in (1, 2) for m in (1, 2) for s in (0, 1, 3)]
    many = Table.of_rows(rows)
    together = stage_memory(model, MACHINE, many, structure(model, many), {}).peak_allocated[:, 0]
    for index, one in enumerate(rows):
        alone = Table.of_rows([one])
        single = stage_memory(model, MACHINE, alone, structure(model, alone), {}).peak_allocated[0, 0]
        assert together[index] == pytest.approx(single, rel=1e-12)
