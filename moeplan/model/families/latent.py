"""Families with DeepSeek's MoE block: fused shared experts, first layers dense; latent or grouped-query attention."""

from __future__ import annotations

from dataclasses import replace

from moeplan.model.architecture import Architecture
from moeplan.model.families.common import (
    biases,
    decoder,
    dense_mlp,
    depth,
    family,
    grouped_attention,
    hidden_size,
    latent_attention,
    mixture,
    plain_layer,
    shared_block,
    sparse_after,
    windows,
)
from moeplan.model.fields import Fields
from moeplan.operators.moe import MoE
from moeplan.operators.norm import Norm


def deepseek_moe(f: Fields, **features: object) -> MoE:
    """Routed experts and ``n_shared_experts`` times their width fused in one shared block."""
    shared = f.integer("n_shared_experts", "num_shared_experts", default=0, least=0)
    block = shared_block(f, shared * f.integer("moe_intermediate_size"))
    return mixture(f, "moe_intermediate_size", **({"shared": block} | features))


@family("deepseek_v2")
def deepseek_v2(f: Fields) -> Architecture:
    """Latent attention, softmax scores, first layers dense."""
    attention = latent_attention(f)
    moe = deepseek_moe(f)
    dense = dense_mlp(f, bias=f.flag("mlp_bias", default=False))
    norm = Norm(hidden_size(f))
    sparse = sparse_after(f, depth(f), "first_k_dense_replace")
    return decoder(f, [plain_layer(norm, attention, moe if is_sparse else dense) for is_sparse in sparse])


@family("deepseek_v3")
def deepseek_v3(f: Fields) -> Architecture:
    """Latent attention, sigmoid scores with a correction buffer, multi-token prediction."""
    attention = latent_attention(f)
    moe = deepseek_moe(f, score_function="sigmoid")
    dense = dense_mlp(f)
    norm = Norm(hidden_size(f))
    sparse = sparse_after(f, depth(f), "first_k_dense_replace")
    layers = [plain_layer(norm, attention, moe if is_sparse else dense) for is_sparse in sparse]
    return decoder(f, layers, prediction=True, score_function="sigmoid", correction_bias=True)


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
    return decoder(f, layers, prediction=True, score_function="sigmoid", correction_bias=True)


@family("dots1")
def dots1(f: Fields) -> Architecture:
    """Grouped-query attention with norms over each head."""
    layers = depth(f)
    bias = biases(f)
    attention = grouped_attention(f, qk_norm="head", bias=bias)
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
        score_function="sigmoid",
        correction_bias=True,
    )


@family("minimax_m2")
def minimax_m2(f: Fields) -> Architecture:
    """Every layer MoE with sigmoid scores; query/key norms over the full width."""
    attention = grouped_attention(f, head_dim=128, qk_norm="full")
    f.ignore("use_qk_norm", "qk_norm_type", "rotary_dim")
    layer = plain_layer(Norm(hidden_size(f)), attention, mixture(f, "intermediate_size", score_function="sigmoid"))
    return decoder(f, [layer] * depth(f), score_function="sigmoid", correction_bias=True)
