"""Attention whose query and output projections are routed experts (mixture of attention heads)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moeplan.operators.attention import core_step
from moeplan.operators.base import Shard, Weight, matrix, vector
from moeplan.operators.saved import Saved, Step, element_bytes
from moeplan.operators.work import Gemm, Work, attention_core, column_parallel, dense, elementwise, row_parallel


@dataclass(frozen=True, slots=True)
class ExpertAttention:
    """JetMoe's attention (arXiv:2404.07413, section 2.2): each chosen expert brings ``kv_heads`` query heads.

    Attributes:
        hidden: Width of the residual stream.
        experts: Attention experts.
        top_k: Experts per token: a query has ``top_k * kv_heads`` heads.
        kv_heads: Key/value heads, shared by all experts.
        head_dim: Width of a head.
    """

    hidden: int
    experts: int
    top_k: int
    kv_heads: int
    head_dim: int

    def active_share(self, top_k: int | None = None) -> float:
        """Share of the routed parameters that one token meets."""
        return min((top_k or self.top_k) / self.experts, 1.0)

    def weights(self, shard: Shard) -> list[Weight]:
        """Query and output experts on the expert grid, the rest on the attention grid."""
        inner = self.kv_heads * self.head_dim
        copies = self.experts / shard.ep
        width = self.hidden * np.ones(1)
        return [
            matrix("router", "router", self.experts, self.hidden),
            Weight("experts.linear_q", "routed_experts", inner / shard.etp, width, copies, expert=True),
            Weight("experts.linear_proj", "routed_experts", width, inner / shard.etp, copies, expert=True),
            matrix("linear_kv", "attention", 2 * inner / shard.tp, self.hidden),
            vector("linear_proj.bias", "other", self.hidden),
        ]

    def work(self, shard: Shard) -> list[Work]:
        """Keys and values as usual; queries and outputs by grouped GEMMs over the chosen experts."""
        inner = self.kv_heads * self.head_dim
        copies = shard.tokens * self.top_k / shard.ep
        local = self.experts / shard.ep
        width = self.hidden * np.ones(1)
        heads = self.top_k * self.kv_heads / shard.tp
        return [
            *column_parallel("linear_kv", shard, self.hidden),
            dense("linear_kv", shard.tokens, 2 * inner / shard.tp, self.hidden),
            dense("router", shard.tokens, self.experts, self.hidden, quantized=False),
            Gemm("experts.linear_q", copies / local, inner / shard.etp, width, local, grouped=True),
            elementwise("rotary", shard.tokens * (heads + self.kv_heads / shard.tp) * self.head_dim, shard, (2.0, 2.0)),
            *attention_core(shard, heads, self.kv_heads / shard.tp, self.head_dim, self.head_dim, None),
            Gemm("experts.linear_proj", copies / local, width, inner / shard.etp, local, grouped=True),
            *row_parallel("linear_proj", shard, self.hidden),
        ]

    def steps(self, shard: Shard) -> list[Step]:
        """The input, rows gathered per chosen expert for both grouped GEMMs, and attention over all their heads."""
        size = element_bytes(shard)
        tokens = shard.tokens
        entering = shard.sequence_tokens * self.hidden
        rows = tokens * self.top_k / shard.ep
        keys = tokens * self.kv_heads * self.head_dim / shard.tp
        queries = keys * self.top_k
        core = core_step(shard, (queries, keys, keys, queries), self.top_k * self.kv_heads / shard.tp, None)
        gathered_rows = size * rows * self.hidden
        scores = Saved("scores", tokens * (20.0 * self.top_k + 3.0 * self.experts))
        return [
            Step("linear_kv", (Saved("input", size * entering), scores), size * (2.0 * keys + entering)),
            Step("experts.linear_q", (Saved("gathered rows", gathered_rows),), gathered_rows + size * queries),
            core,
            Step("experts.linear_proj", (Saved("attention output", size * queries),), gathered_rows + size * queries),
        ]
