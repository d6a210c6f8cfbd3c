"""Saved activations and the climb of backward, folded over parts: what ``live_parts`` says, without its parts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moeplan.estimator.fold import each_pipeline, weighted
from moeplan.estimator.memory.buffers import stage_counts
from moeplan.estimator.stages import Structure
from moeplan.estimator.table import Codes
from moeplan.operators.base import Array


@dataclass(frozen=True)
class LayerBytes:
    """What one layer, and one stage around it, keeps.

    Attributes:
        kept: Bytes that a layer of each part keeps, recomputation in effect; shape (layers, parts).
        climb: Bytes that its backward needs on top; shape (layers, parts).
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


def fold_live(
    structure: Structure,
    index: Codes,
    layer: Codes,
    layers: LayerBytes,
    share: Array,
    piped: NDArray[np.bool_],
) -> tuple[Array, Array, Array]:
    """Bytes alive, the highest climb above them, and the stage's own tensors; all layers are recomputed or none is.

    Backward meets the head first, then the decoder layers, then the embedding; what is behind it is free by then.

    Args:
        structure: The pipelines.
        index: Pipeline of each row; shape (rows,).
        layer: Row of ``layers`` for each row; shape (rows,).
        layers: What is folded.
        share: Share of a stage's layers that its largest virtual stage holds; shape (pipelines, moments).
        piped: Whether a row has more than one stage; shape (rows,).

    Returns:
        Three arrays of shape (rows, moments).
    """
    head_kept = np.where(layers.redone, 0.0, layers.kept[:, -1])
    has_head, messages = stage_counts(structure)

    def fold(pipeline: int, moments: int, rows: Codes) -> tuple[Array, ...]:
        live, runs = structure.live[pipeline, :moments], structure.runs[pipeline, :moments]
        which = layer[rows]
        own, own_climb = np.take(layers.kept, which, axis=0), np.take(layers.climb, which, axis=0)
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
        around = np.take(layers.rope, which)[:, None]
        around = around + has_head[pipeline, None, :moments] * np.take(layers.gathered, which)[:, None]
        sent = (piped[rows] * np.take(layers.message, which))[:, None]
        return alive, np.maximum(peak, 0.0), around + sent * messages[pipeline, None, :moments]

    alive, peak, around = each_pipeline(structure, index, fold, 3)
    return alive, peak, around
