"""Decoders from before Llama's conventions: GPT-2 and its kin, and pure state-space models."""

from __future__ import annotations

import math

from moeplan.model.architecture import Architecture, Layer
from moeplan.model.families.common import decoder, depth, family, hidden_size
from moeplan.model.fields import MOST_LAYERS, Fields
from moeplan.operators.attention import Attention
from moeplan.operators.mlp import DenseMLP
from moeplan.operators.norm import Norm
from moeplan.operators.recurrent import mamba, mamba2

SCAN_KEYS = ("rescale_prenorm_residual", "residual_in_fp32", "use_associative_scan", "use_mambapy", "mixer_rms_eps")


def multi_head(
    f: Fields, heads: int, *, kv_heads: int | None = None, qkv: bool = True, output: bool = True
) -> Attention:
    """Attention whose heads share the hidden size equally."""
    hidden = hidden_size(f)
    if hidden % heads:
        raise f.error("n_head", f"{heads} heads do not divide the hidden size {hidden}")
    width = hidden // heads
    return Attention(hidden, heads, kv_heads or heads, width, width, qkv_bias=qkv, output_bias=output)


@family("gpt2", "gpt_bigcode")
def gpt2(f: Fields) -> Architecture:
    """Learned positions, LayerNorm and biases everywhere, tied embeddings; BigCode shares one key/value head."""
    hidden = hidden_size(f)
    norm = Norm(hidden, bias=True)
    heads = f.integer("n_head", "num_attention_heads")
    shared = f.mapping.get("model_type") == "gpt_bigcode" and f.flag("multi_query", default=True)
    kv_heads = 1 if shared else heads
    if f.integer("num_key_value_heads", default=kv_heads) != kv_heads:
        raise f.error("num_key_value_heads", f"contradicts multi_query, which means {kv_heads}", "remove it")
    mlp = DenseMLP(hidden, f.integer("n_inner", default=None) or 4 * hidden, gated=False, bias=True)
    f.ignore(*(key for key in f.mapping if key.startswith(("summary_", "scale_attn", "reorder_", "attention_softmax"))))
    f.ignore("scale_attention_softmax_in_fp32", "inference_runner", "validate_runner_input", "pre_allocate_kv_cache")
    layer = Layer((norm, multi_head(f, heads, kv_heads=kv_heads), norm, mlp))
    positions = f.integer("n_positions", "max_position_embeddings")
    return decoder(f, [layer] * depth(f), norm=norm, tied=True, positions=positions, position="learned")


@family("gptj", "codegen")
def gptj(f: Fields) -> Architecture:
    """One norm before attention without biases and feed-forward with biases, side by side; a bias on the head."""
    hidden = hidden_size(f)
    norm = Norm(hidden, bias=True)
    attention = multi_head(f, f.integer("n_head", "num_attention_heads"), qkv=False, output=False)
    mlp = DenseMLP(hidden, f.integer("n_inner", default=None) or 4 * hidden, gated=False, bias=True)
    f.ignore("n_ctx", "scale_attn_weights", *(key for key in f.mapping if key.startswith("summary_")))
    layers = [Layer((norm, attention, mlp))] * depth(f)
    return decoder(f, layers, norm=norm, head_bias=True)


@family("bloom")
def bloom(f: Fields) -> Architecture:
    """GPT-2's block with ALiBi in place of positions, and a norm on the embedding."""
    hidden = hidden_size(f)
    norm = Norm(hidden, bias=True)
    mlp = DenseMLP(hidden, 4 * hidden, gated=False, bias=True)
    layer = Layer((norm, multi_head(f, f.integer("n_head", "num_attention_heads")), norm, mlp))
    f.ignore("apply_residual_connection_post_layernorm", "slow_but_exact", "unk_token_id", "offset_alibi")
    f.ignore(
        "skip_bias_add",
        "skip_bias_add_qkv",
        "attention_softmax_in_fp32",
        "masked_softmax_fusion",
        "bias_dropout_fusion",
    )
    layers = [layer] * depth(f)
    layers[0] = Layer((norm, *layer.operators))
    return decoder(f, layers, norm=norm, tied=True, position="alibi")


@family("opt")
def opt(f: Fields) -> Architecture:
    """Learned positions with two rows for padding; LayerNorm before the blocks."""
    hidden = hidden_size(f)
    for key, value in (("word_embed_proj_dim", hidden), ("do_layer_norm_before", True), ("enable_bias", True)):
        f.fixed(key, value, "is not understood for this family")
    f.fixed("layer_norm_elementwise_affine", True, "is not understood for this family")
    f.fixed("_remove_final_layer_norm", False, "is not understood for this family")
    norm = Norm(hidden, bias=True)
    mlp = DenseMLP(hidden, f.integer("ffn_dim"), gated=False, bias=True)
    layer = Layer((norm, multi_head(f, f.integer("num_attention_heads")), norm, mlp))
    f.ignore("layerdrop")
    positions = f.integer("max_position_embeddings") + 2
    return decoder(f, [layer] * depth(f), norm=norm, tied=True, positions=positions, position="learned")


@family("mamba", "falcon_mamba")
def mamba_model(f: Fields) -> Architecture:
    """Nothing but Mamba-1 layers, each behind a norm."""
    hidden = hidden_size(f)
    inner = f.integer("expand", default=2) * hidden
    if f.integer("intermediate_size", "d_inner", default=inner) != inner:
        raise f.error("intermediate_size", f"is not expand * hidden_size = {inner}", "remove it")
    rank = f.raw("time_step_rank", default="auto")
    mixer = mamba(
        hidden,
        inner,
        f.integer("state_size"),
        f.integer("conv_kernel", default=4),
        math.ceil(hidden / 16) if rank == "auto" else f.check_integer("time_step_rank", rank),
        conv_bias=f.flag("use_conv_bias", default=True),
        bias=f.flag("use_bias", default=False),
    )
    f.ignore(*SCAN_KEYS, *(key for key in f.mapping if key.startswith("time_step_")))
    layers = f.integer("num_hidden_layers", "n_layer", most=MOST_LAYERS)
    norm = Norm(hidden)
    return decoder(f, [Layer((norm, mixer))] * layers, tied=True, position="none")


@family("mamba2")
def mamba2_model(f: Fields) -> Architecture:
    """Nothing but Mamba-2 layers, each behind a norm."""
    hidden = hidden_size(f)
    heads, width = f.integer("num_heads"), f.integer("head_dim")
    inner = f.integer("expand", default=2) * hidden
    if heads * width != inner:
        raise f.error("num_heads", f"{heads} heads of {width} are not expand * hidden_size = {inner}")
    mixer = mamba2(
        hidden,
        heads,
        width,
        f.integer("state_size"),
        f.integer("n_groups"),
        f.integer("conv_kernel", default=4),
        conv_bias=f.flag("use_conv_bias", default=True),
        bias=f.flag("use_bias", default=False),
    )
    f.ignore(*SCAN_KEYS, "chunk_size", "rms_norm", *(key for key in f.mapping if key.startswith("time_step_")))
    norm = Norm(hidden)
    return decoder(f, [Layer((norm, mixer))] * depth(f), position="none")
