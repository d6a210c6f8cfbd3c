"""Sequence mixers that are no softmax attention: state-space layers, linear attention, gated convolutions.

They share one shape: a few projections around a recurrence over the sequence whose state does not grow with it. What
differs is stated as data, so that a new mixer is one function that fills these fields (``recurrent.py``) and nothing
else changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moeplan.operators.base import Component, Shard, Weight, matrix, vector
from moeplan.operators.saved import Saved, Step, element_bytes, gathered, gemm_bytes, scattered
from moeplan.operators.work import Scan, Work, column_parallel, dense, row_parallel

Cut = Literal["rows", "columns", "none"]


@dataclass(frozen=True, slots=True)
class Projection:
    """One matrix of a mixer.

    Attributes:
        name: Parameter name.
        rows: Output features of the whole model.
        columns: Input features of the whole model.
        cut: The side that tensor parallelism divides.
    """

    name: str
    rows: int
    columns: int
    cut: Cut = "rows"


@dataclass(frozen=True, slots=True)
class MixerVector:
    """One small parameter of a mixer (convolution taps, decay, time-step bias, norm scale).

    Attributes:
        name: Parameter name.
        elements: Entries of the whole model.
        cut: Divided over tensor-parallel ranks with the heads.
        component: Where reports count it.
    """

    name: str
    elements: int
    cut: bool = True
    component: Component = "other"


@dataclass(frozen=True, slots=True)
class Mixer:
    """A recurrent mixer.

    Attributes:
        kind: ``mamba``, ``mamba2``, ``gated_delta_net``, ``kimi_delta``, ``lightning`` or ``short_convolution``.
        hidden: Width of the residual stream.
        projections: The matrices, in order of use.
        vectors: The small parameters.
        heads: Heads that tensor parallelism divides.
        inner: Features that leave the recurrence and enter the output projection.
        scan_flops: Forward FLOPs per token of convolution and recurrence, without the projections.
        kept: Features per token that backward needs beside the inputs of the projections: what the recurrence reads.
    """

    kind: str
    hidden: int
    projections: tuple[Projection, ...]
    vectors: tuple[MixerVector, ...]
    heads: int
    inner: int
    scan_flops: float
    kept: int

    def weights(self, shard: Shard) -> list[Weight]:
        """The parameters on one rank, counted as ``other`` (norm scales as ``norms``)."""
        found = []
        for projection in self.projections:
            rows = projection.rows / (shard.tp if projection.cut == "rows" else 1.0)
            columns = projection.columns / (shard.tp if projection.cut == "columns" else 1.0)
            found.append(matrix(projection.name, "other", rows, columns))
        for small in self.vectors:
            found.append(vector(small.name, small.component, small.elements / (shard.tp if small.cut else 1.0)))
        return found

    def work(self, shard: Shard) -> list[Work]:
        """The projections around the recurrence, whose state is read and written with its inputs."""
        tokens = shard.tokens
        found: list[Work] = list(column_parallel(self.kind, shard, self.hidden))
        for projection in self.projections:
            rows = projection.rows / (shard.tp if projection.cut == "rows" else 1.0)
            columns = projection.columns / (shard.tp if projection.cut == "columns" else 1.0)
            found.append(dense(projection.name, tokens, rows, columns))
        moved = tokens * (self.kept + self.inner) / shard.tp * shard.value("activation_bytes", 2.0)
        found.append(Scan(self.kind, tokens * self.scan_flops / shard.tp, 4.0 * moved))
        return found + list(row_parallel(self.kind, shard, self.hidden))

    def steps(self, shard: Shard) -> list[Step]:
        """The projections' input, what the recurrence reads, and what enters the output projection."""
        size = element_bytes(shard)
        entering = shard.sequence_tokens * self.hidden
        read = shard.tokens * self.kept / shard.tp
        left = shard.tokens * self.inner / shard.tp
        around = gathered(shard, self.hidden) + scattered(shard, self.hidden) + size * shard.tokens * self.hidden
        return [
            Step(f"{self.kind}.in_proj", (Saved("input", gemm_bytes(shard) * entering),), size * read + around),
            Step(f"{self.kind}.scan", (Saved("recurrence", size * read),), size * (read + left)),
            Step(f"{self.kind}.out_proj", (Saved("output", gemm_bytes(shard) * left),), size * left + around),
        ]
