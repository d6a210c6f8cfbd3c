"""Sums over the parts of each stage, one pipeline at a time.

A table of candidates crossed with moments and parts has hundreds of millions of entries; most candidates share few
pipelines, so the sums run over the candidates of one pipeline, without padding and in the processor's caches. Every
sum is plain elementwise arithmetic in a fixed order: a candidate has the same bits alone and among a million.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from moeplan.estimator.stages import Structure
from moeplan.estimator.table import Codes
from moeplan.operators.base import Array


def pipelines_of(index: Codes, pipelines: int) -> tuple[NDArray[np.int64], Iterator[tuple[int, slice]]]:
    """Sort rows by their pipeline.

    Args:
        index: Pipeline of each row; shape (rows,).
        pipelines: Number of pipelines.

    Returns:
        The rows in order of their pipeline, and for each pipeline that has rows its slice of them.
    """
    # NumPy sorts 16-bit integers in linear time.
    keys = index.astype(np.uint16) if pipelines <= 1 << 16 else index
    order = np.argsort(keys, kind="stable")
    edges = np.searchsorted(keys[order], np.arange(pipelines + 1))
    found = ((p, slice(int(edges[p]), int(edges[p + 1]))) for p in range(pipelines) if edges[p + 1] > edges[p])
    return order, found


def weighted(values: Array, counts: Array) -> Array:
    """Sum values over parts, weighted by how many of each part a moment has.

    Args:
        values: Shape (rows, parts).
        counts: Shape (moments, parts).

    Returns:
        Shape (rows, moments).
    """
    total = np.zeros((values.shape[0], counts.shape[0]))
    for part in np.flatnonzero(counts.any(axis=0)):
        total += values[:, part, None] * counts[None, :, part]
    return total


def each_pipeline(
    structure: Structure,
    index: Codes,
    fold: Callable[[int, int, NDArray[np.int64]], tuple[Array, ...]],
    results: int,
    width: int | None = None,
) -> tuple[Array, ...]:
    """Apply ``fold`` to the rows of every pipeline and put the answers together.

    Args:
        structure: The pipelines.
        index: Pipeline of each row; shape (rows,).
        fold: Called with a pipeline, its number of moments and its rows; answers arrays of shape (rows, moments).
        results: How many arrays it answers.
        width: Columns of the answers where they are not moments.

    Returns:
        Arrays of shape (rows, widest number of moments); the last moment of narrower pipelines is repeated.
    """
    width = width or structure.counts.shape[1]
    order, groups = pipelines_of(index, structure.counts.shape[0])
    targets = tuple(np.empty((index.size, width)) for _ in range(results))
    for pipeline, part in groups:
        rows = order[part]
        answers = fold(pipeline, int(structure.moments[pipeline]), rows)
        for target, found in zip(targets, answers, strict=True):
            target[rows, : found.shape[1]] = found
            if found.shape[1] < width:
                target[rows, found.shape[1] :] = found[:, -1:]
    return targets
