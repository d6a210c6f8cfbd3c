"""The indexer of sparse attention: small heads score earlier tokens, and attention reads the best."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moeplan.operators.base import Shard, Weight, matrix, vector
from moeplan.operators.saved import Saved, Step, element_bytes, norm_tensors
from moeplan.operators.work import AttentionCore, Work, dense


@dataclass(frozen=True, slots=True)
class Indexer:
    """DeepSeek-V3.2's lightning indexer (arXiv:2512.02556, section 2.1) and its relatives.

    Attributes:
        hidden: Width of the residual stream.
        query_input: Width that index queries are projected from (the query compression in latent attention).
        heads: Index heads.
        head_dim: Width of an index head; there is one shared key.
        top_k: Tokens that it selects for a query.
        head_weights: A projection weighs the heads (DeepSeek); otherwise they are pooled.
        query_norm: A norm over index queries beside the one over keys.
        norm_bias: The norm over keys is a LayerNorm with a bias.
    """

    hidden: int
    query_input: int
    heads: int
    head_dim: int
    top_k: int
    head_weights: bool = True
    query_norm: bool = False
    norm_bias: bool = True

    def weights(self, shard: Shard) -> list[Weight]:
        """Replicated over ``tp``: every rank needs the same selection (Megatron-Core ``dsa.py``)."""
        found = [
            matrix("indexer.linear_q", "attention", self.heads * self.head_dim, self.query_input),
            matrix("indexer.linear_k", "attention", self.head_dim, self.hidden),
            vector("indexer.k_norm", "norms", self.head_dim * (1 + self.norm_bias + self.query_norm)),
        ]
        if self.head_weights:
            found.append(matrix("indexer.linear_weights", "attention", self.heads, self.hidden))
        return found

    def work(self, shard: Shard) -> list[Work]:
        """Three projections and the scores of every earlier token, without a product with values."""
        tokens = shard.tokens
        found: list[Work] = [
            dense("indexer.linear_q", tokens, self.heads * self.head_dim, self.query_input),
            dense("indexer.linear_k", tokens, self.head_dim, self.hidden),
        ]
        if self.head_weights:
            found.append(dense("indexer.linear_weights", tokens, self.heads, self.hidden))
        length = shard.sequence_length
        heads = self.heads + 0.0 * length
        scores = AttentionCore(
            "indexer.scores",
            shard.micro_batch_size,
            heads,
            1.0 + 0.0 * length,
            length / shard.cp,
            length / 2,
            self.head_dim,
            0.0,
        )
        return [*found, scores]

    def steps(self, shard: Shard) -> list[Step]:
        """Index queries, the shared key with its norm, head weights, and the selected positions as 32-bit integers."""
        size = element_bytes(shard)
        tokens = shard.tokens
        features = self.heads * self.head_dim + self.head_dim + self.heads * self.head_weights
        chosen = np.minimum(float(self.top_k), shard.sequence_length)
        saved = (
            Saved("index queries and keys", size * tokens * features),
            norm_tensors(shard, "index norm", tokens * self.head_dim, tokens),
            Saved("selection", 4.0 * tokens * chosen),
        )
        return [Step("indexer", saved, size * tokens * features)]
