"""Families with state-space layers (Mamba) beside softmax attention."""

from __future__ import annotations

import math

from moeplan.model.architecture import Architecture, Layer, Operator
from moeplan.model.families.common import (
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
    untied,
)
from moeplan.model.families.hybrid import FULL, LINEAR, alternating
from moeplan.model.fields import Fields
from moeplan.operators.mixer import Mixer
from moeplan.operators.mlp import DenseMLP
from moeplan.operators.moe import MoE
from moeplan.operators.norm import Norm
from moeplan.operators.recurrent import mamba, mamba2


@family("jamba")
def jamba(f: Fields) -> Architecture:
    """Attention every ``attn_layer_period`` layers, Mamba-1 with inner norms elsewhere; MoE every other layer."""
    layers, hidden = depth(f), hidden_size(f)
    attention = grouped_attention(f)
    inner = f.integer("mamba_expand") * hidden
    rank = f.raw("mamba_dt_rank", default="auto")
    recurrent = mamba(
        hidden,
        inner,
        f.integer("mamba_d_state"),
        f.integer("mamba_d_conv"),
        math.ceil(hidden / 16) if rank == "auto" else f.check_integer("mamba_dt_rank", rank),
        conv_bias=f.flag("mamba_conv_bias", default=True),
        bias=f.flag("mamba_proj_bias", default=False),
        norms=True,
    )
    moe, dense = mixture(f, "intermediate_size"), dense_mlp(f)
    f.ignore(
        "use_mamba_kernels",
        "use_mambapy",
        "use_associative_scan",
        "num_logits_to_keep",
        "calc_logits_for_entire_prompt",
    )
    f.ignore("layers_block_type", "layers_num_experts", "layer_types", "mamba_inner_layernorms", "sliding_window")
    attention_period, attention_offset = f.integer("attn_layer_period"), f.integer("attn_layer_offset", least=0)
    expert_period, expert_offset = f.integer("expert_layer_period"), f.integer("expert_layer_offset", least=0)
    sparse = moe if moe.experts > 1 else dense
    norm = Norm(hidden)
    return decoder(
        f,
        [
            plain_layer(
                norm,
                attention if index % attention_period == attention_offset else recurrent,
                sparse if index % expert_period == expert_offset else dense,
            )
            for index in range(layers)
        ],
    )


def granite_mamba(f: Fields, heads: str = "mamba_n_heads") -> Mixer:
    """Mamba-2 as Granite 4 and Bamba name its keys."""
    hidden = hidden_size(f)
    count = f.integer(heads)
    inner = f.integer("mamba_expand", default=2) * hidden
    width = f.raw("mamba_d_head", default="auto")
    head_dim = inner // count if width == "auto" else f.check_integer("mamba_d_head", width)
    if head_dim * count != inner:
        raise f.error("mamba_d_head", f"{head_dim} times {count} heads is not mamba_expand * hidden_size = {inner}")
    f.ignore("mamba_chunk_size", "time_step_limit", "time_step_min", "time_step_max", "time_step_floor")
    return mamba2(
        hidden,
        count,
        head_dim,
        f.integer("mamba_d_state"),
        f.integer("mamba_n_groups", default=1),
        f.integer("mamba_d_conv", default=4),
        conv_bias=f.flag("mamba_conv_bias", default=True),
        bias=f.flag("mamba_proj_bias", default=False),
    )


@family("granitemoehybrid")
def granitemoehybrid(f: Fields) -> Architecture:
    """Granite 4: Mamba-2 and attention layers, experts with a shared block, or only the shared block."""
    layers = depth(f)
    kinds = layer_types(f, layers, (FULL, LINEAR), lambda index: LINEAR)
    mixers: dict[str, Operator] = {
        FULL: grouped_attention(f, kv_heads="heads", bias=biases(f)) if FULL in kinds else granite_mamba(f),
        LINEAR: granite_mamba(f) if LINEAR in kinds else Norm(1),
    }
    width = f.integer("shared_intermediate_size")
    if f.integer("num_local_experts", "num_experts", least=0) == 0:
        block: Operator = DenseMLP(hidden_size(f), width)
        f.ignore("intermediate_size", "num_experts_per_tok")
    else:
        block = mixture(f, "intermediate_size", shared=shared_block(f, width))
    f.ignore(*(key for key in f.mapping if key.startswith("mamba_")))
    f.ignore(
        "num_attention_heads", "num_key_value_heads", "attention_bias", "time_step_limit", "position_embedding_type"
    )
    f.ignore("normalization_function", "init_method", "shared_expert_combination_strategy")
    return decoder(f, alternating(kinds, Norm(hidden_size(f)), mixers, [block] * layers))


@family("bamba")
def bamba(f: Fields) -> Architecture:
    """Mamba-2 with attention at listed layers, dense feed-forward everywhere."""
    layers = depth(f)
    chosen = set(f.integers("attn_layer_indices", default=[]))
    kinds = layer_types(f, layers, (FULL, LINEAR), lambda index: FULL if index in chosen else LINEAR)
    mixers: dict[str, Operator] = {
        FULL: grouped_attention(f, bias=biases(f)),
        LINEAR: granite_mamba(f),
    }
    mlp = dense_mlp(f, bias=f.flag("mlp_bias", default=False))
    f.ignore("attn_rotary_emb", "num_logits_to_keep", "z_loss_coefficient")
    return decoder(f, alternating(kinds, Norm(hidden_size(f)), mixers, [mlp] * layers))


@family("falcon_h1")
def falcon_h1(f: Fields) -> Architecture:
    """Attention and Mamba-2 side by side in every layer."""
    hidden = hidden_size(f)
    attention = grouped_attention(f, bias=biases(f))
    count = f.integer("mamba_n_heads")
    inner = f.integer("mamba_d_ssm", default=None) or f.integer("mamba_expand") * hidden
    width = f.raw("mamba_d_head", default="auto")
    head_dim = inner // count if width == "auto" else f.check_integer("mamba_d_head", width)
    if head_dim * count != inner:
        raise f.error("mamba_d_head", f"{head_dim} times {count} heads is not the inner width {inner}")
    recurrent = mamba2(
        hidden,
        count,
        head_dim,
        f.integer("mamba_d_state"),
        f.integer("mamba_n_groups"),
        f.integer("mamba_d_conv"),
        conv_bias=f.flag("mamba_conv_bias", default=True),
        gated_norm=f.flag("mamba_rms_norm", default=False),
    )
    for key in ("projectors_bias", "mamba_proj_bias"):
        if f.flag(key, default=False):
            raise f.error(key, "biases are not understood for this family", "set it to false")
    f.ignore(
        *(key for key in f.mapping if key.endswith(("_multiplier", "_multipliers")) or key.startswith("time_step_"))
    )
    f.ignore("mamba_expand", "mamba_chunk_size", "mamba_norm_before_gate", "mamba_use_mlp", "num_logits_to_keep")
    mlp = dense_mlp(f, bias=f.flag("mlp_bias", default=False))
    norm = Norm(hidden)
    return decoder(f, [Layer((norm, recurrent, attention, norm, mlp))] * depth(f))


NEMOTRON = {"M": "linear_attention", "E": "moe", "*": "full_attention", "-": "mlp", "mamba": "linear_attention"}
"""Nemotron's letters and older spellings of its block types."""


def nemotron_kinds(f: Fields, names: tuple[str, ...], pattern_key: str) -> list[str] | None:
    """Block types by list or by ``hybrid_override_pattern``."""
    kinds = f.sequence(*names, default=None)
    pattern = f.text(pattern_key, default=None)
    if kinds is None:
        kinds = None if pattern is None else list(pattern)
    if kinds is None:
        return None
    named = [NEMOTRON.get(kind, "full_attention" if kind == "attention" else kind) for kind in kinds]
    for kind in named:
        if kind not in ("linear_attention", "full_attention", "moe", "mlp"):
            raise f.error(pattern_key, f"{kind!r} is not understood", "known letters: M * - E")
    return named


@family("nemotron_h")
def nemotron_h(f: Fields) -> Architecture:
    """One sublayer per layer behind its own norm: Mamba-2, attention, dense or MoE; squared ReLU without gates."""
    hidden = hidden_size(f)
    kinds = nemotron_kinds(f, ("layers_block_type", "layer_types"), "hybrid_override_pattern")
    if kinds is None:
        raise f.error("hybrid_override_pattern", "is missing", "give it or layers_block_type")
    if f.integer("num_hidden_layers", default=len(kinds)) != len(kinds):
        raise f.error("num_hidden_layers", f"contradicts the {len(kinds)} entries of the layer pattern", "correct one")
    predicted = nemotron_kinds(f, ("mtp_layers_block_type",), "mtp_hybrid_override_pattern")
    bias = f.flag("mlp_bias", default=False)
    built: dict[str, Operator] = {}
    for kind in {*kinds, *(predicted or ())}:
        if kind == "linear_attention":
            built[kind] = _nemotron_mamba(f, hidden)
        elif kind == "full_attention":
            attention = grouped_attention(f, head_dim=128)
            f.fixed("attention_head_dim", attention.head_dim, "contradicts head_dim, which the class reads")
            built[kind] = attention
        elif kind == "mlp":
            built[kind] = dense_mlp(f, gated=False, bias=bias)
        elif kind in kinds or f.has("n_routed_experts"):
            built[kind] = _nemotron_moe(f, bias)
    known = (
        "mamba",
        "conv",
        "time_step",
        "moe_",
        "n_routed",
        "n_shared",
        "ssm",
        "num_experts",
        "chunk",
        "expand",
        "n_groups",
    )
    f.ignore(*(key for key in f.mapping if key.startswith(known)))
    f.ignore("intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    f.ignore("use_mamba_kernels", "use_conv_bias", "use_bias", "residual_in_fp32", "rescale_prenorm_residual")
    f.ignore(
        "num_logits_to_keep",
        "mlp_hidden_act",
        "sliding_window",
        "attention_bias",
        "num_local_experts",
        "num_query_groups",
    )
    # The class gives attention no biases whatever attention_bias says, and the mixer those of use_bias.
    f.ignore("attention_bias", "mamba_proj_bias")
    untied(f, "transformers' class does not tie them")
    norm = Norm(hidden)
    blocks = tuple(operator for kind in predicted or () for operator in (norm, built[kind]) if kind in built)
    return decoder(
        f,
        [Layer((norm, built[kind])) for kind in kinds],
        prediction=True,
        predicted=Layer(blocks) if blocks else None,
        score_function="sigmoid",
        correction_bias=True,
        activation=f.text("mlp_hidden_act", default="relu2"),
    )


def _nemotron_mamba(f: Fields, hidden: int) -> Mixer:
    return mamba2(
        hidden,
        f.integer("mamba_num_heads"),
        f.integer("mamba_head_dim"),
        f.integer("ssm_state_size"),
        f.integer("n_groups", "mamba_n_groups"),
        f.integer("conv_kernel", "mamba_d_conv", default=4),
        conv_bias=f.flag("use_conv_bias", "mamba_conv_bias", default=True),
        bias=f.flag("use_bias", default=False),
    )


def _nemotron_moe(f: Fields, bias: bool) -> MoE:
    # However many shared experts there are, the class builds one block of this width.
    shared = shared_block(f, f.integer("moe_shared_expert_intermediate_size"), gated=False, bias=bias)
    latent = f.integer("moe_latent_size", default=None)
    return mixture(
        f,
        "moe_intermediate_size",
        shared=shared,
        gated=False,
        score_function="sigmoid",
        expert_input=latent,
        latent_bias=bias and latent is not None,
    )
