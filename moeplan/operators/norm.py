"""Normalisation over the residual stream."""

from __future__ import annotations

from dataclasses import dataclass

from moeplan.operators.base import Shard, Weight, vector


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
