"""Mixture-of-Experts families with grouped-query attention whose routers score by a sigmoid, and their relatives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from moeplan.model.architecture import Architecture, Layer
from moeplan.model.families.common import (
    REQUIRED,
    biases,
    decoder,
    dense_mlp,
    depth,
    family,
    grouped_attention,
    hidden_size,
    layer_types,
    mixture,
    plain_layer,
    shared_block,
    sparse_after,
    windows,
)
from moeplan.model.families.latent import deepseek_moe
from moeplan.model.families.softmax_moe import interleaved_sparse
from moeplan.model.fields import Fields
from moeplan.operators.indexer import Indexer
from moeplan.operators.norm import Norm

SIGMOID: dict[str, Any] = {"score_function": "sigmoid", "correction_bias": True}
"""Facts of a router with sigmoid scores that balances itself by a correction bias."""


@family("glm4_moe")
def glm4_moe(f: Fields) -> Architecture:
    """Grouped-query attention with biases on query, key and value, optional norms over each head."""
    bias = biases(f, on="qkv")
    qk_norm = "head" if f.flag("use_qk_norm", default=False) else None
    attention = grouped_attention(f, bias=bias, qk_norm=qk_norm)
    moe = deepseek_moe(f, score_function="sigmoid")
    dense = dense_mlp(f)
    norm = Norm(hidden_size(f))
    sparse = sparse_after(f, depth(f), "first_k_dense_replace")
    layers = [plain_layer(norm, attention, moe if is_sparse else dense) for is_sparse in sparse]
    return decoder(f, layers, prediction=True, **SIGMOID)


@family("dots1")
def dots1(f: Fields) -> Architecture:
    """Grouped-query attention with norms over each head."""
    layers = depth(f)
    bias = biases(f)
    attention = grouped_attention(f, qk_norm="head", bias=bias)
    if f.raw("n_shared_experts", default=None) is None:
        moe = mixture(f, "moe_intermediate_size", score_function="sigmoid")
    else:
        moe = deepseek_moe(f, score_function="sigmoid")
    dense = dense_mlp(f)
    norm = Norm(hidden_size(f))
    sparse = sparse_after(f, layers, "first_k_dense_replace")
    last = f.integer("max_window_layers", default=layers, least=0)
    spans = windows(f, layers, lambda index: index >= last)
    return decoder(
        f,
        [
            plain_layer(norm, replace(attention, window=span), moe if is_sparse else dense)
            for span, is_sparse in zip(spans, sparse, strict=True)
        ],
        **SIGMOID,
    )


@family("minimax_m2")
def minimax_m2(f: Fields) -> Architecture:
    """Every layer MoE with sigmoid scores; query/key norms over the full width."""
    attention = grouped_attention(f, head_dim=128, qk_norm="full")
    f.ignore("use_qk_norm", "qk_norm_type", "rotary_dim", "use_routing_bias", "shared_moe_mode")
    # Training keys of the original files: the class builds neither prediction layers nor shared experts.
    f.ignore("use_mtp", "num_mtp_modules", "mtp_transformer_layers")
    f.fixed("shared_intermediate_size", 0, "has no counterpart in the family's class")
    if any(kind != 1 for kind in f.integers("attn_type_list", default=[1])):
        raise f.error("attn_type_list", "the family's class has softmax attention only", "remove it")
    layer = plain_layer(Norm(hidden_size(f)), attention, mixture(f, "intermediate_size", score_function="sigmoid"))
    return decoder(f, [layer] * depth(f), **SIGMOID)


@family("afmoe")
def afmoe(f: Fields) -> Architecture:
    """Sandwich norms, an output gate, norms over each head; the router's bias is a parameter."""
    layers = depth(f)
    norm = Norm(hidden_size(f))
    attention = grouped_attention(f, kv_heads="heads", head_dim=128, qk_norm="head", output_gate=True)
    if f.flag("attention_bias", default=False):
        raise f.error("attention_bias", "biases are not understood for this family", "set it to false")
    moe = deepseek_moe(f, score_function="sigmoid", correction_bias=True)
    dense = dense_mlp(f)
    sparse = sparse_after(f, layers, "num_dense_layers", default=1)
    every = f.integer("global_attn_every_n_layers", default=4)
    spans = windows(f, layers, lambda index: (index + 1) % every != 0)
    f.ignore("mup_enabled", "route_scale", "route_norm", "score_func", "load_balance_coeff", "use_grouped_mm")
    f.ignore("num_expert_groups", "num_limited_groups")
    return decoder(
        f,
        [
            Layer((norm, replace(attention, window=span), norm, norm, moe if is_sparse else dense, norm))
            for span, is_sparse in zip(spans, sparse, strict=True)
        ],
        **SIGMOID,
    )


@family("exaone_moe")
def exaone_moe(f: Fields) -> Architecture:
    """Norms over each head, windows on three layers of four, first layer dense."""
    layers = depth(f)
    norm = Norm(hidden_size(f))
    attention = grouped_attention(f, qk_norm="head")
    moe, dense = deepseek_moe(f, score_function="sigmoid"), dense_mlp(f)
    sparse = sparse_after(f, layers, "first_k_dense_replace", default=1)
    spans = exaone_windows(f, layers)
    f.ignore("is_moe_layer")
    return decoder(
        f,
        [
            plain_layer(norm, replace(attention, window=span), moe if is_sparse else dense)
            for span, is_sparse in zip(spans, sparse, strict=True)
        ],
        prediction=True,
        **SIGMOID,
    )


def exaone_windows(f: Fields, layers: int) -> list[int | None]:
    """Windows on all but every ``sliding_window_pattern``-th layer; a pattern of letters is understood too."""
    pattern = f.raw("sliding_window_pattern", default=4)
    if isinstance(pattern, str):
        return windows(f, layers, lambda index: pattern[index % len(pattern)] == "L")
    every = f.check_integer("sliding_window_pattern", pattern, least=0)
    return windows(f, layers, lambda index: bool(every) and (index + 1) % every != 0)


@family("solar_open")
def solar_open(f: Fields) -> Architecture:
    """Every layer is MoE."""
    attention = grouped_attention(f, head_dim=128, bias=biases(f, on="qkv"))
    moe = deepseek_moe(f, score_function="sigmoid")
    f.ignore("intermediate_size", "first_k_dense_replace", "use_qk_norm")
    return decoder(f, [plain_layer(Norm(hidden_size(f)), attention, moe)] * depth(f), **SIGMOID)


@family("mimo_v2_flash")
def mimo_v2_flash(f: Fields) -> Architecture:
    """Two shapes of attention: full layers, and sliding ones with sinks and key/value heads of their own."""
    layers = depth(f)
    norm = Norm(hidden_size(f))
    full = grouped_attention(f, head_dim=REQUIRED, bias=biases(f, on="qkv"), v_head_dim=f.integer("v_head_dim"))
    f.integer("sliding_window")  # required: without it no layer would slide
    # Sliding layers have twice the key/value heads (the class fixes it; hub files spell it out).
    sliding = replace(full, kv_heads=2 * full.kv_heads, sinks=True)
    own = {"num_attention_heads": "heads", "num_key_value_heads": "kv_heads", "head_dim": "head_dim"}
    for key, attribute in (own | {"v_head_dim": "v_head_dim"}).items():
        if f.integer(f"swa_{key}", default=getattr(sliding, attribute)) != getattr(sliding, attribute):
            raise f.error(f"swa_{key}", "differs from the shape that the family's class builds", "remove it")
    moe, dense = mixture(f, "moe_intermediate_size", score_function="sigmoid"), dense_mlp(f)
    sparse = sparse_after(f, layers, default=1)
    listed = f.integers("hybrid_layer_pattern", default=None, length=layers)
    spans = windows(f, layers, lambda index: bool(listed[index]) if listed else index != 0 and (index + 1) % 6 != 0)
    f.ignore(
        "attention_value_scale", "sliding_window_size", "add_swa_attention_sink_bias", "add_full_attention_sink_bias"
    )
    f.ignore("moe_layer_freq", "attention_chunk_size", "swa_rope_theta", "hybrid_block_size")
    return decoder(
        f,
        [
            plain_layer(norm, full if span is None else replace(sliding, window=span), moe if is_sparse else dense)
            for span, is_sparse in zip(spans, sparse, strict=True)
        ],
        **SIGMOID,
    )


@family("hy_v3")
def hy_v3(f: Fields) -> Architecture:
    """Norms over each head, first layer dense."""
    layers = depth(f)
    attention = grouped_attention(f, head_dim=128, qk_norm="head", bias=biases(f))
    bias = f.flag("mlp_bias", default=False)
    if f.integer("num_shared_experts", "n_shared_experts", least=0) == 0:
        raise f.error("num_shared_experts", "the family's class always has some", "give at least 1")
    moe = deepseek_moe(f, score_function="sigmoid", shared_bias=bias)
    dense = dense_mlp(f, bias=bias)
    f.ignore("enable_moe_fp32_combine")
    sparse = sparse_after(f, layers, "first_k_dense_replace", default=1)
    norm = Norm(hidden_size(f))
    return decoder(f, [plain_layer(norm, attention, moe if is_sparse else dense) for is_sparse in sparse], **SIGMOID)


@family("kolibri1")
def kolibri1(f: Fields) -> Architecture:
    """Sandwich norms, every layer MoE with a shared expert, windows on four layers of five."""
    layers = depth(f)
    norm = Norm(hidden_size(f))
    attention = grouped_attention(f, head_dim=128, qk_norm="head")
    shared = shared_block(f, f.integer("shared_expert_intermediate_size", least=0))
    moe = mixture(f, "moe_intermediate_size", shared=shared, score_function="sigmoid")
    spans = windows(f, layers, lambda index: (index + 1) % 5 != 0)
    return decoder(
        f, [Layer((norm, replace(attention, window=span), norm, norm, moe, norm)) for span in spans], **SIGMOID
    )


@family("mellum")
def mellum(f: Fields) -> Architecture:
    """Qwen3-MoE's block with windows and dense layers listed one by one."""
    layers = depth(f)
    norm = Norm(hidden_size(f))
    attention = grouped_attention(f, head_dim=128, qk_norm="head", bias=biases(f))
    moe = mixture(f, "moe_intermediate_size")
    sparse = sparse_after(f, layers, default=0)
    dense = moe if all(sparse) else dense_mlp(f)
    f.ignore("intermediate_size", "mtp_layer_types", "mtp_mlp_layer_types")
    spans = windows(f, layers)
    return decoder(
        f,
        [
            plain_layer(norm, replace(attention, window=span), moe if is_sparse else dense)
            for span, is_sparse in zip(spans, sparse, strict=True)
        ],
        prediction=True,
    )


@family("flint")
def flint(f: Fields) -> Architecture:
    """Sinks, norms over each head, an ungated shared expert, first layers dense."""
    layers = depth(f)
    norm = Norm(hidden_size(f))
    attention = grouped_attention(f, head_dim=128, qk_norm="head", sinks=True, bias=biases(f))
    shared = shared_block(f, f.integer("shared_expert_intermediate_size", least=0))
    moe = mixture(f, "moe_intermediate_size", shared=shared, score_function="sigmoid")
    dense = dense_mlp(f)
    if f.raw("mlp_only_layers", default=None) is None:
        raise f.error("mlp_only_layers", "is missing", "list the dense layers ([] for none)")
    sparse = interleaved_sparse(f, layers)
    spans = windows(f, layers, lambda index: not (index < 2 or index % 4 == 1 or index == layers - 1))
    return decoder(
        f,
        [
            plain_layer(norm, replace(attention, window=span), moe if is_sparse else dense)
            for span, is_sparse in zip(spans, sparse, strict=True)
        ],
        score_function="sigmoid",
    )


@family("laguna")
def laguna(f: Fields) -> Architecture:
    """One gate per query head, head counts that may differ by layer; the router's bias is a parameter."""
    layers = depth(f)
    norm = Norm(hidden_size(f))
    base = grouped_attention(f, head_dim=128, qk_norm="head", bias=biases(f))
    gating = f.raw("gating", default=True)
    if gating is True or gating == "per-head":
        base = replace(base, head_gate=True)
    elif gating == "per-element":
        base = replace(base, output_gate=True)
    else:
        raise f.error("gating", f"{gating!r} is not understood", "give true, per-head or per-element")
    heads = f.integers("num_attention_heads_per_layer", default=[base.heads] * layers, length=layers, least=1)
    shared = shared_block(f, f.integer("shared_expert_intermediate_size", least=0))
    moe = mixture(f, "moe_intermediate_size", shared=shared, score_function="sigmoid", correction_bias=True)
    dense = dense_mlp(f)
    sparse = sparse_after(f, layers, default=1)
    spans = windows(f, layers)
    f.ignore("moe_apply_router_weight_on_input", "moe_routed_scaling_factor", "moe_router_logit_softcapping")
    f.ignore("swa_rope_parameters", "moe_router_use_sigmoid")
    return decoder(
        f,
        [
            plain_layer(norm, replace(base, heads=count, window=span), moe if is_sparse else dense)
            for span, count, is_sparse in zip(spans, heads, sparse, strict=True)
        ],
        **SIGMOID,
    )


@family("cohere2_moe")
def cohere2_moe(f: Fields) -> Architecture:
    """One norm feeds attention and feed-forward side by side; dense layers have a width of their own."""
    layers = depth(f)
    norm = Norm(hidden_size(f))
    attention = grouped_attention(f, kv_heads="heads", head_dim=128, bias=biases(f))
    inner = f.integer("intermediate_size")
    shared = shared_block(f, inner * f.integer("num_shared_experts", default=0, least=0))
    score = f.text("expert_selection_fn", default="softmax", choices=("softmax", "sigmoid"))
    moe = mixture(f, "intermediate_size", shared=shared, score_function=score)
    dense_first = f.integer("first_k_dense_replace", default=0, least=0)
    sparse = sparse_after(f, layers, "first_k_dense_replace", default=0)
    dense = moe if all(sparse) else dense_mlp(f, "prefix_dense_intermediate_size")
    f.ignore("prefix_dense_intermediate_size", "shared_expert_combination_strategy", "logit_scale")
    every = f.integer("sliding_window_pattern", default=4)
    prefix = f.integer("prefix_dense_sliding_window_pattern", default=1)

    def slides(index: int) -> bool:
        if index < dense_first:
            return bool((index + 1) % prefix)
        return bool((index - dense_first + 1) % every)

    spans = windows(f, layers, slides)
    return decoder(
        f,
        [
            Layer((norm, replace(attention, window=span), moe if is_sparse else dense))
            for span, is_sparse in zip(spans, sparse, strict=True)
        ],
        tied=True,
        score_function=score,
    )


@family("minimax_m3_vl_text")
def minimax_m3(f: Fields) -> Architecture:
    """Norms over each head, a shared expert, and block-sparse attention behind an indexer on listed layers."""
    layers = depth(f)
    hidden = hidden_size(f)
    norm = Norm(hidden)
    attention = grouped_attention(f, head_dim=128, qk_norm="head")
    chosen = f.integer("index_topk_blocks", default=16) * f.integer("index_block_size", default=128)
    index = Indexer(
        hidden,
        hidden,
        f.integer("index_n_heads", default=4),
        f.integer("index_head_dim", default=128),
        chosen,
        head_weights=False,
        query_norm=True,
        norm_bias=False,
    )
    f.ignore("index_local_blocks", "swiglu_alpha", "swiglu_limit", "swiglu_beta", "use_qk_norm", "qk_norm_type")
    f.ignore("use_gemma_norm", "use_routing_bias", "num_mtp_modules", "n_shared_experts")
    shared = shared_block(f, f.integer("shared_intermediate_size"))
    moe = mixture(f, "intermediate_size", shared=shared, score_function="sigmoid")
    sparse = sparse_after(f, layers, default=0)
    dense = moe if all(sparse) else dense_mlp(f, "dense_intermediate_size")
    f.ignore("dense_intermediate_size")
    known = ("full_attention", "minimax_m3_sparse")
    kinds = layer_types(f, layers, known, lambda index: known[0])
    return decoder(
        f,
        [
            Layer(
                (norm, index, replace(attention, window=chosen), norm, moe if is_sparse else dense)
                if kind == "minimax_m3_sparse"
                else (norm, attention, norm, moe if is_sparse else dense)
            )
            for kind, is_sparse in zip(kinds, sparse, strict=True)
        ],
        **SIGMOID,
    )


@family("aria_text")
def aria_text(f: Fields) -> Architecture:
    """Every layer is MoE with fused shared experts of the experts' width."""
    attention = grouped_attention(f, kv_heads="heads", bias=biases(f))
    inner = f.integer("intermediate_size")
    shared = shared_block(
        f, inner * f.integer("moe_num_shared_experts", least=0), bias=f.flag("mlp_bias", default=False)
    )
    layer = plain_layer(Norm(hidden_size(f)), attention, mixture(f, "intermediate_size", shared=shared))
    return decoder(f, [layer] * depth(f))


@family("granitemoe_swa")
def granitemoe_swa(f: Fields) -> Architecture:
    """Granite-MoE with sinks and windows on three layers of four."""
    layers = depth(f)
    attention = grouped_attention(f, kv_heads="heads", bias=biases(f), sinks=True)
    shared = shared_block(f, f.integer("shared_intermediate_size", default=0, least=0))
    moe = mixture(f, "intermediate_size", shared=shared)
    norm = Norm(hidden_size(f))
    spans = windows(f, layers, lambda index: index % 4 != 0)
    f.ignore("layer_rope_theta")
    return decoder(f, [plain_layer(norm, replace(attention, window=span), moe) for span in spans])
