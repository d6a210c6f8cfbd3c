"""The blocks that families of Hugging Face configurations are read with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

from moeplan.model.architecture import Architecture, Layer, Operator
from moeplan.model.details import ModelDetails
from moeplan.model.fields import LARGEST, MOST_LAYERS, Fields
from moeplan.operators.attention import Attention, LatentAttention
from moeplan.operators.embedding import Embedding, Head, TokenPredictionProjection
from moeplan.operators.mlp import DenseMLP
from moeplan.operators.moe import MoE
from moeplan.operators.norm import Norm

Reader = Callable[[Fields], Architecture]
FAMILIES: dict[str, Reader] = {}
"""Readers registered so far, see ``families.FAMILIES``."""

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""Spellings of the number of routed experts: a family declares one and transformers 5 may save another."""
TOP_K = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k")
MTP_LAYERS = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers")
LEGACY_LAYER_TYPES = {"attention": "full_attention", "mamba": "linear_attention"}
"""Older spellings of ``layer_types``, as transformers' ``remap_legacy_layer_types`` reads them."""
REQUIRED = object()
Bias = Literal["none", "qkv", "all"]
"""Attention projections with biases."""


def family(*names: str) -> Callable[[Reader], Reader]:
    """Register a reader for one or more values of ``model_type``."""

    def register(reader: Reader) -> Reader:
        FAMILIES.update(dict.fromkeys(names, reader))
        return reader

    return register


def hidden_size(f: Fields) -> int:
    """Width of the residual stream."""
    return int(f.integer("hidden_size", "n_embd"))


def depth(f: Fields) -> int:
    """Number of decoder layers."""
    return int(f.integer("num_hidden_layers", "n_layer", most=MOST_LAYERS))


def grouped_attention(
    f: Fields,
    *,
    kv_heads: object = REQUIRED,
    head_dim: object = "split",
    bias: Bias = "none",
    **features: Any,
) -> Attention:
    """Grouped-query attention from the usual keys.

    Args:
        f: The configuration.
        kv_heads: Default of ``num_key_value_heads``: ``REQUIRED``, or ``"heads"`` where the family falls back to them.
        head_dim: Default of ``head_dim``: ``"split"`` for hidden / heads, a number, or ``REQUIRED``.
        bias: Which projections carry biases.
        features: Further fields of :class:`Attention`.
    """
    hidden = hidden_size(f)
    heads = f.integer("num_attention_heads")
    required: Any = {} if kv_heads is REQUIRED else {"default": None}
    given = f.integer("num_key_value_heads", **required)
    required = {} if head_dim is REQUIRED else {"default": None}
    width = f.integer("head_dim", **required)
    if width is None:
        # An explicit null splits the hidden size whatever the family's default is, as the classes read it.
        width = hidden // heads if head_dim == "split" or "head_dim" in f.mapping else head_dim
    if width < 1:
        raise f.error("num_attention_heads", f"{heads} heads do not fit a hidden size of {hidden}")
    attention = Attention(
        hidden=hidden,
        heads=heads,
        kv_heads=given or heads,
        head_dim=width,
        v_head_dim=width,
        qkv_bias=bias != "none",
        output_bias=bias == "all",
    )
    check_groups(f, attention.heads, attention.kv_heads)
    return replace(attention, **features)


def biases(f: Fields, *, default: bool = False, on: Bias = "all", key: str = "attention_bias") -> Bias:
    """Which projections carry biases where a flag says so."""
    return on if f.flag(key, default=default) else "none"


def untied(f: Fields, why: str) -> None:
    """Refuse tied embeddings for families whose class does not tie them."""
    if f.flag("tie_word_embeddings", default=False):
        raise f.error("tie_word_embeddings", why, "set it to false")


def check_groups(f: Fields, heads: int, kv_heads: int) -> None:
    """Query heads share key/value heads in equal groups."""
    if heads % kv_heads:
        raise f.error("num_key_value_heads", f"{kv_heads} does not divide num_attention_heads = {heads}")


def latent_attention(f: Fields, *, stated: bool = True, saved: bool = False, **features: Any) -> LatentAttention:
    """Multi-head latent attention. ``head_dim`` says nothing (it is the rotary width), nor do the key/value heads.

    ``q_lora_rank`` is null where queries are projected directly. Unless ``stated``, it may be left out for that, as the
    family's class defaults to null; and so it may in a file that transformers saved (told by ``qk_head_dim``, which no
    other file holds) and that has since lost its nulls.
    """
    heads = f.integer("num_attention_heads")
    f.ignore("num_key_value_heads", "head_dim", "qk_head_dim")
    if stated and "q_lora_rank" not in f.mapping and not (saved and "qk_head_dim" in f.mapping):
        raise f.error("q_lora_rank", "is missing", "add it (null where queries are projected directly)")
    return LatentAttention(
        hidden=hidden_size(f),
        heads=heads,
        q_lora_rank=f.integer("q_lora_rank", default=None),
        kv_lora_rank=f.integer("kv_lora_rank"),
        qk_nope_head_dim=f.integer("qk_nope_head_dim"),
        qk_rope_head_dim=f.integer("qk_rope_head_dim"),
        v_head_dim=f.integer("v_head_dim"),
        attention_bias=f.flag("attention_bias", default=False),
        **features,
    )


def dense_mlp(f: Fields, *names: str, **features: Any) -> DenseMLP:
    """A gated feed-forward block whose width stands under one of ``names`` (default ``intermediate_size``)."""
    return DenseMLP(hidden_size(f), f.integer(*(names or ("intermediate_size",))), **features)


def shared_block(f: Fields, width: int, **features: Any) -> DenseMLP | None:
    """The shared experts as one fused block of ``width``, or None for width 0."""
    return DenseMLP(hidden_size(f), width, component="shared_experts", **features) if width else None


def mixture(f: Fields, *width: str, **features: Any) -> MoE:
    """A MoE block whose expert width stands under one of ``width``."""
    experts = f.integer(*EXPERTS)
    top_k = f.integer(*TOP_K)
    if top_k > experts + features.get("identity_experts", 0):
        raise f.error(TOP_K[0], f"{top_k} is more than the {experts} experts")
    return MoE(hidden_size(f), experts, top_k, expert_ffn=f.integer(*width), **features)


def sparse_after(f: Fields, layers: int, *names: str, default: Any = None) -> list[bool]:
    """MoE layers by ``mlp_layer_types`` (list of ``dense``/``sparse``), or all but a number of first layers."""
    kinds = f.sequence("mlp_layer_types", default=None, length=layers)
    frequency = f.raw("moe_layer_freq", default=1)
    if isinstance(frequency, list):
        marks = f.integers("moe_layer_freq", length=layers)
        kinds = kinds or ["sparse" if mark else "dense" for mark in marks]
        if [kind == "sparse" for kind in kinds] != [bool(mark) for mark in marks]:
            raise f.error("moe_layer_freq", "contradicts mlp_layer_types", "keep one of them")
    elif frequency != 1:
        raise f.error("moe_layer_freq", f"{frequency!r} is read by no class of this family", "only 1 is understood")
    extra = {} if default is None else {"default": default}
    if kinds is not None:
        f.ignore(*names)
        for kind in kinds:
            if kind not in ("dense", "sparse"):
                raise f.error("mlp_layer_types", f"{kind!r} is not understood", "give 'dense' or 'sparse'")
        return [kind == "sparse" for kind in kinds]
    first = f.integer(*names, least=0, **extra)
    return [index >= first for index in range(layers)]


def layer_types(f: Fields, layers: int, known: Sequence[str], default: Callable[[int], str] | None = None) -> list[str]:
    """The mixer of every layer by ``layer_types``, each one of ``known``."""
    kinds = f.sequence("layer_types", "layers_block_type", default=None, length=layers)
    if kinds is None:
        if default is None:
            raise f.error("layer_types", "is missing", f"give one of {', '.join(known)} for each layer")
        return [default(index) for index in range(layers)]
    kinds = [LEGACY_LAYER_TYPES.get(kind, kind) if isinstance(kind, str) else kind for kind in kinds]
    for kind in kinds:
        if kind not in known:
            raise f.error("layer_types", f"{kind!r} is not understood", f"known here: {', '.join(known)}")
    return [str(kind) for kind in kinds]


def windows(f: Fields, layers: int, default: Callable[[int], bool] | None = None, **options: Any) -> list[int | None]:
    """The window of every layer: ``sliding_window`` where ``layer_types`` (or the default rule) says sliding."""
    width = f.integer("sliding_window", default=None)
    names = ("full_attention", "sliding_attention", *options.get("also", ()))
    rule = default or (lambda index: False)
    kinds = layer_types(f, layers, names, lambda index: names[rule(index)])
    return [width if kind == "sliding_attention" else None for kind in kinds]


def plain_layer(norm: Norm, mixer: Operator, feed_forward: Operator) -> Layer:
    """Pre-norm: norm, mixer, norm, feed-forward."""
    return Layer((norm, mixer, norm, feed_forward))


def prediction_layer(norm: Norm, layer: Layer) -> Layer:
    """One multi-token-prediction depth: projection with two norms, a whole layer, a final norm (3h + 2h^2 + layer)."""
    return Layer((TokenPredictionProjection(norm.width), *layer.operators, norm))


def decoder(
    f: Fields,
    layers: Sequence[Layer],
    *,
    norm: Norm | None = None,
    tied: bool = False,
    head_bias: bool = False,
    positions: int = 0,
    prediction: bool = False,
    predicted: Layer | None = None,
    **facts: Any,
) -> Architecture:
    """Put a decoder together.

    Args:
        f: The configuration.
        layers: The decoder layers.
        norm: The final norm; RMSNorm over the hidden size by default.
        tied: The family's default of ``tie_word_embeddings``.
        head_bias: The head has a bias.
        positions: Learned positions.
        prediction: The family knows multi-token prediction: read its number.
        predicted: The layer of such a depth; the last decoder layer by default.
        facts: Fields of :class:`ModelDetails` that the usual keys do not give.
    """
    hidden = hidden_size(f)
    vocabulary = f.integer("vocab_size")
    final = norm or Norm(hidden)
    mtp = f.integer(*MTP_LAYERS, default=0, least=0, most=64) if prediction else 0
    return Architecture(
        name="",
        family="",
        embedding=Embedding(vocabulary, hidden, positions),
        layers=tuple(layers),
        final_norm=final,
        head=Head(vocabulary, hidden, tied=f.flag("tie_word_embeddings", default=tied), bias=head_bias),
        mtp_layer=prediction_layer(final, predicted or layers[-1]) if mtp else None,
        mtp_layers=mtp,
        max_sequence_length=f.integer("max_position_embeddings", "n_positions", default=None, most=LARGEST),
        details=details(f, **facts),
    )


def details(f: Fields, **facts: Any) -> ModelDetails:
    """What launch files need, from the usual keys."""
    rope = f.section("rope_parameters", default=None)
    nested = rope is not None and any(isinstance(value, dict) for value in rope.mapping.values())
    if rope is not None and nested:
        # One mapping for each kind of layer (gemma3): the full-attention one is the model's.
        rope = rope.section("full_attention", default=None)
    scaling = f.raw("rope_scaling", default=None)
    if rope is not None and rope.mapping.get("rope_type", "default") != "default":
        scaling = {key: value for key, value in rope.mapping.items() if key != "rope_theta"}
    base = f.number("rope_theta", default=None, least=0)
    percent = f.number("partial_rotary_factor", "rotary_pct", default=None, least=0)
    if rope is not None:
        base = rope.number("rope_theta", default=base, least=0)
        percent = rope.number("partial_rotary_factor", default=percent, least=0)
    found: dict[str, Any] = {
        "rotary_base": base,
        "rotary_percent": percent,
        "rope_scaling": scaling if isinstance(scaling, dict) else None,
        "norm_epsilon": f.number("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", default=None),
        "activation": f.text("hidden_act", "activation_function", "hidden_activation", default=None),
        "init_std": f.number("initializer_range", default=None, least=0),
        "normalize_scores": f.flag("norm_topk_prob", "moe_renormalize", default=None),
        "router_groups": f.integer("n_group", "num_expert_group", default=None),
        "router_group_top_k": f.integer("topk_group", default=None),
        "routed_scaling": f.number("routed_scaling_factor", "router_scaling_factor", default=None),
        "aux_loss_coefficient": f.number("router_aux_loss_coef", "aux_loss_alpha", default=None),
        "attention_multiplier": f.number("attention_multiplier", default=None),
        "embedding_multiplier": f.number("embedding_multiplier", default=None),
        "residual_multiplier": f.number("residual_multiplier", default=None),
        "logits_scaling": f.number("logits_scaling", default=None),
        "raw": f.mapping,
    }
    return ModelDetails(**(found | facts))
