"""Where tokens enter and leave: the word embedding, the output head, and multi-token prediction's projection."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moeplan.operators.base import Array, Shard, Weight, matrix, vector
from moeplan.operators.saved import Saved, Step, element_bytes, gathered, gemm_bytes, norm_tensors, scattered
from moeplan.operators.work import Traffic, Work, column_parallel, dense, elementwise, row_parallel


def padded_vocabulary(vocabulary: int, shard: Shard) -> Array:
    """Rows that a framework allocates: Megatron-LM pads to a multiple of 128 times ``tp``, others do not pad."""
    multiple = shard.value("vocabulary_multiple", 1.0)
    return np.ceil(vocabulary / multiple) * multiple


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
        found = [
            vector("word_embeddings", "embedding", padded_vocabulary(self.vocabulary, shard) / shard.tp * self.hidden)
        ]
        if self.positions:
            found.append(vector("position_embeddings", "embedding", self.positions * self.hidden))
        return found

    def work(self, shard: Shard) -> list[Work]:
        """A gather of rows forward, a scattered addition backward, and the scatter over sequence-parallel ranks."""
        return [
            elementwise("embedding", shard.tokens * self.hidden, shard, (2.0, 3.0), 3.0),
            *row_parallel("embedding", shard, self.hidden),
        ]

    def steps(self, shard: Shard) -> list[Step]:
        """Token ids (and under ``tp`` the mask of rows that live elsewhere); backward makes a dense gradient.

        ``torch.nn.functional.embedding`` without sparse gradients fills a tensor of the whole local table before it is
        added to the main gradient.
        """
        size = element_bytes(shard)
        ids = 9.0 * shard.tokens * (shard.tp > 1) * (1.0 - shard.value("eager"))
        gradient = (
            shard.value("parameter_bytes", 2.0) * padded_vocabulary(self.vocabulary, shard) / shard.tp * self.hidden
        )
        masks = shard.value("dropout") * shard.sequence_tokens * self.hidden
        saved = (Saved("token ids", ids), Saved("dropout mask", masks))
        return [Step("embedding", saved, gradient + size * shard.tokens * self.hidden)]


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
        rows = padded_vocabulary(self.vocabulary, shard) / shard.tp
        found = [] if self.tied else [matrix("output_layer", "lm_head", rows, self.hidden)]
        if self.bias:
            found.append(vector("output_layer.bias", "lm_head", rows))
        return found

    def work(self, shard: Shard) -> list[Work]:
        """The projection in 16 bits and the cross entropy.

        Accesses per logit: fused, one 16-bit read and the gradient written in its place, with the maximum and the sum
        kept in fp32 (Transformer Engine ``cross_entropy.py``); unfused, the fp32 copy is written, read for maximum,
        exponential and sum, and its gradient computed and cast back (Megatron-LM
        ``megatron/core/tensor_parallel/cross_entropy.py``).
        """
        logits = shard.tokens * padded_vocabulary(self.vocabulary, shard) / shard.tp
        fused = shard.value("fused_cross_entropy", 1.0)
        forward = logits * np.where(fused > 0, 8.0, 30.0)
        backward = logits * np.where(fused > 0, 4.0, 14.0)
        return [
            *column_parallel("output_layer", shard, self.hidden),
            dense(
                "output_layer",
                shard.tokens,
                padded_vocabulary(self.vocabulary, shard) / shard.tp,
                self.hidden,
                quantized=False,
            ),
            Traffic("cross_entropy", forward, backward, 6.0, "loss"),
        ]

    def steps(self, shard: Shard) -> list[Step]:
        """The projection's input, and the loss: logits whose gradient is written in place, or their fp32 copy.

        Fused (Transformer Engine ``cross_entropy.py``): 16-bit logits, overwritten by their gradient. Unfused
        (Megatron-Core ``tensor_parallel/cross_entropy.py``): fp32 probabilities kept, 9 bytes of target, mask and loss
        per token, and in backward their gradient is cast to 16 bits. Hugging Face: fp32 log-probabilities and 8 bytes
        per token; the logits stay with the model's output and backward makes two fp32 tensors of their size.
        """
        size = element_bytes(shard)
        eager = shard.value("eager")
        tokens = shard.tokens
        logits = tokens * padded_vocabulary(self.vocabulary, shard) / shard.tp
        fused = shard.value("fused_cross_entropy", 1.0) * (1.0 - eager)
        kept = np.where(fused > 0, size, 4.0) * logits + np.where(eager > 0, 8.0, 9.0) * tokens
        entering = shard.sequence_tokens * self.hidden
        projection = size * (logits + tokens * self.hidden) + scattered(shard, self.hidden)
        loss = np.where(eager > 0, 8.0 + size, np.where(fused > 0, 0.0, size)) * logits
        return [
            Step("output_layer", (Saved("hidden states", size * entering),), projection),
            Step("cross_entropy", (Saved("logits", kept),), loss),
        ]


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

    def work(self, shard: Shard) -> list[Work]:
        """Two norms, the concatenation, and the projection back to the hidden size."""
        tokens = shard.sequence_tokens * self.hidden
        return [
            elementwise("mtp.norms", 2 * tokens, shard, (4.0, 5.0), 4.0),
            *column_parallel("eh_proj", shard, 2 * self.hidden),
            dense("eh_proj", shard.tokens, self.hidden / shard.tp, 2 * self.hidden),
            *row_parallel("eh_proj", shard, self.hidden),
        ]

    def steps(self, shard: Shard) -> list[Step]:
        """Both norms' inputs and the concatenation that the projection reads."""
        size = element_bytes(shard)
        local = shard.sequence_tokens
        norms = norm_tensors(shard, "norm inputs", 2.0 * local * self.hidden, 2.0 * local)
        joined = Saved("eh_proj input", gemm_bytes(shard) * 2.0 * local * self.hidden)
        backward = size * 4.0 * local * self.hidden + gathered(shard, 2.0 * self.hidden)
        return [
            Step("mtp.norms", (norms,), size * 4.0 * local * self.hidden),
            Step("eh_proj", (joined,), backward + scattered(shard, 2.0 * self.hidden)),
        ]
