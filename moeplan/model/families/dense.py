"""Dense decoder families."""

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
    plain_layer,
)
from moeplan.model.families.softmax_moe import qwen_windows
from moeplan.model.fields import Fields
from moeplan.operators.norm import Norm


@family("llama")
def llama(f: Fields) -> Architecture:
    """Grouped-query attention and a gated feed-forward; optional biases."""
    bias = biases(f)
    attention = grouped_attention(f, kv_heads="heads", bias=bias, window=f.integer("sliding_window", default=None))
    mlp = dense_mlp(f, bias=f.flag("mlp_bias", default=False))
    return decoder(f, [plain_layer(Norm(hidden_size(f)), attention, mlp)] * depth(f))


@family("qwen2", "qwen3")
def qwen(f: Fields) -> Architecture:
    """Qwen2 has biases on query, key and value; Qwen3 norms over each head instead."""
    layers = depth(f)
    if f.mapping.get("model_type") == "qwen2":
        attention = grouped_attention(f, bias="qkv")
    else:
        bias = biases(f)
        attention = grouped_attention(f, head_dim=128, qk_norm="head", bias=bias)
    spans = qwen_windows(f, layers, "after")
    norm, mlp = Norm(hidden_size(f)), dense_mlp(f)
    return decoder(f, [plain_layer(norm, replace(attention, window=span), mlp) for span in spans])


@family("mistral")
def mistral(f: Fields) -> Architecture:
    """Llama without biases, with an optional window."""
    attention = grouped_attention(f, window=f.integer("sliding_window", default=None))
    return decoder(f, [plain_layer(Norm(hidden_size(f)), attention, dense_mlp(f))] * depth(f))
