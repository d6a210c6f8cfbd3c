"""Attention over a window of single keys and a compressed past (DeepSeek-V4)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moeplan.operators.attention import core_step, projection_step
from moeplan.operators.base import Shard, Weight, matrix, vector
from moeplan.operators.saved import Saved, Step, element_bytes, gemm_bytes
from moeplan.operators.work import (
    AttentionCore,
    Work,
    attention_core,
    column_parallel,
    dense,
    elementwise,
    row_parallel,
)


@dataclass(frozen=True, slots=True)
class CompressedAttention:
    """Queries from a latent, one key/value head, and blocks of earlier tokens pooled into one key each.

    Shapes as ``models/deepseek_v4/modeling_deepseek_v4.py`` of transformers 5.23 builds them.

    Attributes:
        hidden: Width of the residual stream.
        heads: Query heads.
        head_dim: Width of a head; keys serve as values.
        q_lora_rank: Rank of the query compression.
        output_groups: Groups of heads that share a low-rank output projection.
        output_rank: Rank of that projection, per group.
        window: Tokens that a query sees one by one.
        rate: Tokens that one compressed key stands for, 0 for none.
        index_heads: Heads of the indexer that selects compressed keys, 0 where all of them are read.
        index_dim: Width of an index head.
        index_top_k: Compressed keys that it selects.
    """

    hidden: int
    heads: int
    head_dim: int
    q_lora_rank: int
    output_groups: int
    output_rank: int
    window: int
    rate: int = 0
    index_heads: int = 0
    index_dim: int = 0
    index_top_k: int = 0

    def _compressor(self, name: str, dim: int, overlap: int) -> list[Weight]:
        return [
            matrix(f"{name}.linear_kv", "attention", overlap * dim, self.hidden),
            matrix(f"{name}.linear_gate", "attention", overlap * dim, self.hidden),
            vector(f"{name}.position_bias", "attention", self.rate * overlap * dim),
            vector(f"{name}.kv_norm", "norms", dim),
        ]

    def weights(self, shard: Shard) -> list[Weight]:
        """Heads and output groups are cut over ``tp``, the single key/value head and the compressor are replicated."""
        heads = self.heads / shard.tp
        groups = self.output_groups / shard.tp
        found = [
            matrix("linear_q_down_proj", "attention", self.q_lora_rank, self.hidden),
            vector("q_layernorm", "norms", self.q_lora_rank),
            matrix("linear_q_up_proj", "attention", heads * self.head_dim, self.q_lora_rank),
            matrix("linear_kv", "attention", self.head_dim, self.hidden),
            vector("kv_layernorm", "norms", self.head_dim),
            vector("sinks", "attention", heads),
            matrix(
                "linear_proj_down",
                "attention",
                groups * self.output_rank,
                self.heads * self.head_dim / self.output_groups,
            ),
            matrix("linear_proj", "attention", self.hidden, groups * self.output_rank),
        ]
        if self.rate:
            # Where an indexer selects, neighbouring blocks overlap, which doubles the width before pooling.
            found += self._compressor("compressor", self.head_dim, 2 if self.index_heads else 1)
        if self.index_heads:
            found += self._compressor("indexer", self.index_dim, 2)
            found += [
                matrix("indexer.linear_q", "attention", self.index_heads * self.index_dim, self.q_lora_rank),
                matrix("indexer.linear_weights", "attention", self.index_heads, self.hidden),
            ]
        return found

    def work(self, shard: Shard) -> list[Work]:
        """Projections, the window, the compressed past (selected or whole), and the scores of the selection."""
        tokens = shard.tokens
        heads = self.heads / shard.tp
        one = 1.0 + 0.0 * shard.tp
        found: list[Work] = [*column_parallel("linear_q_up_proj", shard, self.q_lora_rank)]
        found += [
            dense(weight.name, tokens, weight.rows, weight.columns)
            for weight in self.weights(shard)
            if weight.gemm and weight.name != "linear_proj"
        ]
        found.append(elementwise("rotary", tokens * (heads + 1.0) * self.head_dim, shard, (2.0, 2.0), 2.0))
        found += attention_core(shard, heads, one, self.head_dim, self.head_dim, self.window)
        if self.rate:
            local = shard.sequence_length / shard.cp
            past = shard.sequence_length / 2 / self.rate
            read = np.minimum(past, self.index_top_k) if self.index_heads else past
            batch = shard.micro_batch_size
            found.append(AttentionCore("compressed", batch, heads, one, local, read, self.head_dim, self.head_dim))
            if self.index_heads:
                scored = one * self.index_heads
                found.append(AttentionCore("indexer.scores", batch, scored, one, local, past, self.index_dim, 0.0))
        found.append(dense("linear_proj", tokens, self.hidden, self.output_groups / shard.tp * self.output_rank))
        return found + list(row_parallel("linear_proj", shard, self.hidden))

    def steps(self, shard: Shard) -> list[Step]:
        """The input, the query's latent, attention with one key/value head, and the grouped output projection."""
        size = element_bytes(shard)
        tokens = shard.tokens
        heads = self.heads / shard.tp
        entering = shard.sequence_tokens * self.hidden
        latent = tokens * self.q_lora_rank
        queries, keys = tokens * heads * self.head_dim, tokens * self.head_dim
        lowered = tokens * self.output_groups / shard.tp * self.output_rank
        past = keys * (1.0 + (2.0 * (2 if self.index_heads else 1) if self.rate else 0.0))
        return [
            Step("linear_q_down_proj", (Saved("input", gemm_bytes(shard) * entering),), size * (latent + entering)),
            Step("linear_q_up_proj", (Saved("query latent", gemm_bytes(shard) * 2.0 * latent),), size * queries),
            core_step(shard, (queries, past, keys * 0.0, queries), heads, self.window),
            Step("linear_proj_down", (Saved("attention output", size * queries),), size * (queries + lowered)),
            projection_step(shard, lowered, self.hidden),
        ]
