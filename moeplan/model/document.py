"""moeplan's own architecture document: a model that has no Hugging Face configuration, in one strict mapping.

Every key but the required ones has a default; an unknown key is an error. Widths are in features.

    architecture: decoder        # required, marks the document
    name: tiny-gpt               # optional, for reports
    hidden_size: 1024            # required
    layers: 12                   # required; decoder layers
    vocabulary: 50304            # required; rows of the embedding
    heads: 16                    # required unless pattern has no attention; query heads
    kv_heads: 16                 # default: heads
    head_dim: 64                 # default: hidden_size / heads
    v_head_dim: 64               # default: head_dim
    ffn: 4096                    # inner width of the dense feed-forward; required if any layer is dense
    gated: false                 # SwiGLU-like (three matrices) rather than plain (two); experts follow it
    activation: gelu             # default: silu if gated, else gelu
    linear_bias: false           # biases on every linear layer (Megatron without --disable-bias-linear)
    qkv_bias: false              # default: linear_bias
    output_bias: false           # attention's output projection; default: linear_bias
    mlp_bias: false              # dense feed-forward; default: linear_bias
    head_bias: false             # a bias over the vocabulary
    norm: layernorm              # layernorm (scale and bias) | rmsnorm; default rmsnorm
    norm_epsilon: 1.0e-5
    qk_norm: null                # null | head (over each head) | full (over all heads)
    position: rope               # rope | learned | none
    learned_positions: 0         # rows of the position table; default: max_sequence_length if position is learned
    max_sequence_length: 4096
    rotary_base: 10000.0
    rotary_percent: 1.0
    rope_scaling: null           # Hugging Face's mapping
    init_std: 0.02
    tied_embeddings: false       # the head shares the embedding's weights
    window: null                 # sliding-window width in tokens ...
    window_layers: null          # ... of these layers: a list of `layers` zeros and ones; default: all of them
    output_gate: false           # the query projection yields a gate of the output's width too (Qwen3-Next)
    sinks: false                 # one learned sink logit per head (GPT-OSS)
    latent_attention:            # multi-head latent attention in place of grouped-query attention
      q_lora_rank: null          # null: queries are projected directly
      kv_lora_rank: 512          # required
      qk_nope_head_dim: 128      # required
      qk_rope_head_dim: 64       # required
      v_head_dim: 128            # required
    moe:
      experts: 8                 # required
      top_k: 2                   # required
      ffn: 4096                  # inner width of one routed expert; default: the document's ffn
      shared_ffn: 0              # total inner width of the shared experts, 0 for none
      shared_gate: false         # a sigmoid gate [1, hidden] on the shared output
      layers: 1                  # frequency (layer i is MoE if i % frequency == 0) or a list of zeros and ones
      score_function: softmax    # softmax | sigmoid
      normalize_scores: null
      expert_bias: false         # biases inside the experts; default: linear_bias
      router_bias: false         # bias on the router's logits
      correction_bias: false     # aux-loss-free balancing bias (a buffer, counts no parameters)
      latent_size: null          # width that experts read and write where it is not hidden_size (latent MoE)
      groups: null               # group-limited routing
      group_top_k: null
      routed_scaling: null
      aux_loss_coefficient: null
    mtp_layers: 0                # multi-token-prediction depths, each with one more layer like the last
    pattern: null                # hybrid models, Megatron's letters, one sublayer each: M mamba, * attention, - dense
                                 # feed-forward, E MoE; one letter per layer; moe.layers, window_layers are unused
    mamba:                       # Mamba-2 mixer of the pattern's M
      heads: 64                  # required
      head_dim: 64               # required
      state: 128                 # required
      groups: 8                  # required
      conv: 4

Without ``pattern`` a layer is norm, attention, norm, feed-forward (dense or MoE).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, cast

from moeplan.errors import nearest
from moeplan.model.architecture import Architecture, Layer, Operator
from moeplan.model.details import ModelDetails
from moeplan.model.families.common import check_groups, prediction_layer
from moeplan.model.fields import MOST_LAYERS, Fields
from moeplan.operators.attention import Attention, LatentAttention
from moeplan.operators.embedding import Embedding, Head
from moeplan.operators.mlp import DenseMLP
from moeplan.operators.moe import MoE
from moeplan.operators.norm import Norm
from moeplan.operators.recurrent import mamba2

PATTERN_LETTERS = "M*-E"


def read_document(mapping: Mapping[str, Any], where: str) -> Architecture:
    """Read an architecture document.

    Raises:
        PlanError: An unknown key, a missing one, or a value that fits no model.
    """
    f = Fields(mapping, where)
    f.text("architecture", choices=("decoder",))
    hidden, depth, vocabulary = f.integer("hidden_size"), f.integer("layers", most=MOST_LAYERS), f.integer("vocabulary")
    norm = Norm(hidden, bias=f.text("norm", default="rmsnorm", choices=("rmsnorm", "layernorm")) == "layernorm")
    attention = _attention(f, hidden)
    moe_section = f.section("moe", default=None)
    moe = None if moe_section is None else _moe(f, moe_section, hidden)
    layers = _layers(f, depth, norm, attention, moe, moe_section)
    longest = f.integer("max_sequence_length", default=None)
    position = f.text("position", default="rope", choices=("rope", "learned", "none"))
    rows = f.integer("learned_positions", default=longest if position == "learned" else 0, least=0)
    if rows is None:
        raise f.error("learned_positions", "is missing", "give it or max_sequence_length")
    if rows and position != "learned":
        raise f.error("learned_positions", f"contradicts position: {position}", "set position: learned")
    mtp = f.integer("mtp_layers", default=0, least=0, most=64)
    result = Architecture(
        name=f.text("name", default="decoder"),
        family="decoder",
        embedding=Embedding(vocabulary, hidden, rows),
        layers=layers,
        final_norm=norm,
        head=Head(vocabulary, hidden, f.flag("tied_embeddings", default=False), f.flag("head_bias", default=False)),
        mtp_layer=prediction_layer(norm, layers[-1]) if mtp else None,
        mtp_layers=mtp,
        max_sequence_length=longest,
        details=_details(f, moe_section, position),
    )
    _finish(f)
    if moe_section is not None:
        _finish(moe_section)
    return result


def _finish(f: Fields) -> None:
    unread = f.unread()
    if unread:
        raise f.error(unread[0], "is not a key of an architecture document", nearest(unread[0], f.read, "remove it"))


def _bias(f: Fields, key: str) -> bool:
    return bool(f.flag(key, default=f.flag("linear_bias", default=False)))


def _attention(f: Fields, hidden: int) -> Attention | LatentAttention | None:
    latent = f.section("latent_attention", default=None)
    pattern = f.text("pattern", default=None)
    if pattern is not None and "*" not in pattern:
        return None
    heads = f.integer("heads")
    if latent is not None:
        f.ignore("kv_heads", "head_dim")
        result = LatentAttention(
            hidden=hidden,
            heads=heads,
            q_lora_rank=latent.integer("q_lora_rank", default=None),
            kv_lora_rank=latent.integer("kv_lora_rank"),
            qk_nope_head_dim=latent.integer("qk_nope_head_dim"),
            qk_rope_head_dim=latent.integer("qk_rope_head_dim", least=0),
            v_head_dim=latent.integer("v_head_dim"),
            attention_bias=_bias(f, "qkv_bias"),
        )
        _finish(latent)
        return result
    kv_heads = f.integer("kv_heads", default=None) or heads
    check_groups(f, heads, kv_heads)
    head_dim = f.integer("head_dim", default=None) or hidden // heads
    if not head_dim:
        raise f.error("heads", f"{heads} heads do not fit a hidden size of {hidden}")
    return Attention(
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        v_head_dim=f.integer("v_head_dim", default=None) or head_dim,
        window=f.integer("window", default=None),
        qkv_bias=_bias(f, "qkv_bias"),
        output_bias=_bias(f, "output_bias"),
        qk_norm=cast(Literal["head", "full"] | None, f.text("qk_norm", default=None, choices=("head", "full"))),
        sinks=f.flag("sinks", default=False),
        output_gate=f.flag("output_gate", default=False),
    )


def _moe(f: Fields, section: Fields, hidden: int) -> MoE:
    gated = f.flag("gated", default=False)
    experts = section.integer("experts")
    shared = section.integer("shared_ffn", default=0, least=0)
    bias = section.flag("expert_bias", default=f.flag("linear_bias", default=False))
    inner = section.integer("ffn", default=None) or f.integer("ffn")
    return MoE(
        hidden=hidden,
        experts=experts,
        top_k=section.integer("top_k", most=experts),
        expert_ffn=inner,
        shared=DenseMLP(hidden, shared, gated, component="shared_experts") if shared else None,
        shared_gate=section.flag("shared_gate", default=False),
        gated=gated,
        expert_bias=bias,
        router_bias=section.flag("router_bias", default=False),
        score_function=cast(
            Literal["softmax", "sigmoid"],
            section.text("score_function", default="softmax", choices=("softmax", "sigmoid")),
        ),
        expert_input=section.integer("latent_size", default=None),
    )


def _layers(
    f: Fields,
    depth: int,
    norm: Norm,
    attention: Attention | LatentAttention | None,
    moe: MoE | None,
    moe_section: Fields | None,
) -> tuple[Layer, ...]:
    def dense() -> DenseMLP:
        return DenseMLP(norm.width, f.integer("ffn"), f.flag("gated", default=False), _bias(f, "mlp_bias"))

    pattern = f.text("pattern", default=None)
    if pattern is not None:
        return _hybrid(f, depth, pattern, norm, {"*": attention, "E": moe, "-": dense})
    if attention is None:
        raise f.error("heads", "is missing", "add it")
    placed = _placement(moe_section, depth) if moe_section is not None else [False] * depth
    spans = [attention] * depth
    marks = f.integers("window_layers", default=None, length=depth)
    if marks is not None and isinstance(attention, Attention):
        spans = [replace(attention, window=attention.window if mark else None) for mark in marks]
    plain = None if all(placed) else dense()
    f.ignore("ffn", "mlp_bias", "gated")
    # One of the two is there wherever it is asked for: MoE where placed, else the dense block.
    return tuple(
        Layer((norm, span, norm, cast(Operator, moe if is_moe else plain)))
        for span, is_moe in zip(spans, placed, strict=True)
    )


def _placement(section: Fields, depth: int) -> list[bool]:
    value = section.raw("layers", default=1)
    if isinstance(value, list):
        return [bool(mark) for mark in section.integers("layers", length=depth)]
    frequency = section.check_integer("layers", value)
    return [index % frequency == 0 for index in range(depth)]


def _hybrid(f: Fields, depth: int, pattern: str, norm: Norm, blocks: dict[str, Any]) -> tuple[Layer, ...]:
    if len(pattern) != depth:
        raise f.error("pattern", f"has {len(pattern)} letters", f"give one for each of the {depth} layers")
    found: dict[str, Operator] = {}
    for letter in dict.fromkeys(pattern):
        if letter not in PATTERN_LETTERS:
            raise f.error("pattern", f"{letter!r} is not understood", f"known letters: {' '.join(PATTERN_LETTERS)}")
        if letter == "M":
            section = f.section("mamba")
            found["M"] = mamba2(
                norm.width,
                section.integer("heads"),
                section.integer("head_dim"),
                section.integer("state"),
                section.integer("groups"),
                conv=section.integer("conv", default=4),
            )
            _finish(section)
        elif letter == "-":
            found["-"] = blocks["-"]()
        elif blocks[letter] is None:
            raise f.error("pattern", "has MoE layers", "add the moe section")
        else:
            found[letter] = blocks[letter]
    f.ignore("ffn", "mlp_bias", "gated", "heads", "kv_heads", "head_dim", "mamba")
    return tuple(Layer((norm, found[letter])) for letter in pattern)


def _details(f: Fields, moe: Fields | None, position: str) -> ModelDetails:
    gated = f.flag("gated", default=False)
    scaling = f.raw("rope_scaling", default=None)
    routing: dict[str, Any] = {}
    if moe is not None:
        moe.ignore("layers")
        routing = {
            "score_function": moe.text("score_function", default="softmax"),
            "normalize_scores": moe.flag("normalize_scores", default=None),
            "router_groups": moe.integer("groups", default=None),
            "router_group_top_k": moe.integer("group_top_k", default=None),
            "routed_scaling": moe.number("routed_scaling", default=None),
            "aux_loss_coefficient": moe.number("aux_loss_coefficient", default=None),
            "correction_bias": moe.flag("correction_bias", default=False),
        }
    return ModelDetails(
        rotary_base=f.number("rotary_base", default=None, least=0),
        rotary_percent=f.number("rotary_percent", default=None, least=0),
        rope_scaling=scaling if isinstance(scaling, Mapping) else None,
        position=cast(Literal["rope", "learned", "none"], position),
        norm_epsilon=f.number("norm_epsilon", default=None, least=0),
        activation=f.text("activation", default="silu" if gated else "gelu"),
        init_std=f.number("init_std", default=None, least=0),
        raw=f.mapping,
        **routing,
    )
