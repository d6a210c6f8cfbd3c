"""Small parts beside the blocks: gates on the residual stream, wide residual streams, layers inside routers."""

from __future__ import annotations

from dataclasses import dataclass

from moeplan.operators.base import Component, Shard, Weight, matrix, vector
from moeplan.operators.mixer import MixerVector, Projection
from moeplan.operators.saved import Saved, Step, element_bytes
from moeplan.operators.work import Work, dense, elementwise


@dataclass(frozen=True, slots=True)
class Extra:
    """Replicated projections and vectors over the tokens of a rank.

    Attributes:
        kind: What it is, for breakdowns.
        width: Features per token that it reads.
        projections: Its matrices, whole on every rank.
        vectors: Its small parameters.
        component: Where reports count its matrices.
    """

    kind: str
    width: int
    projections: tuple[Projection, ...] = ()
    vectors: tuple[MixerVector, ...] = ()
    component: Component = "other"

    def weights(self, shard: Shard) -> list[Weight]:
        """Everything, replicated."""
        found = [matrix(p.name, self.component, p.rows, p.columns) for p in self.projections]
        return found + [vector(v.name, v.component, v.elements + 0.0 * shard.tp) for v in self.vectors]

    def work(self, shard: Shard) -> list[Work]:
        """The projections on the rank's share of the sequence, and one pass over what it reads."""
        tokens = shard.sequence_tokens
        found: list[Work] = [dense(p.name, tokens, p.rows, p.columns, quantized=False) for p in self.projections]
        return [*found, elementwise(self.kind, tokens * self.width, shard, (2.0, 3.0), 2.0)]

    def steps(self, shard: Shard) -> list[Step]:
        """What it reads, and the input of every projection after the first."""
        size = element_bytes(shard) * shard.sequence_tokens
        inner = sum(p.columns for p in self.projections[1:])
        return [Step(self.kind, (Saved("input", size * (self.width + inner)),), size * self.width)]


def hyper_connection(hidden: int, streams: int, outputs: int, scales: int) -> Extra:
    """One mixing of a residual stream that is ``streams`` times as wide (hyper-connections, arXiv:2409.19606).

    Args:
        hidden: Width of one stream.
        streams: Residual streams.
        outputs: Mixing coefficients that are predicted per token.
        scales: Learned scales of the groups of coefficients.
    """
    return Extra(
        "hyper_connection",
        streams * hidden,
        (Projection("fn", outputs, streams * hidden, "none"),),
        (MixerVector("base", outputs, cut=False), MixerVector("scale", scales, cut=False)),
    )


def residual_scales(width: int, vectors: int) -> Extra:
    """Learned scales and biases per feature of the residual stream."""
    return Extra("residual_scale", width, (), (MixerVector("scales", vectors * width, cut=False),))
