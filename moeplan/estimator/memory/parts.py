"""Saved activations and the climb of backward, part by part: what an explanation shows, and block recomputation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moeplan.estimator.memory.layers import layer_memory
from moeplan.estimator.shard import SHARD_COLUMNS, of_levels, shard_of
from moeplan.estimator.stages import Structure
from moeplan.estimator.table import Table
from moeplan.model.architecture import Architecture
from moeplan.operators.base import Array

LAYER_COLUMNS: tuple[str, ...] = (*SHARD_COLUMNS, "recompute_method", "recompute_layers")
"""Columns that a layer's activations depend on."""


def live_parts(architecture: Architecture, joint: Table, structure: Structure) -> tuple[Array, Array, Array]:
    """Part by part: saved bytes alive, and how high the backward pass of a layer of it climbs above all of them.

    Args:
        architecture: The model.
        joint: Rows with :data:`LAYER_COLUMNS` and ``_pipeline``, the row of the structure.
        structure: The pipelines.

    Returns:
        Bytes alive; the climb of layers that are not recomputed; that of layers that are. Shape (rows, moments, parts);
        a climb is minus infinity where the stage has no such layer.
    """
    layers, layer_index = joint.distinct(LAYER_COLUMNS)
    shard = shard_of(layers)
    memory = [layer_memory(part, shard, architecture.hidden) for part in structure.parts]

    def gather(name: str) -> Array:
        return np.stack([getattr(part, name) for part in memory], axis=1)[layer_index][:, None, :]

    kept, climb, climb_full = gather("kept"), gather("transient"), gather("transient_full")
    group, everything = recompute_groups(joint, kept.shape[2])
    # Uniform recomputation of N layers at a time keeps one input per group and rebuilds a whole group at once.
    kept_full = gather("kept_full") / group
    climb_full = climb_full + (group - 1.0) * gather("whole")
    pipeline = joint["_pipeline"].astype(np.int64)
    live, runs = structure.live[pipeline], structure.runs[pipeline]
    redone = np.where(everything, live, structure.recomputed_live[pipeline])
    redone_runs = np.where(everything, runs, structure.recomputed_runs[pipeline])
    alive = (live - redone) * kept + redone * kept_full
    # Backward meets the head first, then the layers that are not recomputed, then those that are, then the embedding.
    once = (runs - redone_runs) * kept
    share = chunk_share(structure, pipeline)
    decoder = slice(0, -2)
    unrecomputed = once[:, :, decoder].sum(axis=2) * share
    before = np.repeat(once[:, :, -1:], runs.shape[2], axis=2)
    before[:, :, -1] = 0.0
    before[:, :, -2] += unrecomputed + (redone_runs * kept_full)[:, :, decoder].sum(axis=2) * share
    plain = np.where(runs > redone_runs, climb - before, -np.inf)
    before[:, :, decoder] += unrecomputed[:, :, None]
    rebuilt = np.where(redone_runs > 0, climb_full - before, -np.inf)
    return alive, plain, rebuilt


def recompute_groups(joint: Table, parts: int) -> tuple[Array, NDArray[np.bool_]]:
    """Layers per checkpoint by part, (rows, 1, parts), and whether every layer is recomputed, (rows, 1, 1)."""
    full = of_levels(joint, "recompute", lambda level: float(level == "full")) > 0
    uniform = of_levels(joint, "recompute_method", lambda level: float(level == "uniform")) > 0
    declared = joint["recompute_layers"]
    counted = ~np.isnan(declared)
    size = np.where(full & uniform & counted, np.maximum(np.nan_to_num(declared), 1.0), 1.0)
    group = np.ones((joint.rows, 1, parts))
    group[:, :, :-2] = size[:, None, None]
    return group, (full & (uniform | ~counted))[:, None, None]


def chunk_share(structure: Structure, pipeline: NDArray[np.int64]) -> Array:
    """Share of a stage's layers that its largest virtual stage holds; shape (rows, moments)."""
    layers = structure.counts[pipeline][:, :, :-2].sum(axis=2)
    share: Array = np.minimum(structure.chunk_layers[pipeline] / np.maximum(layers, 1.0), 1.0)
    return share
