"""Sums over the parts of each stage, one pipeline at a time.

A table of candidates crossed with moments and parts has hundreds of millions of entries; most candidates share few
pipelines, so the sums run over the candidates of one pipeline, without padding and in the processor's caches. Every
sum is plain elementwise arithmetic in a fixed order: a candidate has the same bits alone and among a million.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

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


def stages_of(structure: Structure, pipeline: int) -> list[range]:
    """The moments of each stage of a pipeline, which differ in nothing but what is alive."""
    stage = structure.stage[pipeline, : structure.moments[pipeline]]
    edges = [0, *(np.flatnonzero(np.diff(stage)) + 1).tolist(), stage.size]
    return [range(start, stop) for start, stop in pairwise(edges)]


def total(values: Sequence[Array] | Array, counts: Array) -> Array:
    """Sum values over parts, weighted by how many there are of each, part after part.

    Args:
        values: Arrays of shape (rows,), one per part.
        counts: Shape (parts,).

    Returns:
        Shape (rows,).
    """
    found: Array = values[0] * counts[0]
    for value, count in zip(values[1:], counts[1:], strict=True):
        if count:
            found += value * count
    return found
