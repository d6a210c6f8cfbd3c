"""Saved activations and the climb of backward, folded over parts: what ``live_parts`` says, without its parts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moeplan.estimator.fold import each_pipeline, weighted
from moeplan.estimator.stages import Structure
from moeplan.estimator.table import Codes
from moeplan.operators.base import Array


def fold_live(
    structure: Structure,
    index: Codes,
    layer: Codes,
    kept: Array,
    climb: Array,
    redone: NDArray[np.bool_],
    share: Array,
) -> tuple[Array, Array]:
    """Bytes alive and the highest climb above them, for candidates of which all layers are recomputed or none is.

    Backward meets the head first, then the decoder layers, then the embedding; what is behind it is free by then.

    Args:
        structure: The pipelines.
        index: Pipeline of each row; shape (rows,).
        layer: Row of the next three for each row; shape (rows,).
        kept: Bytes that a layer of each part keeps, recomputation in effect; shape (layers, parts).
        climb: Bytes that its backward needs on top; shape (layers, parts).
        redone: Whether every layer is recomputed; shape (layers,).
        share: Share of a stage's layers that its largest virtual stage holds; shape (pipelines, moments).

    Returns:
        Two arrays of shape (rows, moments).
    """
    head_kept = np.where(redone, 0.0, kept[:, -1])

    def fold(pipeline: int, moments: int, rows: Codes) -> tuple[Array, ...]:
        live, runs = structure.live[pipeline, :moments], structure.runs[pipeline, :moments]
        which = layer[rows]
        own, own_climb = np.take(kept, which, axis=0), np.take(climb, which, axis=0)
        alive = weighted(own, live)
        behind = np.take(head_kept, which)[:, None] * runs[None, :, -1]
        peak = np.full(alive.shape, -np.inf)
        for part in range(runs.shape[1] - 2):
            held = runs[:, part] > 0
            if held.any():
                peak[:, held] = np.maximum(peak[:, held], own_climb[:, part, None])
        peak -= behind
        if (held := runs[:, -1] > 0).any():
            peak[:, held] = np.maximum(peak[:, held], own_climb[:, -1, None])
        if (held := runs[:, -2] > 0).any():
            decoder = weighted(own[:, :-2], runs[:, :-2]) * share[pipeline, None, :moments]
            peak[:, held] = np.maximum(peak[:, held], (own_climb[:, -2, None] - behind - decoder)[:, held])
        return alive, np.maximum(peak, 0.0)

    alive, peak = each_pipeline(structure, index, fold, 2)
    return alive, peak
