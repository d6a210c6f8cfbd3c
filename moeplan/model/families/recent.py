"""Families with parts of their own: compressed attention, wide residual streams, routers with layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from moeplan.model.architecture import Architecture, Layer, Operator
from moeplan.model.families.common import (
    EXPERTS,
    biases,
    decoder,
    dense_mlp,
    depth,
    family,
    grouped_attention,
    hidden_size,
    latent_attention,
    layer_types,
    mixture,
    plain_layer,
    shared_block,
    sparse_after,
    windows,
)
from moeplan.model.families.grouped_moe import SIGMOID
from moeplan.model.families.latent import deepseek_moe
from moeplan.model.fields import Fields
from moeplan.operators.compressed_attention import CompressedAttention
from moeplan.operators.extra import Extra, hyper_connection, residual_scales
from moeplan.operators.indexer import Indexer
from moeplan.operators.mixer import MixerVector, Projection
from moeplan.operators.moe import MoE
from moeplan.operators.norm import Norm
from moeplan.operators.recurrent import kimi_delta


@family("mistral4")
def mistral4(f: Fields) -> Architecture:
    """Latent attention, softmax scores, a shared expert in every MoE layer."""
    norm = Norm(hidden_size(f))
    attention, moe = latent_attention(f), deepseek_moe(f)
    sparse = sparse_after(f, depth(f), "first_k_dense_replace", default=0)
    dense = moe if all(sparse) else dense_mlp(f)
    f.ignore("intermediate_size")
    return decoder(f, [plain_layer(norm, attention, moe if is_sparse else dense) for is_sparse in sparse])


@family("glm4v_moe_text")
def glm4v_moe(f: Fields) -> Architecture:
    """GLM-4.5V's text model: GLM-4.5-Air's block."""
    norm = Norm(hidden_size(f))
    attention = grouped_attention(f, bias=biases(f, default=True, on="qkv"))
    moe, dense = deepseek_moe(f, score_function="sigmoid"), dense_mlp(f)
    sparse = sparse_after(f, depth(f), "first_k_dense_replace", default=1)
    layers = [plain_layer(norm, attention, moe if is_sparse else dense) for is_sparse in sparse]
    f.ignore("use_qk_norm")
    return decoder(f, layers, **SIGMOID)


@family("beam")
def beam(f: Fields) -> Architecture:
    """Sandwich norms, an output gate with a bias per head, first layers dense."""
    layers = depth(f)
    norm = Norm(hidden_size(f))
    if f.flag("attention_bias", default=False):
        raise f.error("attention_bias", "biases are not understood for this family", "set it to false")
    attention = grouped_attention(f, head_dim=128, qk_norm="head", output_gate=True)
    gate = Extra("gate_bias", 0, (), (MixerVector("gate_bias", attention.heads, component="attention"),))
    moe, dense = mixture(f, "moe_intermediate_size", score_function="sigmoid"), dense_mlp(f)
    sparse = sparse_after(f, layers, default=min(3, layers))
    spans = windows(f, layers, lambda index: (index + 1) % 6 != 0 and index != layers - 1)
    f.ignore("final_logit_softcapping")
    return decoder(
        f,
        [
            Layer((norm, gate, replace(attention, window=span), norm, norm, moe if is_sparse else dense, norm))
            for span, is_sparse in zip(spans, sparse, strict=True)
        ],
        **SIGMOID,
    )


def streamed(f: Fields, blocks: Sequence[tuple[Operator, ...]], extra: int, scales: int) -> list[Layer]:
    """Layers on a wide residual stream: a mixing before either half of each, and one after the last.

    Args:
        f: The configuration, with ``hc_mult`` streams.
        blocks: For each layer: norm, mixer parts, norm, feed-forward; the last two are the second half.
        extra: Coefficients beyond one per stream and stream: ``(2 + streams) * streams`` or ``2 * streams``.
        scales: Learned scales of a mixing.
    """
    hidden, streams = hidden_size(f), f.integer("hc_mult", most=64)
    mixing = hyper_connection(hidden, streams, extra * streams + (streams * streams if scales == 3 else 0), scales)
    built = [Layer((mixing, *block[:-2], mixing, *block[-2:])) for block in blocks]
    built[-1] = Layer((*built[-1].operators, hyper_connection(hidden, streams, streams, 1)))
    f.ignore("hc_eps", "hc_sinkhorn_iters", "hc_magnitude")
    return built


@family("deepseek_v4")
def deepseek_v4(f: Fields) -> Architecture:
    """Compressed attention of two kinds on a wide residual stream; the first layers route by a hash of the token."""
    layers, hidden = depth(f), hidden_size(f)
    names = ("compressed_sparse_attention", "heavily_compressed_attention", "sliding_attention")
    # The original files give one compression per layer, those that transformers saves a kind per layer.
    ratios = f.integers("compress_ratios", default=None, length=layers)
    of_ratio = {4: names[0], 128: names[1], 0: names[2]}
    for ratio in ratios or ():
        if ratio not in of_ratio:
            raise f.error("compress_ratios", f"{ratio} is not understood", "known: 0, 4, 128")
    kinds = layer_types(f, layers, names, None if ratios is None else lambda index: of_ratio[ratios[index]])
    rates = Fields({names[0]: 4, names[1]: 128}, f.where) if ratios is not None else f.section("compress_rates")
    heads, groups = f.integer("num_attention_heads"), f.integer("o_groups")
    if heads % groups:
        raise f.error("o_groups", f"{groups} does not divide num_attention_heads = {heads}")
    f.fixed("num_key_value_heads", 1, "key/value heads are not what the family's class builds")
    for key in ("attention_bias", "mlp_bias"):
        if f.flag(key, default=False):
            raise f.error(key, "biases are not understood for this family", "set it to false")
    base = CompressedAttention(
        hidden,
        heads,
        f.integer("head_dim"),
        f.integer("q_lora_rank"),
        groups,
        f.integer("o_lora_rank"),
        f.integer("sliding_window"),
    )
    mixers = {
        names[0]: replace(
            base,
            rate=rates.integer(names[0]),
            index_heads=f.integer("index_n_heads"),
            index_dim=f.integer("index_head_dim"),
            index_top_k=f.integer("index_topk"),
        ),
        names[1]: replace(base, rate=rates.integer(names[1])),
        names[2]: base,
    }
    # The class reads no number of shared experts: it always builds one of the experts' width.
    f.ignore("n_shared_experts")
    shared = shared_block(f, f.integer("moe_intermediate_size"))
    moe = mixture(f, "moe_intermediate_size", shared=shared, score_function="sigmoid")
    for kind in f.sequence("mlp_layer_types", default=[], length=None):
        if kind not in ("hash_moe", "moe"):
            raise f.error("mlp_layer_types", f"{kind!r} is not understood", "give 'hash_moe' or 'moe'")
    f.ignore("compress_rope_theta", "swiglu_limit", "qk_rope_head_dim", "num_hash_layers", "expert_dtype")
    norm = Norm(hidden)
    return decoder(
        f,
        streamed(f, [(norm, mixers[kind], norm, moe) for kind in kinds], 2, 3),
        prediction=True,
        predicted=plain_layer(norm, mixers[names[0]], moe),
        correction_bias=True,
    )


def _indexed_layers(f: Fields, layers: int) -> list[bool]:
    kinds = f.sequence("indexer_types", length=layers)
    for kind in kinds:
        if kind not in ("full", "shared"):
            raise f.error("indexer_types", f"{kind!r} is not understood", "give 'full' or 'shared'")
    return [kind == "full" for kind in kinds]


@family("hy_v4")
def hy_v4(f: Fields) -> Architecture:
    """Sparse latent attention with sinks and an output gate on a wide residual stream."""
    layers, hidden = depth(f), hidden_size(f)
    attention = latent_attention(f, window=f.integer("index_topk"))
    if attention.q_lora_rank is None or attention.attention_bias:
        raise f.error("q_lora_rank", "null, or attention biases, are not understood for this family", "give a rank")
    inner = attention.heads * attention.v_head_dim
    beside = Extra(
        "output_gate",
        hidden,
        (Projection("linear_gate", inner, hidden, "none"),),
        (MixerVector("sinks", attention.heads, component="attention"),),
        "attention",
    )
    index = Indexer(
        hidden,
        attention.q_lora_rank,
        f.integer("index_n_heads"),
        f.integer("index_head_dim"),
        f.integer("index_topk"),
    )
    moe, dense, norm = deepseek_moe(f, score_function="sigmoid"), dense_mlp(f), Norm(hidden)
    sparse = sparse_after(f, layers, default=1)
    f.ignore("layer_types", "learnable_sink_init", "swiglu_limit")
    blocks = [
        (norm, *((index,) if full else ()), attention, beside, norm, moe if is_sparse else dense)
        for full, is_sparse in zip(_indexed_layers(f, layers), sparse, strict=True)
    ]
    return decoder(f, streamed(f, blocks, 2, 2), **SIGMOID)


@family("glm5_next_text")
def glm5_next(f: Fields) -> Architecture:
    """Kimi delta attention with sparse latent attention in between, on a wide residual stream."""
    layers, hidden = depth(f), hidden_size(f)
    attention = replace(_nope(f), window=f.integer("index_topk"))
    index = Indexer(
        hidden,
        f.integer("q_lora_rank"),
        f.integer("index_n_heads"),
        f.integer("index_head_dim"),
        f.integer("index_topk"),
    )
    pool = Extra(
        "indexer.pool",
        hidden,
        (Projection("compress_gate", index.head_dim, hidden, "none"),),
        (MixerVector("compress_ape", f.integer("index_kpool") * index.head_dim, component="attention"),),
        "attention",
    )
    delta = kimi_delta(
        hidden, f.integer("linear_num_heads"), f.integer("linear_head_dim"), f.integer("linear_conv_kernel_dim")
    )
    kinds = layer_types(f, layers, ("linear_attention", "indexed_attention"))
    full = _indexed_layers(f, layers)
    moe, dense, norm = deepseek_moe(f, score_function="sigmoid"), dense_mlp(f), Norm(hidden)
    sparse = sparse_after(f, layers, default=3)
    f.ignore("index_kpool_always_select_tail", "linear_lower_bound", "swiglu_limit")
    blocks: list[tuple[Operator, ...]] = []
    for kind, own, is_sparse in zip(kinds, full, sparse, strict=True):
        mixer: tuple[Operator, ...] = (delta,)
        if kind == "indexed_attention":
            mixer = (index, pool, attention) if own else (attention,)
        blocks.append((norm, *mixer, norm, moe if is_sparse else dense))
    return decoder(f, _merged_by_mean(f, blocks), **SIGMOID)


def _nope(f: Fields) -> Any:
    """Latent attention without a rotary part."""
    f.fixed("qk_rope_head_dim", 0, "is not what the family's class builds")
    return replace(latent_attention(_with(f, "qk_rope_head_dim", 1)), qk_rope_head_dim=0)


def _with(f: Fields, key: str, value: int) -> Fields:
    """The same fields with one value replaced, marking the same keys as read."""
    changed = Fields({**f.mapping, key: value}, f.where)
    changed.read = f.read
    return changed


def _merged_by_mean(f: Fields, blocks: Sequence[tuple[Operator, ...]]) -> list[Layer]:
    """A wide residual stream that is averaged, not mixed, after the last layer."""
    built = streamed(f, blocks, 2, 3)
    return [*built[:-1], Layer(built[-1].operators[:-1])]


@family("zaya")
def zaya(f: Fields) -> Architecture:
    """Convolved queries and keys, scaled residuals, one expert of several or none, chosen by a small network."""
    layers, hidden = depth(f), hidden_size(f)
    for key in ("attention_bias", "lm_head_bias"):
        if f.flag(key, default=False):
            raise f.error(key, "biases are not understood for this family", "set it to false")
    attention = grouped_attention(f, head_dim=128)
    channels = (attention.heads + attention.kv_heads) * attention.head_dim
    taps = [f.integer("cca_time0", default=2), f.integer("cca_time1", default=2)]
    convolutions = Extra(
        "convolutions",
        channels,
        (),
        (
            MixerVector("conv_depthwise", channels * taps[0] + channels, component="attention"),
            MixerVector("conv_grouped", channels * attention.head_dim * taps[1] + channels, component="attention"),
            MixerVector("qk_norm.temp", attention.kv_heads, component="norms"),
        ),
    )
    inner = f.integer("router_hidden_size", default=256)
    experts = f.integer(*EXPERTS)
    f.fixed("num_experts_per_tok", 1, "is not what the family's class routes")
    # One logit more than experts: the choice of none. The router's last projection reads the inner width.
    moe = MoE(hidden, experts, 1, f.integer("moe_intermediate_size"), identity_experts=1, router_input=inner)
    known = ("hybrid", "hybrid_sliding")
    kinds = layer_types(f, layers, known, lambda index: known[0])
    width = f.integer("sliding_window") if known[1] in kinds else None
    norm, scales = Norm(hidden), residual_scales(hidden, 4)
    built = []
    for index, kind in enumerate(kinds):
        mixer = replace(attention, window=width if kind == known[1] else None)
        router = _zaya_router(hidden, inner, carries=index > 0)
        built.append(Layer((norm, convolutions, mixer, scales, norm, router, moe, scales)))
    built[0] = Layer((residual_scales(hidden, 2), *built[0].operators))
    f.ignore("sliding_window")
    return decoder(f, built, tied=True)


def _zaya_router(hidden: int, inner: int, carries: bool) -> Extra:
    """Down, two hidden layers with biases and a norm; all but the first layer add the earlier router's state."""
    state = inner if carries else 0
    return Extra(
        "router",
        hidden,
        (
            Projection("router", inner, hidden, "none"),
            Projection("router", inner, inner, "none"),
            Projection("router", inner, inner, "none"),
        ),
        (
            MixerVector("router.biases", 3 * inner + state, cut=False, component="router"),
            MixerVector("router.norm", inner, cut=False, component="norms"),
        ),
        "router",
    )
