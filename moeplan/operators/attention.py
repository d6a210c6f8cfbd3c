"""Softmax attention: grouped-query (multi-head and sliding-window are special cases) and multi-head latent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from moeplan.operators.base import Shard, Weight, matrix, vector
from moeplan.operators.work import Work, attention_core, column_parallel, dense, elementwise, row_parallel


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

    def work(self, shard: Shard) -> list[Work]:
        """Projections, rotary embedding, attention over the local heads, and what parallelism sends."""
        heads = self.heads / shard.tp
        kv_heads = np.maximum(self.kv_heads / shard.tp, 1.0)
        queries = heads * self.head_dim * (2 if self.output_gate else 1)
        keys_values = kv_heads * (self.head_dim + self.v_head_dim)
        tokens = shard.tokens
        rotated = tokens * (heads + kv_heads) * self.head_dim
        found: list[Work] = [
            *column_parallel("linear_qkv", shard, self.hidden),
            dense("linear_qkv", tokens, queries + keys_values, self.hidden),
            elementwise("rotary", rotated, shard, (2.0, 2.0), 2.0),
            *attention_core(shard, heads, kv_heads, self.head_dim, self.v_head_dim, self.window),
        ]
        if self.qk_norm is not None:
            found.append(elementwise("qk_layernorm", rotated, shard, (2.0, 3.0), 2.0))
        if self.output_gate:
            found.append(elementwise("output_gate", tokens * heads * self.v_head_dim, shard, (3.0, 5.0), 2.0))
        found.append(dense("linear_proj", tokens, self.hidden, heads * self.v_head_dim))
        return found + list(row_parallel("linear_proj", shard, self.hidden))


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

    def work(self, shard: Shard) -> list[Work]:
        """Compression on the rank's share of the sequence, expansion and attention over the local heads."""
        heads = self.heads / shard.tp
        qk_dim = self.qk_nope_head_dim + self.qk_rope_head_dim
        tokens, local = shard.tokens, shard.sequence_tokens
        up = ("mla_up_proj",)
        found: list[Work] = []
        if self.q_lora_rank is None:
            found += column_parallel("linear_q_proj", shard, self.hidden)
            found.append(dense("linear_q_proj", tokens, heads * qk_dim, self.hidden))
        else:
            found += [
                dense("linear_q_down_proj", local, self.q_lora_rank, self.hidden),
                elementwise("q_layernorm", local * self.q_lora_rank, shard, (2.0, 3.0)),
                *column_parallel("linear_q_up_proj", shard, self.q_lora_rank, up),
                dense("linear_q_up_proj", tokens, heads * qk_dim, self.q_lora_rank, replay=up),
            ]
        expanded = heads * (self.qk_nope_head_dim + self.v_head_dim)
        compressed = self.kv_lora_rank + self.qk_rope_head_dim
        found += [
            dense("linear_kv_down_proj", local, compressed, self.hidden),
            elementwise("kv_layernorm", local * self.kv_lora_rank, shard, (2.0, 3.0)),
            *column_parallel("linear_kv_up_proj", shard, compressed, up),
            dense("linear_kv_up_proj", tokens, expanded, self.kv_lora_rank, replay=up),
            # Queries and keys are rotated and assembled from their two parts (fused_mla_rope in Megatron-Core).
            elementwise("rotary", tokens * heads * 2 * qk_dim, shard, (2.0, 2.0), 2.0, up),
            *attention_core(shard, heads, heads, qk_dim, self.v_head_dim, None),
            dense("linear_proj", tokens, self.hidden, heads * self.v_head_dim),
        ]
        return found + list(row_parallel("linear_proj", shard, self.hidden))
