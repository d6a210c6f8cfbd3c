"""Softmax attention: grouped-query (multi-head and sliding-window are special cases) and multi-head latent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from moeplan.operators.base import Shard, Weight, matrix, vector


@dataclass(frozen=True, slots=True)
class Attention:
    """Grouped-query attention.

    Attributes:
        hidden: Width of the residual stream.
        heads: Query heads.
        kv_heads: Key/value heads; ``heads`` for multi-head attention.
        head_dim: Width of a query/key head.
        v_head_dim: Width of a value head; ``head_dim`` in nearly every model.
        window: Tokens that a query sees, or None for all before it.
        qkv_bias: Biases on the query, key and value projections.
        output_bias: Bias on the output projection.
        qk_norm: A norm over each head (weight [head_dim]), over the full width, or none.
        sinks: One learned sink logit per query head.
        output_gate: The query projection also yields a gate of the output's width (Qwen3-Next).
    """

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    v_head_dim: int
    window: int | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: Literal["head", "full"] | None = None
    sinks: bool = False
    output_gate: bool = False

    def weights(self, shard: Shard) -> list[Weight]:
        """The parameters on one rank. Key/value heads are replicated once ``tp`` exceeds them (Megatron-Core)."""
        heads = self.heads / shard.tp
        kv_heads = np.maximum(self.kv_heads / shard.tp, 1.0)
        queries = heads * self.head_dim * (2 if self.output_gate else 1)
        rows = queries + kv_heads * (self.head_dim + self.v_head_dim)
        found = [
            matrix("linear_qkv", "attention", rows, self.hidden),
            matrix("linear_proj", "attention", self.hidden, heads * self.v_head_dim),
        ]
        if self.qkv_bias:
            found.append(vector("linear_qkv.bias", "attention", rows))
        if self.output_bias:
            found.append(vector("linear_proj.bias", "attention", self.hidden))
        if self.sinks:
            found.append(vector("sinks", "attention", heads))
        if self.qk_norm == "head":
            found.append(vector("qk_layernorm", "norms", 2 * self.head_dim))
        elif self.qk_norm == "full":
            found.append(vector("qk_layernorm", "norms", heads * self.head_dim + kv_heads * self.head_dim))
        return found


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """Multi-head latent attention of DeepSeek-V2 and V3 (arXiv:2405.04434, section 2.1).

    Attributes:
        hidden: Width of the residual stream.
        heads: Attention heads.
        q_lora_rank: Rank of the query compression, or None where queries are projected directly.
        kv_lora_rank: Rank of the joint key/value compression.
        qk_nope_head_dim: Width of a head's part without position.
        qk_rope_head_dim: Width of a head's rotary part (one shared key).
        v_head_dim: Width of a value head.
        attention_bias: Biases on the down projections and the output.
    """

    hidden: int
    heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    attention_bias: bool = False

    def weights(self, shard: Shard) -> list[Weight]:
        """The parameters on one rank: down projections are replicated over ``tp`` (Megatron-Core's TE spec)."""
        heads = self.heads / shard.tp
        qk_dim = self.qk_nope_head_dim + self.qk_rope_head_dim
        found = []
        if self.q_lora_rank is None:
            found.append(matrix("linear_q_proj", "attention", heads * qk_dim, self.hidden))
        else:
            found += [
                matrix("linear_q_down_proj", "attention", self.q_lora_rank, self.hidden),
                vector("q_layernorm", "norms", self.q_lora_rank),
                matrix("linear_q_up_proj", "attention", heads * qk_dim, self.q_lora_rank),
            ]
        found += [
            matrix("linear_kv_down_proj", "attention", self.kv_lora_rank + self.qk_rope_head_dim, self.hidden),
            vector("kv_layernorm", "norms", self.kv_lora_rank),
            matrix(
                "linear_kv_up_proj", "attention", heads * (self.qk_nope_head_dim + self.v_head_dim), self.kv_lora_rank
            ),
            matrix("linear_proj", "attention", self.hidden, heads * self.v_head_dim),
        ]
        if self.attention_bias:
            if self.q_lora_rank is not None:
                found.append(vector("linear_q_down_proj.bias", "attention", self.q_lora_rank))
            found.append(vector("linear_kv_down_proj.bias", "attention", self.kv_lora_rank + self.qk_rope_head_dim))
            found.append(vector("linear_proj.bias", "attention", self.hidden))
        return found
