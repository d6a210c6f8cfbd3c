"""Dense decoder families: one table of what each class in transformers 5.23 builds, and one function that reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from moeplan.model.architecture import Architecture, Layer, Operator
from moeplan.model.families.common import (
    FAMILIES,
    REQUIRED,
    Bias,
    decoder,
    dense_mlp,
    depth,
    grouped_attention,
    hidden_size,
    windows,
)
from moeplan.model.families.softmax_moe import qwen_windows
from moeplan.model.fields import Fields
from moeplan.operators.attention import Attention
from moeplan.operators.norm import Norm

Layout = Literal["pre", "post", "sandwich", "one_norm"]
Windows = Callable[[Fields, int], list[int | None]]


@dataclass(frozen=True)
class Dense:
    """What a dense family builds.

    Attributes:
        bias: Attention projections with biases where ``bias_key`` says so, or always if that key is empty.
        bias_key: The flag of the attention's biases.
        bias_default: Its default.
        output_bias_key: A flag of the output projection's own bias.
        mlp_bias_key: The flag of the feed-forward's biases; empty for never, ``always`` for always.
        mlp_bias_default: Its default.
        head_bias: The output head has a bias.
        gated: The feed-forward is gated.
        layer_norm: Norms are LayerNorms with bias; ``rms`` for a scale alone, ``none`` for none.
        qk_norm: Norms over queries and keys.
        qk_norm_key: The flag that turns them on; they are always there if it is empty.
        qk_norm_default: Its default.
        qk_norm_bias: Those norms have biases.
        layout: ``pre``; ``post`` (norms behind the blocks); ``sandwich`` (both); ``one_norm`` before attention and
            feed-forward side by side.
        layout_key: A flag that, when on, makes the layout ``layout_if``.
        layout_default: Its default.
        layout_if: See ``layout_key``.
        kv_heads: Default of the key/value heads.
        head_dim: Default of the head width.
        tied: Default of tied embeddings.
        windows: The rule of sliding windows.
        sinks: Sink logits.
        whole_heads: The heads together must be as wide as the hidden size.
        ignore: Keys that change no weight.
    """

    bias: Bias = "none"
    bias_key: str = ""
    bias_default: bool = False
    output_bias_key: str = ""
    mlp_bias_key: str = ""
    mlp_bias_default: bool = False
    head_bias: bool = False
    gated: bool = True
    layer_norm: Literal["rms", "bias", "none"] = "rms"
    qk_norm: Literal["head", "full"] | None = None
    qk_norm_key: str = ""
    qk_norm_default: bool = False
    qk_norm_bias: bool = False
    layout: Layout = "pre"
    layout_key: str = ""
    layout_default: bool = False
    layout_if: Layout = "pre"
    kv_heads: object = "heads"
    head_dim: object = "split"
    tied: bool = False
    windows: Windows | None = None
    sinks: bool = False
    whole_heads: bool = False
    ignore: tuple[str, ...] = ()


def _flag(f: Fields, key: str, default: bool) -> bool:
    return bool(f.flag(key, default=default)) if key and key != "always" else key == "always"


def _attention(f: Fields, rule: Dense) -> Attention:
    biased = rule.bias != "none" and (not rule.bias_key or _flag(f, rule.bias_key, rule.bias_default))
    normed = rule.qk_norm if not rule.qk_norm_key or _flag(f, rule.qk_norm_key, rule.qk_norm_default) else None
    attention = grouped_attention(
        f,
        kv_heads=rule.kv_heads,
        head_dim=rule.head_dim,
        bias=rule.bias if biased else "none",
        qk_norm=normed,
        sinks=rule.sinks,
        qk_norm_bias=rule.qk_norm_bias,
    )
    if rule.output_bias_key:
        attention = replace(attention, output_bias=_flag(f, rule.output_bias_key, False))
    return attention


def read_dense(f: Fields, rule: Dense) -> Architecture:
    """Read a dense family by its rule."""
    layers, hidden = depth(f), hidden_size(f)
    norm = Norm(hidden, bias=rule.layer_norm == "bias", scale=rule.layer_norm != "none")
    mlp = dense_mlp(f, gated=rule.gated, bias=_flag(f, rule.mlp_bias_key, rule.mlp_bias_default))
    base = _attention(f, rule)
    window = f.integer("sliding_window", default=None) if rule.windows is None else None
    spans = [window] * layers if rule.windows is None else rule.windows(f, layers)
    f.ignore(*rule.ignore)
    layout = rule.layout_if if _flag(f, rule.layout_key, rule.layout_default) else rule.layout
    if rule.whole_heads and base.heads * base.head_dim != hidden:
        raise f.error("head_dim", f"{base.head_dim} times {base.heads} heads is not the hidden size {hidden}")
    built = []
    for span in spans:
        attention = replace(base, window=span)
        order: dict[str, tuple[Operator, ...]] = {
            "pre": (norm, attention, norm, mlp),
            "post": (attention, norm, mlp, norm),
            "sandwich": (norm, attention, norm, norm, mlp, norm),
            "one_norm": (norm, attention, mlp),
        }
        built.append(Layer(order[layout]))
    return decoder(f, built, norm=norm, tied=rule.tied, head_bias=rule.head_bias)


def every(count: int, key: str = "sliding_window_pattern") -> Windows:
    """Windows on all but every ``count``-th layer; ``key`` may override the count."""

    def rule(f: Fields, layers: int) -> list[int | None]:
        step = f.integer(key, "_sliding_window_pattern", default=count)
        return windows(f, layers, lambda index: (index + 1) % step != 0)

    return rule


def listed(f: Fields, layers: int) -> list[int | None]:
    """Windows where ``layer_types`` lists them; all layers where it does not."""
    return windows(f, layers, lambda index: True)


def qwen(f: Fields, layers: int) -> list[int | None]:
    """Qwen's switch."""
    return qwen_windows(f, layers, "after")


def smollm(f: Fields, layers: int) -> list[int | None]:
    """Windows on layers without rotary embedding, if switched on."""
    step = f.integer("no_rope_layer_interval", default=4)
    rope = f.integers("no_rope_layers", default=[int((i + 1) % step != 0) for i in range(layers)], length=layers)
    if not f.flag("use_sliding_window", default=False):
        f.ignore("sliding_window", "layer_types", "max_window_layers")
        return [None] * layers
    return windows(f, layers, lambda index: not rope[index])


SOFTCAPS = (
    "cache_implementation",
    "sliding_window_size",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "query_pre_attn_scalar",
    "use_bidirectional_attention",
)
LLAMA = Dense(bias="all", bias_key="attention_bias", mlp_bias_key="mlp_bias")
GLM = Dense(bias="qkv", bias_key="attention_bias", bias_default=True, kv_heads=REQUIRED, head_dim=128)
COHERE = Dense(bias="all", bias_key="attention_bias", layout="one_norm", tied=True, ignore=("logit_scale",))
COMMAND_R = replace(COHERE, qk_norm="full", qk_norm_key="use_qk_norm")
OLMO = Dense(bias="all", bias_key="attention_bias")
GEMMA = Dense(bias="all", bias_key="attention_bias", kv_heads=REQUIRED, head_dim=256, tied=True, ignore=SOFTCAPS)

DENSE: dict[str, Dense] = {
    "llama": LLAMA,
    "mistral": Dense(kv_heads=REQUIRED),
    "ministral": Dense(kv_heads=REQUIRED, windows=listed),
    "ministral3": Dense(kv_heads=REQUIRED, head_dim=REQUIRED),
    "qwen2": Dense(bias="qkv", kv_heads=REQUIRED, windows=qwen),
    "qwen3": Dense(
        bias="all", bias_key="attention_bias", qk_norm="head", kv_heads=REQUIRED, head_dim=128, windows=qwen
    ),
    "phi3": Dense(ignore=("partial_rotary_factor",)),
    "olmo": replace(OLMO, layer_norm="none"),
    "olmo2": replace(OLMO, qk_norm="full", layout="post"),
    "olmo3": replace(OLMO, qk_norm="full", layout="post", windows=every(4)),
    "granite": LLAMA,
    "granite_swa": replace(
        LLAMA, kv_heads=REQUIRED, sinks=True, tied=True, windows=every(4), ignore=("layer_rope_theta",)
    ),
    "cohere": COMMAND_R,
    "cohere2": replace(
        COHERE, windows=every(4), ignore=("logit_scale", "cache_implementation", "order_of_interleaved_layers")
    ),
    "stablelm": Dense(
        bias="qkv",
        bias_key="use_qkv_bias",
        layer_norm="bias",
        kv_heads=REQUIRED,
        qk_norm="full",
        qk_norm_key="qk_layernorm",
        layout_key="use_parallel_residual",
        layout_if="one_norm",
    ),
    "starcoder2": Dense(
        bias="all",
        bias_key="use_bias",
        bias_default=True,
        mlp_bias_key="use_bias",
        mlp_bias_default=True,
        layer_norm="bias",
        kv_heads=REQUIRED,
        tied=True,
        gated=False,
        ignore=("norm_epsilon", "norm_type", "mlp_type"),
    ),
    "glm": GLM,
    "glm4": replace(GLM, layout="sandwich"),
    "ernie4_5": Dense(
        bias="all", bias_key="use_bias", mlp_bias_key="use_bias", kv_heads=REQUIRED, head_dim=128, tied=True
    ),
    "exaone4": Dense(qk_norm="head", layout="post", kv_heads=REQUIRED, windows=every(4)),
    "seed_oss": Dense(
        bias="qkv",
        bias_key="attention_bias",
        bias_default=True,
        output_bias_key="attention_out_bias",
        mlp_bias_key="mlp_bias",
        kv_heads=REQUIRED,
        head_dim=128,
    ),
    "smollm3": Dense(
        bias="all", bias_key="attention_bias", mlp_bias_key="mlp_bias", kv_heads=REQUIRED, tied=True, windows=smollm
    ),
    "helium": Dense(
        bias="qkv",
        bias_key="attention_bias",
        mlp_bias_key="mlp_bias",
        kv_heads=REQUIRED,
        head_dim=128,
        whole_heads=True,
    ),
    "arcee": replace(LLAMA, gated=False),
    "nemotron": replace(LLAMA, gated=False, layer_norm="bias"),
    "jais2": Dense(
        bias="all",
        bias_key="attention_bias",
        bias_default=True,
        mlp_bias_key="mlp_bias",
        mlp_bias_default=True,
        layer_norm="bias",
        gated=False,
    ),
    "hunyuan_v1_dense": replace(OLMO, qk_norm="head"),
    "cwm": Dense(kv_heads=REQUIRED, head_dim=128, windows=listed, mlp_bias_key="mlp_bias"),
    "iquestcoder": replace(LLAMA, kv_heads=REQUIRED, head_dim=REQUIRED),
    "hyperclovax": replace(LLAMA, layout_key="use_post_norm", layout_default=True, layout_if="sandwich"),
    "gemma": GEMMA,
    "gemma2": replace(GEMMA, layout="sandwich", windows=every(2)),
    "gemma3_text": replace(GEMMA, layout="sandwich", qk_norm="head", windows=every(6)),
    "vaultgemma": replace(GEMMA, windows=every(2)),
    "nanochat": replace(OLMO, gated=False, layer_norm="none", ignore=("final_logit_softcapping",)),
    "persimmon": Dense(
        bias="all",
        mlp_bias_key="always",
        layer_norm="bias",
        gated=False,
        qk_norm="head",
        qk_norm_key="qk_layernorm",
        qk_norm_default=True,
        qk_norm_bias=True,
    ),
    "phi": Dense(
        bias="all",
        mlp_bias_key="always",
        layer_norm="bias",
        gated=False,
        layout="one_norm",
        head_bias=True,
        qk_norm="head",
        qk_norm_key="qk_layernorm",
        qk_norm_bias=True,
    ),
    "gpt_neox": Dense(
        bias="all",
        bias_key="attention_bias",
        bias_default=True,
        mlp_bias_key="always",
        layer_norm="bias",
        gated=False,
        ignore=("use_parallel_residual",),
    ),
}
"""``model_type`` -> what its class builds."""


def _reader(rule: Dense) -> Callable[[Fields], Architecture]:
    return lambda f: read_dense(f, rule)


FAMILIES.update({name: _reader(rule) for name, rule in DENSE.items()})
