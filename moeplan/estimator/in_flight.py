"""How many micro batches a schedule keeps alive, and which of its moments can be a peak."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from moeplan.operators.base import Array


@lru_cache(maxsize=1024)
def live_chunks(pp: int, stage: int, virtual: int, micro_batches: int, overlap_ep: bool = False) -> Array:
    """Micro batches alive per virtual stage, at each moment of one stage's schedule that could be its peak.

    1F1B keeps ``min(pp - stage, m)``; the interleaved schedule warms up over ``2 (pp - stage - 1) + (virtual - 1) pp``
    virtual micro batches (one more with expert-parallel overlap) and then alternates. Source: Megatron-LM
    ``megatron/core/pipeline_parallel/schedules.py``.

    Returns:
        Array of shape (moments, virtual), read-only: layouts of the same degrees share it.
    """
    if virtual == 1:
        return _frozen(np.full((1, 1), float(min(pp - stage, micro_batches))))
    steps = micro_batches * virtual
    warmup = min(2 * (pp - stage - 1) + (virtual - 1) * pp + int(overlap_ep), steps)
    forwards = _passed(pp, virtual, micro_batches)
    backwards = forwards[:, ::-1]
    # Forward and backward repeat with every group of pp micro batches, and what is alive between them does too.
    period = pp * virtual if micro_batches % pp == 0 else steps
    alternating = np.arange(min(max(steps - warmup, 1), period))
    alive = forwards[np.minimum(warmup + 1 + alternating, steps)] - backwards[alternating]
    return _frozen(np.unique(alive, axis=0))


def _frozen(values: Array) -> Array:
    values.setflags(write=False)
    return values


@lru_cache(maxsize=32)
def _passed(pp: int, virtual: int, micro_batches: int) -> Array:
    """Forward passes of each virtual stage after so many steps; backward takes the stages in opposite order.

    Returns:
        Array of shape (steps + 1, virtual), read-only.
    """
    order = _schedule(pp, virtual, micro_batches)
    return _frozen(np.concatenate([np.zeros((1, virtual)), np.cumsum(np.eye(virtual)[order], axis=0)]))


def _schedule(pp: int, virtual: int, micro_batches: int) -> NDArray[np.int64]:
    """The virtual stage of each forward step: ``pp`` micro batches at a time pass through all virtual stages."""
    order = [
        chunk
        for start in range(0, micro_batches, pp)
        for chunk in range(virtual)
        for _ in range(min(pp, micro_batches - start))
    ]
    return np.array(order, np.int64)


def undominated(bounds: Array) -> NDArray[np.int64]:
    """Rows of ``bounds`` (points, features) that no other row is at least as large as in everything, in their order."""
    covers = (bounds[:, None] >= bounds[None, :]).all(axis=2)
    # Of equal rows the first stays.
    before = np.arange(len(bounds))
    beaten = covers & (~covers.T | (before[:, None] < before))
    return np.flatnonzero(~beaten.any(axis=0))


def off_mixtures(bounds: Array) -> NDArray[np.int64]:
    """Rows of ``bounds`` (points, features) that lie below no mixture of two other rows, in their order.

    A sum with non-negative weights is largest at a row that is kept. No two rows may be equal.
    """
    points = bounds.shape[0]
    if points < 3:
        return np.arange(points)
    varying = bounds[:, np.ptp(bounds, axis=0) > 0]
    # A mixture t of row j and 1 - t of row k covers row i where t (b_j - b_k) >= b_i - b_k in every feature.
    slope = (varying[:, None] - varying[None, :])[None]
    needed = (varying[:, None] - varying[None, :])[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = needed / slope
    at_least = np.where(slope > 0, share, 0.0).max(axis=3, initial=0.0)
    at_most = np.where(slope < 0, share, 1.0).min(axis=3, initial=1.0)
    possible = np.where(slope == 0, needed <= 0, True).all(axis=3)
    covered = possible & (at_least <= at_most + 1e-12)
    own = np.arange(points)
    covered[own, own, :] = False
    covered[own, :, own] = False
    return np.flatnonzero(~covered.any(axis=(1, 2)))
