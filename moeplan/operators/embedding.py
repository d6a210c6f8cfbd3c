"""Where tokens enter and leave: the word embedding, the output head, and multi-token prediction's projection."""

from __future__ import annotations

from dataclasses import dataclass

from moeplan.operators.base import Shard, Weight, matrix, vector


@dataclass(frozen=True, slots=True)
class Embedding:
    """Word embeddings, cut over ``tp`` along the vocabulary, and learned positions where the model has them.

    Attributes:
        vocabulary: Rows, unpadded.
        hidden: Width of the residual stream.
        positions: Learned absolute positions, 0 for none.
    """

    vocabulary: int
    hidden: int
    positions: int = 0

    def weights(self, shard: Shard) -> list[Weight]:
        """The vocabulary's rows on this rank; positions are replicated."""
        found = [vector("word_embeddings", "embedding", self.vocabulary / shard.tp * self.hidden)]
        if self.positions:
            found.append(vector("position_embeddings", "embedding", self.positions * self.hidden))
        return found


@dataclass(frozen=True, slots=True)
class Head:
    """The output projection and the loss.

    Attributes:
        vocabulary: Logits per token, unpadded.
        hidden: Width of the residual stream.
        tied: Shares the embedding's weights: it counts no parameters of its own (but holds a copy where the first and
            last pipeline stage differ).
        bias: A bias over the vocabulary.
    """

    vocabulary: int
    hidden: int
    tied: bool = False
    bias: bool = False

    def weights(self, shard: Shard) -> list[Weight]:
        """The projection's rows on this rank, unless tied."""
        rows = self.vocabulary / shard.tp
        found = [] if self.tied else [matrix("output_layer", "lm_head", rows, self.hidden)]
        if self.bias:
            found.append(vector("output_layer.bias", "lm_head", rows))
        return found


@dataclass(frozen=True, slots=True)
class TokenPredictionProjection:
    """What one multi-token-prediction depth adds before its transformer layer: two norms and a 2h-to-h projection.

    DeepSeek-V3 (arXiv:2412.19437, section 2.2).

    Attributes:
        hidden: Width of the residual stream.
    """

    hidden: int

    def weights(self, shard: Shard) -> list[Weight]:
        """The projection [h, 2h], cut over ``tp`` by rows, and the two norms."""
        return [
            matrix("eh_proj", "other", self.hidden / shard.tp, 2 * self.hidden),
            vector("enorm", "norms", self.hidden),
            vector("hnorm", "norms", self.hidden),
        ]
