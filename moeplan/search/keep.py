"""What a search remembers while millions of candidates pass: the best per layout, the Pareto front, the near misses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moeplan.estimator.table import Table
from moeplan.operators.base import Array
from moeplan.search.objectives import Objective
from moeplan.search.request import Winner

if TYPE_CHECKING:
    from moeplan.estimator.price import Prices

# Points of a Pareto front closer in memory than this part of the GPU are told as one: a front of a few dozen plans.
_FRONT_RESOLUTION = 1 / 64
# A plan that overflows by no more than this part of the GPU is worth telling when it would be faster than the best.
_NEAR = 0.05
# Rows from which it pays to look for the best groups before sorting.
_MANY = 4096


@dataclass(frozen=True)
class Batch:
    """Candidates of one table that are worth timing.

    Attributes:
        table: The candidates.
        prices: Their prices.
        score: The objective, larger is better; shape (rows,).
        tie: Decides among equals, larger is better; shape (rows,).
        group: Layout of each row; shape (rows,).
        numbers: Number of each row's candidate in the whole search, however the search came to it; shape (rows,).
        evaluated: Candidates of which these are the ones worth timing.
    """

    table: Table
    prices: Prices
    score: Array
    tie: Array
    group: NDArray[Any]
    numbers: NDArray[np.int64]
    evaluated: int

    def winner(self, objective: Objective, row: int, score: float | None = None) -> Winner:
        """One row as a :class:`Winner`; ``score`` ranks it otherwise than by the objective."""
        prices = self.prices
        return Winner(
            row=self.table.row(row),
            value=objective.value(float(self.score[row])),
            score=float(self.score[row]) if score is None else score,
            tie=float(self.tie[row]),
            number=int(self.numbers[row]),
            group=int(self.group[row]),
            tokens_per_s=float(prices.tokens_per_s[row]),
            step_s=float(prices.step_s[row]),
            device_bytes=float(prices.device_bytes[row]),
            headroom_bytes=float(prices.headroom_bytes[row]),
        )


@dataclass
class Best:
    """The ``size`` best candidates, at most one per layout."""

    size: int
    held: list[Winner] = field(default_factory=list)

    @property
    def threshold(self) -> float:
        """A score below which a candidate is not worth offering."""
        return self.held[-1].score if len(self.held) >= self.size else -np.inf

    def offer(self, winners: Iterable[Winner]) -> None:
        """Take what is better than what is held."""
        by_group: dict[int, Winner] = {}
        for winner in sorted([*self.held, *winners], key=lambda winner: winner.rank):
            by_group.setdefault(winner.group, winner)
        self.held = list(by_group.values())[: self.size]


def worth_timing(headroom: Array, group: NDArray[Any], usable_bytes: float, size: int) -> NDArray[np.int64]:
    """Rows that an answer may name: those that fit or fail by little, or the closest of ``size`` layouts if none fits.

    Args:
        headroom: Memory left; shape (rows,).
        group: Layout of each row; shape (rows,).
        usable_bytes: Memory of the GPU.
        size: How many layouts a search tells of.

    Returns:
        Row numbers, ascending.
    """
    least = -_NEAR * usable_bytes
    if headroom.size and not (headroom >= 0).any():
        closest = np.full(int(group.max()) + 1, -np.inf)
        np.maximum.at(closest, group, headroom)
        ranked = np.sort(closest[np.isfinite(closest)])[::-1]
        least = min(least, float(ranked[min(size, ranked.size) - 1]))
    return np.flatnonzero(headroom >= least)


def best_rows(score: Array, tie: Array, group: NDArray[Any], rows: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Of ``rows``, the ``size`` best, at most one per group, the best first; equal rows in their order."""
    if rows.size > _MANY:
        # The best of each group say which scores can matter; few rows are then left to sort.
        most = np.full(int(group.max()) + 1, -np.inf)
        np.maximum.at(most, group[rows], score[rows])
        ranked = np.sort(most[most > -np.inf])[::-1]
        rows = rows[score[rows] >= ranked[min(size, ranked.size) - 1]] if ranked.size else rows
    order = rows[np.lexsort((rows, -tie[rows], -score[rows]))]
    _, firsts = np.unique(group[order], return_index=True)
    return order[np.sort(firsts)[:size]]


@dataclass
class Memory:
    """Everything that a search keeps of what it has seen.

    Attributes:
        objective: What is maximized.
        usable_bytes: Memory of the GPU.
        top: The best that fit.
        misses: The closest to fitting.
        faster: The best of those that fail by little.
        front: Tokens/s against memory, by memory ascending.
        evaluated: Candidates priced.
        fitting: Of those, candidates that fit.
    """

    objective: Objective
    usable_bytes: float
    top: Best
    misses: Best
    faster: Best
    front: list[Winner] = field(default_factory=list)
    evaluated: int = 0
    fitting: int = 0

    @classmethod
    def empty(cls, objective: Objective, usable_bytes: float, size: int) -> Memory:
        """Nothing seen yet."""
        return cls(objective, usable_bytes, Best(size), Best(size), Best(size))

    def digest(self, batch: Batch) -> Digest:
        """What is worth keeping of a batch. Changes nothing: it reads thresholds, which only ever rise."""
        fits = batch.prices.fits
        fitting = np.flatnonzero(fits)
        near = np.zeros(0, np.int64)
        misses = near
        if not fitting.size and not self.fitting:
            closest = batch.prices.headroom_bytes
            worth = np.flatnonzero(closest >= self.misses.threshold)
            misses = best_rows(closest, batch.score, batch.group, worth, self.misses.size)
        else:
            best = self.top.held[0].score if self.top.held else -np.inf
            close = ~fits & (batch.prices.headroom_bytes >= -_NEAR * self.usable_bytes)
            near = np.flatnonzero(close & (batch.score > best) & (batch.score >= self.faster.threshold))
            near = best_rows(batch.score, batch.tie, batch.group, near, self.faster.size)
        worth = fitting[batch.score[fitting] >= self.top.threshold]
        top = best_rows(batch.score, batch.tie, batch.group, worth, self.top.size)
        front = self._front_rows(batch, fitting)
        return Digest(
            top=[batch.winner(self.objective, int(row)) for row in top],
            misses=[batch.winner(self.objective, int(row), float(batch.prices.headroom_bytes[row])) for row in misses],
            faster=[batch.winner(self.objective, int(row)) for row in near],
            front=[batch.winner(self.objective, int(row)) for row in front],
            evaluated=batch.evaluated,
            fitting=int(fitting.size),
        )

    def absorb(self, digest: Digest) -> None:
        """Add what was worth keeping of a batch."""
        self.top.offer(digest.top)
        self.misses.offer(digest.misses)
        self.faster.offer(digest.faster)
        self.front = pareto([*self.front, *digest.front])
        self.evaluated += digest.evaluated
        self.fitting += digest.fitting

    def near_misses(self) -> tuple[Winner, ...]:
        """The closest to fitting when nothing fits, else the better ones that fail by little."""
        if not self.top.held:
            return tuple(self.misses.held)
        best = self.top.held[0].score
        return tuple(winner for winner in self.faster.held if winner.score > best)

    def thinned_front(self) -> tuple[Winner, ...]:
        """The front, one point for each 1/64 of the GPU's memory (the fastest there)."""
        cells = {int(winner.device_bytes / (self.usable_bytes * _FRONT_RESOLUTION)): winner for winner in self.front}
        return tuple(cells.values())

    def _front_rows(self, batch: Batch, fitting: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows that no row of the batch and nothing held beats in both criteria."""
        memory, speed = batch.prices.device_bytes[fitting], batch.prices.tokens_per_s[fitting]
        held = self.front
        if held:
            limits = np.array([winner.device_bytes for winner in held])
            speeds = np.array([0.0, *(winner.tokens_per_s for winner in held)])
            open_ = speed >= speeds[np.searchsorted(limits, memory, side="right")]
            fitting, memory, speed = fitting[open_], memory[open_], speed[open_]
        # Few rows are as fast as everything leaner: only those need the sort that settles equal ones.
        rising = np.argsort(memory)
        rising = rising[speed[rising] >= np.maximum.accumulate(speed[rising])]
        fitting, memory, speed = fitting[rising], memory[rising], speed[rising]
        order = np.lexsort((fitting, -speed, memory))
        ranked = speed[order]
        before = np.concatenate([[-np.inf], np.maximum.accumulate(ranked)[:-1]]) if ranked.size else ranked
        return fitting[order[ranked > before]]


@dataclass(frozen=True)
class Digest:
    """What is worth keeping of one batch; see :class:`Memory`."""

    top: list[Winner]
    misses: list[Winner]
    faster: list[Winner]
    front: list[Winner]
    evaluated: int
    fitting: int


def pareto(winners: Iterable[Winner]) -> list[Winner]:
    """Winners that no other beats in both memory and tokens/s, the leanest first; of equal ones the lowest number."""
    front: list[Winner] = []
    for winner in sorted(winners, key=lambda winner: (winner.device_bytes, -winner.tokens_per_s, winner.number)):
        if not front or winner.tokens_per_s > front[-1].tokens_per_s:
            front.append(winner)
    return front
