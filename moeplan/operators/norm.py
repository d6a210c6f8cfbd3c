"""Normalisation over the residual stream."""

from __future__ import annotations

from dataclasses import dataclass

from moeplan.operators.base import Shard, Weight, vector
from moeplan.operators.saved import Saved, Step, element_bytes, norm_tensors
from moeplan.operators.work import Work, elementwise


@dataclass(frozen=True, slots=True)
class Norm:
    """RMSNorm, or LayerNorm where ``bias`` is set, over ``width`` features.

    Attributes:
        width: Features.
        bias: A bias vector beside the scale (LayerNorm).
        scale: False for norms without weights.
    """

    width: int
    bias: bool = False
    scale: bool = True

    def weights(self, shard: Shard) -> list[Weight]:
        """The scale and the bias, replicated over every rank."""
        found = [vector("weight", "norms", self.width)] if self.scale else []
        if self.bias:
            found.append(vector("bias", "norms", self.width))
        return found

    def work(self, shard: Shard) -> list[Work]:
        """The norm and the residual addition before it (2 + 3 accesses per element forward, 3 + 2 backward)."""
        elements = shard.sequence_tokens * self.width
        return [elementwise("layernorm", elements, shard, (5.0, 5.0), 2.0, ("layernorm",))]

    def steps(self, shard: Shard) -> list[Step]:
        """The input and its statistics; backward makes the gradient of the input beside that of the output."""
        tokens = shard.sequence_tokens
        saved = norm_tensors(shard, "input", tokens * self.width, tokens, 2 if self.bias else 1)
        gradient = element_bytes(shard) * tokens * self.width
        return [Step("layernorm", (Saved(saved.name, saved.bytes, offload="attn_norm"),), 2.0 * gradient)]
