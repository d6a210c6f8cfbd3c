"""What is allocated at every moment of every pipeline: what stands, what is saved and what backward needs on top.

Most candidates share few pipelines, so the sums over parts run over the candidates of one pipeline at a time, moment by
moment. All but the saved activations depends on few layers or few weights and is worked out over those.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeplan.estimator.fold import pipelines_of, stages_of, total
from moeplan.estimator.memory.buffers import stage_counts
from moeplan.estimator.stages import Structure
from moeplan.estimator.table import Codes
from moeplan.operators.base import Array


@dataclass(frozen=True)
class LayerBytes:
    """What one layer, and one stage around it, keeps.

    Attributes:
        kept: Bytes that a layer of each part keeps, recomputation in effect; shape (parts, layers).
        climb: Bytes that its backward needs on top; shape (parts, layers).
        redone: Whether every layer is recomputed; shape (layers,).
        rope: Rotary frequencies; shape (layers,).
        gathered: The head's gathered input; shape (layers,).
        message: What passes between stages; shape (layers,).
    """

    kept: Array
    climb: Array
    redone: NDArray[np.bool_]
    rope: Array
    gathered: Array
    message: Array
    _known: dict[tuple[object, ...], Array] = field(default_factory=dict, init=False, repr=False)

    def highest(self, runs: Array, share: float) -> Array:
        """How high backward climbs above what is saved, on a stage that runs ``runs`` layers of each part.

        Backward meets the head first, then the decoder layers, then the embedding; what is behind it is free by then.

        Args:
            runs: Shape (parts,).
            share: Share of the stage's layers that its largest virtual stage holds.

        Returns:
            Shape (layers,).
        """
        held = runs > 0
        # The sizes of decoder runs matter to the embedding only, which comes after them.
        key = ("highest", held.tobytes(), float(runs[-1]), (runs.tobytes(), share) if held[-2] else None)
        if key not in self._known:
            behind = np.where(self.redone, 0.0, self.kept[-1]) * runs[-1]
            found = np.max(self.climb[:-2][held[:-2]], axis=0, initial=-np.inf) - behind
            if held[-1]:
                found = np.maximum(found, self.climb[-1])
            if held[-2]:
                decoder = share * total(self.kept[:-2], runs[:-2])
                found = np.maximum(found, self.climb[-2] - behind - decoder)
            self._known[key] = np.maximum(found, 0.0)
        return self._known[key]

    def around(self, heads: float, messages: float) -> Array:
        """The stage's own tensors, with so many of the head's gathered input and of messages; shape (layers,)."""
        key = ("around", heads, messages)
        if key not in self._known:
            self._known[key] = self.rope + heads * self.gathered + messages * self.message
        return self._known[key]

    def above(self, runs: Array, share: float, heads: float, messages: float) -> Array:
        """The sum of :meth:`highest` and :meth:`around`; shape (layers,)."""
        highest, around = self.highest(runs, share), self.around(heads, messages)
        key = ("above", id(highest), id(around))
        if key not in self._known:
            self._known[key] = highest + around
        return self._known[key]


@dataclass(frozen=True)
class StandingBytes:
    """What stands in memory; arrays of shape (moments, rows of what stands), or None where there is nothing."""

    total: Array
    temporary: Array | None
    stepping: Array | None


@dataclass(frozen=True)
class Blocks:
    """Rows under block recomputation, whose parts are folded apart.

    Attributes:
        place: For each row of the table, its row below, -1 for others; shape (rows,).
        alive: Saved bytes; shape (moments, rows).
        climb: How high backward climbs above them; same shape.
    """

    place: Codes
    alive: Array
    climb: Array


class Moment(NamedTuple):
    """The terms of a moment, see :class:`~moeplan.estimator.memory.StageMemory`."""

    alive: Array
    climb: Array
    around: Array
    allocated: Array


@dataclass(frozen=True)
class Ledger:
    """Everything that is added up at a moment.

    Attributes:
        structure: The pipelines.
        layers: What layers keep.
        layer: Row of ``layers`` for each row of the table; shape (rows,).
        standing: What stands.
        stands: Row of ``standing`` for each row of the table; shape (rows,).
        share: Share of a stage's layers that its largest virtual stage holds; shape (pipelines, moments).
        blocks: Rows under block recomputation; None where there are none.
    """

    structure: Structure
    layers: LayerBytes
    layer: Codes
    standing: StandingBytes
    stands: Codes
    share: Array
    blocks: Blocks | None

    def peak(self) -> tuple[Array, Codes]:
        """The most that is allocated at any moment, and a moment of the stage that needs it; shape (rows,) each."""
        order, groups = pipelines_of(self.structure.index, self.structure.counts.shape[0])
        # Filled in the order of pipelines, which is contiguous, and put back into the table's at the end.
        most, at = np.empty(order.size), np.zeros(order.size, np.int32)
        for pipeline, part in groups:
            stages = stages_of(self.structure, pipeline)
            allocated = self._allocated(pipeline, order[part], stages)
            highest, place = most[part], at[part]
            highest[:] = next(allocated)
            for stage, other in zip(stages[1:], allocated, strict=True):
                # Later stages have larger numbers, so that the last one that was higher is the largest.
                np.maximum(place, (other > highest) * np.int32(stage.start), out=place)
                np.maximum(highest, other, out=highest)
        peak, moment = np.empty_like(most), np.empty(order.size, np.int64)
        peak[order], moment[order] = most, at
        return peak, moment

    def moments(self) -> Moment:
        """Every term at every moment, arrays of shape (rows, moments); a pipeline's last moment fills up its row."""
        shape = (self.layer.size, self.structure.counts.shape[1])
        found = Moment(*(np.empty(shape) for _ in Moment._fields))
        order, groups = pipelines_of(self.structure.index, self.structure.counts.shape[0])
        for pipeline, part in groups:
            rows = order[part]
            which = self.layer[rows]
            each = [range(moment, moment + 1) for moment in range(int(self.structure.moments[pipeline]))]
            for number, allocated in enumerate(self._allocated(pipeline, rows, each)):
                alive, climb = self._live(pipeline, rows, number)
                around = self.layers.around(*self._held[pipeline, number])[which]
                for target, term in zip(found, (alive, climb, around, allocated), strict=True):
                    target[rows, number:] = term[:, None]
        return found

    @cached_property
    def _held(self) -> Array:
        """How many of the head's gathered input and of messages a stage holds; shape (pipelines, moments, 2)."""
        heads, messages = stage_counts(self.structure)
        return np.stack([heads, messages * (self.structure.table["pp"] > 1)[:, None]], axis=2)

    def _in_blocks(self, pipeline: int) -> Blocks | None:
        return self.blocks if self.structure.recomputed_runs[pipeline].any() else None

    def _live(self, pipeline: int, rows: Codes, moment: int) -> tuple[Array, Array]:
        """Saved bytes alive at a moment of one pipeline, and the climb above them; shape (rows,) each."""
        if (blocks := self._in_blocks(pipeline)) is not None:
            return blocks.alive[moment, blocks.place[rows]], blocks.climb[moment, blocks.place[rows]]
        which, structure = self.layer[rows], self.structure
        alive = total(self.layers.kept[:, which], structure.live[pipeline, moment])
        runs, share = structure.runs[pipeline, moment], float(self.share[pipeline, moment])
        return alive, self.layers.highest(runs, share)[which]

    def _allocated(self, pipeline: int, rows: Codes, stages: Sequence[range]) -> Iterator[Array]:
        """The most that is allocated in some moments of one stage, for each of ``stages``; shape (rows,)."""
        structure, layers, standing = self.structure, self.layers, self.standing
        which, stands = self.layer.take(rows), self.stands.take(rows)
        blocks = self._in_blocks(pipeline)
        live = structure.live[pipeline]
        parts = np.flatnonzero(live.any(axis=0))
        kept = [layers.kept[part].take(which) for part in parts] if blocks is None else []
        for moments in stages:
            first = moments.start
            held = self._held[pipeline, first]
            if blocks is None:
                # The rest of a sum being the same, it is largest where what is alive is: to the bit, since rounding
                # keeps the order.
                during = total(kept, live[first, parts])
                for moment in moments[1:]:
                    np.maximum(during, total(kept, live[moment, parts]), out=during)
                during += layers.above(structure.runs[pipeline, first], self.share[pipeline, first], *held).take(which)
            else:
                around = layers.around(*held).take(which)
                saved = (self._live(pipeline, rows, moment) for moment in moments)
                during = np.max([alive + (climb + around) for alive, climb in saved], axis=0)
            if standing.temporary is not None:
                during += standing.temporary[first].take(stands)
            if standing.stepping is not None:
                # Activations are gone when the optimizer runs.
                np.maximum(during, standing.stepping[first].take(stands) + layers.around(*held).take(which), out=during)
            during += standing.total[first].take(stands)
            yield during
