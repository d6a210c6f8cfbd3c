"""The largest batch that fits: the exact integer, per strategy, and what binds it.

Gradient accumulation makes any global batch fit, so "the largest batch" is that of one pass with a full pipeline:
``micro_batch_size * dp * pp`` sequences, ``pp`` micro batches being the fewest that keep ``pp`` stages busy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moeplan.errors import PlanError
from moeplan.estimator.table import Column, Table
from moeplan.search.engine import legal_candidates
from moeplan.search.layouts import small
from moeplan.search.objectives import GIB, OBJECTIVES
from moeplan.search.request import SearchRequest, Winner
from moeplan.search.strategies import STRATEGIES, strategy_space
from moeplan.search.sweep import CHUNK_ROWS

if TYPE_CHECKING:
    from moeplan.estimator.price import Prices

_MOST_SEQUENCES = 1 << 16  # the plan document's own bound on micro_batch_size


@dataclass(frozen=True)
class Largest:
    """The largest batch of one strategy.

    Attributes:
        strategy: One of ``strategies.STRATEGIES``.
        winner: The candidate with the largest batch (of equal ones the fastest), or the one closest to fitting, or
            None when the strategy is not legal.
        global_batch_size: Its sequences per step; 0 when nothing fits.
        micro_batch_size: Its sequences per GPU and pass; 0 when nothing fits.
        tokens: ``global_batch_size`` in tokens.
        binds: What keeps the batch from growing, in words.
    """

    strategy: str
    winner: Winner | None
    global_batch_size: int
    micro_batch_size: int
    tokens: int
    binds: str


def max_batch(request: SearchRequest) -> tuple[Largest, ...]:
    """The largest batch that fits, for every strategy in the order of ``STRATEGIES``; ``mix`` is the largest of all.

    Raises:
        PlanError: The request cannot be used.
    """
    return tuple(_largest(request, strategy) for strategy in STRATEGIES)


def _largest(request: SearchRequest, strategy: str) -> Largest:
    space = strategy_space(strategy, request.space, request.base, request.machine.nvlink_domain)
    choices = {name: values for name, values in space.choices.items() if name != "global_batch_size"}
    narrowed = replace(request, space=replace(space, choices={**choices, "micro_batch_size": (1,)}))
    try:
        found = legal_candidates(narrowed, OBJECTIVES["batch"])
    except PlanError as error:
        if error.where != "search":
            raise
        return Largest(strategy, None, 0, 0, 0, f"not legal: {error.remedy}")
    best: _Held | None = None
    for start, stop in found.spans(CHUNK_ROWS):
        table, body = found.of(range(start, stop))
        best = _better(best, _of_chunk(narrowed, table, found.layout[body], int(found.first[start]), best))
    if best is None:
        raise PlanError("search", "the space has no legal candidate")
    return _told(narrowed, strategy, best)


@dataclass(frozen=True)
class _Held:
    """The best candidate so far, priced at its largest micro batch (or at 1 where that does not fit)."""

    winner: Winner

    @property
    def batch(self) -> int:
        return int(self.winner.row["global_batch_size"]) if self.winner.fits else 0


def _better(held: _Held | None, other: _Held | None) -> _Held | None:
    if held is None or other is None:
        return held or other
    return min(held, other, key=lambda item: (not item.winner.fits, item.winner.rank))


def _of_chunk(
    request: SearchRequest, table: Table, group: NDArray[Any], first: int, best: _Held | None
) -> _Held | None:
    """The best of one table of candidates at micro batch 1."""
    fitted = request.fit(table)
    fitting = np.flatnonzero(fitted.fits)
    if not fitting.size:
        closest = int(np.argmax(fitted.headroom_bytes))
        score = float(fitted.headroom_bytes[closest])
        only = np.array([closest])
        return _Held(_winner(table.take(only), fitted.prices(only), 0, group[only], first + closest, score))
    # Sequences of one pass with micro batch 1, and by doubling the largest power of two that fits.
    unit = table["global_batch_size"].astype(np.int64)
    low = np.zeros(table.rows, np.int64)
    alive, size = fitting, 1
    while alive.size and size <= _MOST_SEQUENCES:
        low[alive] = size
        size *= 2
        alive = alive[request.fit(_sized(table, alive, np.full(alive.size, size))).fits]
    # A candidate whose next power of two is no larger than what is held cannot win: the rest is bisected.
    record = max(int(np.max(low * unit)), best.batch if best is not None else 0)
    rows = np.flatnonzero((low > 0) & ((2 * low - 1) * unit >= record))
    if not rows.size:
        return None
    low = _bisect(request, table, rows, low[rows])
    batch = low * unit[rows]
    finalists = np.flatnonzero(batch == np.max(batch))
    chosen = _sized(table, rows[finalists], low[finalists])
    final = request.price(chosen)
    order = np.lexsort((rows[finalists], -final.tokens_per_s))
    pick = int(order[0])
    return _Held(
        _winner(chosen, final, pick, group[rows[finalists]], first + int(rows[finalists[pick]]), float(np.max(batch)))
    )


def _bisect(request: SearchRequest, table: Table, rows: NDArray[np.int64], low: NDArray[np.int64]) -> NDArray[np.int64]:
    """The largest micro batch that fits, between ``low`` (which does) and ``2 * low`` (which does not)."""
    high = 2 * low
    while True:
        open_ = np.flatnonzero(high - low > 1)
        if not open_.size:
            return low
        middle = (low[open_] + high[open_]) // 2
        fits = request.fit(_sized(table, rows[open_], middle)).fits
        low[open_] = np.where(fits, middle, low[open_])
        high[open_] = np.where(fits, high[open_], middle)


def _sized(table: Table, rows: NDArray[np.int64], size: NDArray[np.int64]) -> Table:
    """Some rows at other micro batches, the global batch following."""
    chosen = table.take(rows)
    unit = table["global_batch_size"].astype(np.int64)[rows]
    columns = {}
    for name, values in (("micro_batch_size", size), ("global_batch_size", size * unit)):
        levels, codes = np.unique(values, return_inverse=True)
        columns[name] = Column(tuple(levels.tolist()), small(codes, len(levels)))
    return chosen.with_columns(columns)


def _winner(table: Table, prices: Prices, row: int, group: NDArray[Any], number: int, score: float) -> Winner:
    return Winner(
        row=table.row(row),
        value=score,
        score=score,
        tie=float(prices.tokens_per_s[row]),
        number=number,
        group=int(group[row]),
        tokens_per_s=float(prices.tokens_per_s[row]),
        step_s=float(prices.step_s[row]),
        device_bytes=float(prices.device_bytes[row]),
        headroom_bytes=float(prices.headroom_bytes[row]),
    )


def _told(request: SearchRequest, strategy: str, held: _Held) -> Largest:
    winner = held.winner
    if not winner.fits:
        overflow = -winner.headroom_bytes / GIB
        return Largest(strategy, winner, 0, 0, 0, f"one sequence per GPU overflows by {overflow:.1f} GiB")
    row = winner.row
    size, batch = int(row["micro_batch_size"]), int(row["global_batch_size"])
    if size >= _MOST_SEQUENCES:
        binds = "the largest micro batch that a plan may have"
    else:
        next_row = {**row, "micro_batch_size": size + 1, "global_batch_size": batch // size * (size + 1)}
        overflow = -float(request.fit(Table.of_rows([next_row])).headroom_bytes[0]) / GIB
        binds = f"memory: micro batch {size + 1} overflows by {overflow:.1f} GiB"
    return Largest(strategy, winner, batch, size, batch * int(row["sequence_length"]), binds)
