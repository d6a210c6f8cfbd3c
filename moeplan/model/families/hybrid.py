"""Families that mix softmax attention with linear attention, delta nets or short convolutions."""

from __future__ import annotations

from collections.abc import Sequence

from moeplan.model.architecture import Architecture, Layer, Operator
from moeplan.model.families.common import (
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
    untied,
)
from moeplan.model.families.latent import deepseek_moe
from moeplan.model.families.softmax_moe import interleaved_sparse
from moeplan.model.fields import Fields
from moeplan.operators.attention import Attention, LatentAttention
from moeplan.operators.expert_attention import ExpertAttention
from moeplan.operators.mixer import Mixer
from moeplan.operators.mlp import DenseMLP
from moeplan.operators.norm import Norm
from moeplan.operators.recurrent import (
    gated_delta_net,
    kimi_delta,
    lightning,
    short_convolution,
)

FULL, LINEAR = "full_attention", "linear_attention"


def alternating(
    kinds: Sequence[str], norm: Norm, mixers: dict[str, Operator], feed_forward: Sequence[Operator]
) -> list[Layer]:
    """Pre-norm layers whose mixer goes by kind."""
    return [plain_layer(norm, mixers[kind], block) for kind, block in zip(kinds, feed_forward, strict=True)]


def _qwen_mixers(f: Fields) -> tuple[list[str], dict[str, Operator]]:
    layers = depth(f)
    every = f.integer("full_attention_interval", default=4)
    kinds = layer_types(f, layers, (FULL, LINEAR), lambda index: LINEAR if (index + 1) % every else FULL)
    attention = grouped_attention(f, head_dim=256, qk_norm="head", bias=biases(f), output_gate=True)
    delta = gated_delta_net(
        attention.hidden,
        f.integer("linear_num_key_heads"),
        f.integer("linear_num_value_heads"),
        f.integer("linear_key_head_dim"),
        f.integer("linear_value_head_dim"),
        f.integer("linear_conv_kernel_dim", default=4),
    )
    return kinds, {FULL: attention, LINEAR: delta}


@family("qwen3_next", "qwen3_5_moe_text")
def qwen3_next(f: Fields) -> Architecture:
    """Gated DeltaNet on three layers of four, gated attention on the fourth; one gated shared expert."""
    kinds, mixers = _qwen_mixers(f)
    shared = shared_block(f, f.integer("shared_expert_intermediate_size"))
    moe = mixture(f, "moe_intermediate_size", shared=shared, shared_gate=True)
    sparse = interleaved_sparse(f, len(kinds))
    dense = moe if all(sparse) else dense_mlp(f)
    f.ignore("intermediate_size", "attn_output_gate", "mamba_ssm_dtype", "mtp_use_dedicated_embeddings")
    blocks = [moe if is_sparse else dense for is_sparse in sparse]
    norm = Norm(hidden_size(f))
    layers = alternating(kinds, norm, mixers, blocks)
    # The prediction layer is a full-attention MoE layer, whatever kind comes last (design of the released checkpoint).
    predicted = plain_layer(norm, mixers[FULL], moe)
    return decoder(f, layers, prediction=True, predicted=predicted)


@family("qwen3_5_text")
def qwen3_5(f: Fields) -> Architecture:
    """The dense sibling of Qwen3.5-MoE."""
    kinds, mixers = _qwen_mixers(f)
    f.ignore("attn_output_gate", "mamba_ssm_dtype", "mtp_use_dedicated_embeddings")
    norm, mlp = Norm(hidden_size(f)), dense_mlp(f)
    layers = alternating(kinds, norm, mixers, [mlp] * len(kinds))
    return decoder(f, layers, prediction=True, predicted=plain_layer(norm, mixers[FULL], mlp))


@family("lfm2_moe")
def lfm2_moe(f: Fields) -> Architecture:
    """Short convolutions and attention with norms over each head; first layers dense."""
    layers = depth(f)
    hidden = hidden_size(f)
    kinds = layer_types(f, layers, (FULL, "conv"))
    mixers: dict[str, Operator] = {
        FULL: grouped_attention(f, qk_norm="head"),
        "conv": short_convolution(hidden, f.integer("conv_L_cache"), bias=f.flag("conv_bias", default=False)),
    }
    moe, dense = mixture(f, "moe_intermediate_size", score_function="sigmoid"), dense_mlp(f)
    sparse = sparse_after(f, layers, "num_dense_layers")
    f.ignore("use_expert_bias")
    blocks = [moe if is_sparse else dense for is_sparse in sparse]
    return decoder(
        f,
        alternating(kinds, Norm(hidden), mixers, blocks),
        tied=f.flag("tie_embedding", default=True),
        score_function="sigmoid",
        correction_bias=True,
    )


@family("lfm2")
def lfm2(f: Fields) -> Architecture:
    """The dense sibling of LFM2-MoE; the stated feed-forward width is adjusted as in Llama 1."""
    layers, hidden = depth(f), hidden_size(f)
    chosen = set(f.integers("full_attn_idxs", default=range(layers)))
    kinds = layer_types(f, layers, (FULL, "conv"), lambda index: FULL if index in chosen else "conv")
    mixers: dict[str, Operator] = {
        FULL: grouped_attention(f, qk_norm="head"),
        "conv": short_convolution(
            hidden, f.integer("conv_L_cache", default=3), bias=f.flag("conv_bias", default=False)
        ),
    }
    inner = f.integer("block_ff_dim", "intermediate_size")
    multiple = f.integer("block_multiple_of", default=256)
    scale = f.number("block_ffn_dim_multiplier", default=1.0, least=0)
    if f.flag("block_auto_adjust_ff_dim", default=True):
        inner = int(scale * int(2 * inner / 3))
        inner = multiple * ((inner + multiple - 1) // multiple)
    f.ignore("block_dim", "block_mlp_init_scale", "block_norm_eps", "block_out_init_scale", "block_use_swiglu")
    f.ignore("block_use_xavier_init", "conv_dim", "conv_dim_out", "conv_use_xavier_init", "num_heads", "use_pos_enc")
    mlp = DenseMLP(hidden, inner)
    return decoder(
        f,
        alternating(kinds, Norm(hidden), mixers, [mlp] * layers),
        tied=f.flag("tie_embedding", default=True),
    )


@family("kimi_linear")
def kimi_linear(f: Fields) -> Architecture:
    """Kimi delta attention with latent attention without positions in between; first layer dense."""
    layers = depth(f)
    latent = latent_attention(f, stated=False)
    nested = f.section("linear_attn_config", default=None)
    names = {"heads": "linear_num_heads", "head_dim": "linear_head_dim", "conv": "linear_conv_kernel_dim"}
    sizes = {key: f.integer(name, default=None) for key, name in names.items()}
    full: set[int] = set()
    if nested is not None:
        short = {"heads": "num_heads", "head_dim": "head_dim", "conv": "short_conv_kernel_size"}
        sizes = {key: nested.integer(name, default=sizes[key]) for key, name in short.items()}
        full = {index - 1 for index in nested.integers("full_attn_layers", default=[])}
        listed = nested.integers("kda_layers", default=[])
        if full and len(full) + len(listed) != layers:
            raise f.error("linear_attn_config", "its two lists do not cover every layer once", "correct them")
    for key, value in sizes.items():
        if value is None:
            raise f.error(names[key], "is missing", "add it")
    every = (lambda index: index in full) if full else (lambda index: index > 0 and index % 4 == 0)
    kinds = layer_types(f, layers, (FULL, LINEAR), lambda index: FULL if every(index) else LINEAR)
    delta = kimi_delta(latent.hidden, sizes["heads"], sizes["head_dim"], sizes["conv"])
    f.ignore("model_max_length", "mla_use_nope", "use_grouped_topk", "moe_layer_freq")
    return _delta_and_latent(f, kinds, latent, delta)


@family("bailing_hybrid")
def bailing_hybrid(f: Fields) -> Architecture:
    """Ling 3: delta attention with full gates, latent attention at every ``layer_group_size``-th layer."""
    layers = depth(f)
    latent = latent_attention(f, stated=False, head_gate=True)
    # In files saved by transformers 5, head_dim has become the rotary width and the linear keys hold the heads.
    width = f.integer("linear_head_dim", default=None) or f.integer("head_dim")
    heads = f.integer("linear_num_heads", default=latent.heads)
    conv = f.integer("short_conv_kernel_size", "linear_conv_kernel_dim", default=4)
    group = f.integer("layer_group_size", default=6)
    kinds = layer_types(f, layers, (FULL, LINEAR), lambda index: LINEAR if (index + 1) % group else FULL)
    delta = kimi_delta(latent.hidden, heads, width, conv, low_rank_gates=False)
    f.ignore("kda_lower_bound", "kda_safe_gate", "model_max_length", "mtp_loss_scaling_factor", "moe_layer_freq")
    return _delta_and_latent(f, kinds, latent, delta)


def _delta_and_latent(f: Fields, kinds: list[str], latent: LatentAttention, delta: Mixer) -> Architecture:
    norm = Norm(latent.hidden)
    untied(f, "transformers' class does not tie them")
    moe, dense = deepseek_moe(f, score_function="sigmoid"), dense_mlp(f)
    sparse = sparse_after(f, len(kinds), "first_k_dense_replace", default=1)
    blocks = [moe if is_sparse else dense for is_sparse in sparse]
    return decoder(
        f,
        alternating(kinds, norm, {FULL: latent, LINEAR: delta}, blocks),
        prediction=True,
        predicted=plain_layer(norm, latent, moe),
        score_function="sigmoid",
        correction_bias=True,
    )


@family("minimax")
def minimax(f: Fields) -> Architecture:
    """MiniMax-Text-01: lightning attention, softmax attention on listed layers, MoE everywhere."""
    layers, hidden = depth(f), hidden_size(f)
    # The class does not read the attn_type_list of the original files, so neither do we: layer_types must say it.
    kinds = layer_types(f, layers, (FULL, LINEAR), lambda index: FULL if index % 2 == 0 else LINEAR)
    attention = grouped_attention(f)
    linear = lightning(hidden, attention.heads, attention.head_dim)
    f.ignore("block_size", "postnorm", "shared_intermediate_size", "shared_moe_mode", "num_shared_experts")
    f.ignore(
        *(key for key in f.mapping if key.endswith(("_alpha_factor", "_beta_factor")) or key.startswith("layernorm_"))
    )
    moe = mixture(f, "intermediate_size")
    return decoder(f, alternating(kinds, Norm(hidden), {FULL: attention, LINEAR: linear}, [moe] * layers))


@family("jetmoe")
def jetmoe(f: Fields) -> Architecture:
    """Attention and feed-forward are both mixtures, each with one bias on its output."""
    hidden = hidden_size(f)
    moe = mixture(f, "intermediate_size", output_bias=True)
    kv_heads = f.integer("num_key_value_heads")
    if f.integer("num_attention_heads", default=kv_heads * moe.top_k) != kv_heads * moe.top_k:
        raise f.error(
            "num_attention_heads", f"is not num_key_value_heads * num_experts_per_tok = {kv_heads * moe.top_k}"
        )
    attention = ExpertAttention(hidden, moe.experts, moe.top_k, kv_heads, f.integer("kv_channels", "head_dim"))
    f.ignore("aux_loss_coef", "glu")
    return decoder(f, [plain_layer(Norm(hidden), attention, moe)] * depth(f), tied=True)


@family("olmo_hybrid")
def olmo_hybrid(f: Fields) -> Architecture:
    """Gated DeltaNet behind pre-norms, attention behind post-norms."""
    layers, hidden = depth(f), hidden_size(f)
    kinds = layer_types(f, layers, (FULL, LINEAR))
    norm, mlp = Norm(hidden), dense_mlp(f)
    attention: Attention = grouped_attention(f, kv_heads="heads", qk_norm="full", bias=biases(f))
    delta = gated_delta_net(
        hidden,
        f.integer("linear_num_key_heads"),
        f.integer("linear_num_value_heads"),
        f.integer("linear_key_head_dim"),
        f.integer("linear_value_head_dim"),
        f.integer("linear_conv_kernel_dim", default=4),
    )
    f.ignore(*(key for key in f.mapping if key.startswith(("linear_a_log_", "linear_dt_"))))
    f.ignore("linear_allow_neg_eigval")
    return decoder(
        f,
        [Layer((attention, norm, mlp, norm)) if kind == FULL else Layer((norm, delta, norm, mlp)) for kind in kinds],
    )
