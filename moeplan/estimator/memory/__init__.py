"""Memory of every pipeline stage, as the allocator would read it: states, live activations, temporaries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeplan.estimator.machine import Machine
from moeplan.estimator.memory.buffers import (
    OUTSIDE_COLUMNS,
    optimizer_temporaries,
    outside,
    reserved,
    sharding_buffers,
    stage_tensors,
    workspaces,
)
from moeplan.estimator.memory.fold import LayerBytes, fold_live
from moeplan.estimator.memory.layers import layer_memory
from moeplan.estimator.memory.states import (
    CUT_COLUMNS,
    STATE_COLUMNS,
    cut_of,
    data_parallel,
    dummy_gradients,
    elements,
    held_elements,
    state_bytes,
)
from moeplan.estimator.shard import SHARD_COLUMNS, of_levels, shard_of
from moeplan.estimator.stages import Structure
from moeplan.estimator.table import Column, Table
from moeplan.model.architecture import Architecture
from moeplan.operators.base import Array

LAYER_COLUMNS: tuple[str, ...] = (*SHARD_COLUMNS, "recompute_method", "recompute_layers")
"""Columns that a layer's activations depend on."""

JOINT_COLUMNS: tuple[str, ...] = (*LAYER_COLUMNS, "pp", "_pipeline")
_HELD_COLUMNS: tuple[str, ...] = (*CUT_COLUMNS, "fused_gradient_accumulation", "_pipeline")
_RESIDENT_COLUMNS: tuple[str, ...] = tuple(
    dict.fromkeys(
        (*_HELD_COLUMNS, *STATE_COLUMNS, "gpus", "pp", "overlap_grad_reduce", "overlap_param_gather")  # sharded buffers
    )
)
_JOINT_OR_PIPELINE = {*JOINT_COLUMNS, "vpp", "pipeline_layout", "overlap_ep", "mtp_layers", "schedule"}


@dataclass(frozen=True)
class StageMemory:
    """Bytes by term; every array has shape (rows, moments), see :class:`~moeplan.estimator.stages.Structure`.

    Attributes:
        parameters: Weights, with low-precision copies.
        gradients: The gradient buffer.
        optimizer: Master weights and moments.
        activations: Saved for backward, over all micro batches in flight.
        transient: The climb of the backward pass above that, with gathered parameters and unreduced gradients of
            sharded training.
        buffers: Workspaces, dummy weight gradients, the head's gather buffer, pipeline messages.
        overhead: Outside the allocator: driver context, NCCL, dispatch buffers.
        peak_allocated: What ``torch.cuda.max_memory_allocated()`` would read.
        peak_reserved: What ``torch.cuda.max_memory_reserved()`` would read.
    """

    parameters: Array
    gradients: Array
    optimizer: Array
    activations: Array
    transient: Array
    buffers: Array
    overhead: Array
    peak_allocated: Array
    peak_reserved: Array


def stage_memory(
    architecture: Architecture,
    machine: Machine,
    table: Table,
    structure: Structure,
    factors: Mapping[str, float],
) -> StageMemory:
    """Price the memory of every moment of every candidate.

    Args:
        architecture: The model.
        machine: The GPU.
        table: Candidates with the columns of ``columns.DEFAULTS``.
        structure: Their pipelines.
        factors: Calibration factors; ``fragmentation`` scales what the allocator reserves beyond what is in use.
    """
    pipelines = structure.counts.shape[0]
    extended = table.with_columns({"_pipeline": Column(tuple(range(pipelines)), structure.index)})
    activations, transient, messages = _activations(architecture, extended, structure)
    # States depend on far fewer columns than activations: worked out once per distinct row, then gathered.
    rows, index = extended.distinct(_RESIDENT_COLUMNS)
    resident = _resident(machine, rows, structure)
    parameters, gradients, optimizer, fixed, temporary = (np.take(term, index, axis=0) for term in resident)
    buffers = fixed + messages
    if resident.temporary.any():
        transient = transient + temporary
    stepping = optimizer_temporaries(table, optimizer)
    if stepping is not None:
        # Activations are gone when the optimizer runs.
        transient = np.maximum(transient, stepping - activations)
    grids, grid_index = table.distinct(OUTSIDE_COLUMNS)
    overhead = np.broadcast_to(outside(architecture, machine, grids)[grid_index][:, None], buffers.shape)
    allocated = parameters + gradients + optimizer + activations + transient + buffers
    return StageMemory(
        parameters=parameters,
        gradients=gradients,
        optimizer=optimizer,
        activations=activations,
        transient=transient,
        buffers=buffers,
        overhead=overhead,
        peak_allocated=allocated,
        peak_reserved=reserved(allocated, factors.get("fragmentation", 1.0)),
    )


class _Resident(NamedTuple):
    """What is there whatever the micro batch; arrays of shape (rows, moments), or (rows, 1) where it is nothing."""

    parameters: Array
    gradients: Array
    optimizer: Array
    fixed: Array
    temporary: Array


def _resident(machine: Machine, table: Table, structure: Structure) -> _Resident:
    """States, fixed buffers and temporaries of gradients; ``table`` holds :data:`_RESIDENT_COLUMNS`."""
    held, held_index = table.distinct(_HELD_COLUMNS)
    holds = held_elements(held, structure)
    dense, expert = holds.dense[held_index], holds.expert[held_index]
    bytes_table, bytes_index = table.distinct(STATE_COLUMNS)
    per = state_bytes(bytes_table, machine.compute_capability)
    over_dense, over_expert = (1.0 / group for group in data_parallel(table))

    def states(whole: Array, shared: Array) -> Array:
        full, cut = np.take(whole, bytes_index), np.take(shared, bytes_index)
        on_dense, on_expert = full + cut * over_dense, full + cut * over_expert
        return dense * on_dense[:, None] + expert * on_expert[:, None]

    parameters = states(per.parameter_whole, per.parameter_shared)
    if per.copies.any():
        parameters = parameters + (holds.gemm + holds.expert)[held_index] * np.take(per.copies, bytes_index)[:, None]
    optimizer = states(per.optimizer_whole, per.optimizer_shared)
    if per.other_whole.any() or per.other_shared.any():
        other = np.take(per.other_whole, bytes_index) + np.take(per.other_shared, bytes_index) * over_dense
        optimizer = optimizer + holds.other[held_index] * other[:, None]
    return _Resident(
        parameters,
        states(per.gradient_whole, per.gradient_shared),
        optimizer,
        _fixed(machine, held, structure)[held_index],
        _gradient_temporaries(table, structure, holds.largest[held_index]),
    )


def _gradient_temporaries(table: Table, structure: Structure, largest: Array) -> Array:
    """Gathered parameters and gradients before they reach the main buffer; shape (rows, moments)."""
    # Without fused accumulation a weight's 16-bit gradient exists until it is added to the main buffer.
    found: Array = (1.0 - table["fused_gradient_accumulation"])[:, None] * 2.0 * largest
    if (table["sharding"] >= 2).any():
        found = found + _sharding_buffers(table, structure)
    return found


def _fixed(machine: Machine, held: Table, structure: Structure) -> Array:
    """Workspaces and dummy gradients, which depend on weights and pipeline only; shape (held rows, moments)."""
    present = structure.counts > 0
    # A dummy gradient depends on how weights are cut and on which parts a stage holds: few of either.
    holdings, holding_of = np.unique(present.reshape(-1, present.shape[2]), axis=0, return_inverse=True)
    cut, cut_of_row = held.distinct((*CUT_COLUMNS, "fused_gradient_accumulation"))
    dummies = np.stack(
        [dummy_gradients(cut, structure.parts, np.tile(holding, (cut.rows, 1))) for holding in holdings], axis=1
    )
    pipeline = held["_pipeline"].astype(np.int64)
    chosen = holding_of.reshape(present.shape[:2])[pipeline]
    fixed: Array = workspaces(machine, held, structure) + dummies[cut_of_row[:, None], chosen]
    return fixed


def _sharding_buffers(extended: Table, structure: Structure) -> Array:
    """Gathered parameters and unreduced gradients of sharded training; shape (rows, moments)."""
    held, index = extended.distinct((*_HELD_COLUMNS, "sharding", "overlap_grad_reduce", "overlap_param_gather"))
    counted = elements(structure.parts, cut_of(held))
    layer = (counted.dense + counted.expert)[:, None, :]
    counts = structure.counts[held["_pipeline"].astype(np.int64)]
    largest = ((counts > 0) * layer)[:, :, :-2].max(axis=2, initial=0.0)
    root = (counts * layer)[:, :, -2:].sum(axis=2)
    return sharding_buffers(held, largest, root, (counts * layer).sum(axis=2))[index]


def _activations(architecture: Architecture, extended: Table, structure: Structure) -> tuple[Array, Array, Array]:
    """Saved bytes alive, the climb above them, and the stage's message buffers; each of shape (rows, moments)."""
    varying = {name for name, column in extended.columns.items() if len(column.levels) > 1}
    # In most searches every row differs in what activations depend on; then looking for equal ones costs in vain.
    joint, joint_index = (extended, None) if varying <= _JOINT_OR_PIPELINE else extended.distinct(JOINT_COLUMNS)
    pipeline = joint["_pipeline"].astype(np.int64)
    alive, peak, messages = _folded(architecture, joint, structure, pipeline)
    in_blocks = np.flatnonzero(np.take(structure.recomputed_runs.sum(axis=(1, 2)), pipeline))
    if in_blocks.size:
        parts_alive, plain, rebuilt = live_parts(architecture, joint.take(in_blocks), structure)
        alive[in_blocks] = parts_alive.sum(axis=2)
        peak[in_blocks] = np.maximum(np.maximum(plain.max(axis=2), rebuilt.max(axis=2)), 0.0)
    if joint_index is None:
        return alive, peak, messages
    return (
        np.take(alive, joint_index, axis=0),
        np.take(peak, joint_index, axis=0),
        np.take(messages, joint_index, axis=0),
    )


def _folded(
    architecture: Architecture, joint: Table, structure: Structure, pipeline: NDArray[np.int64]
) -> tuple[Array, Array, Array]:
    """What :func:`live_parts` says over all parts, where all layers are recomputed or none, and ``stage_buffers``."""
    layers, layer_index = joint.distinct(LAYER_COLUMNS)
    shard = shard_of(layers)
    memory = [layer_memory(part, shard, architecture.hidden) for part in structure.parts]

    def stacked(name: str) -> Array:
        return np.stack([getattr(part, name) for part in memory], axis=1)

    group, everything = _recompute_groups(layers, len(memory))
    size, redone = group[:, 0], everything[:, 0]
    kept = np.where(redone, stacked("kept_full") / size, stacked("kept"))
    climb = np.where(redone, stacked("transient_full") + (size - 1.0) * stacked("whole"), stacked("transient"))
    share = _chunk_share(structure, np.arange(structure.counts.shape[0]))
    live = LayerBytes(kept, climb, np.ravel(redone), *stage_tensors(architecture, layers, shard, structure))
    return fold_live(structure, pipeline, layer_index, live, share, joint["pp"] > 1)


def live_parts(architecture: Architecture, joint: Table, structure: Structure) -> tuple[Array, Array, Array]:
    """Part by part: saved bytes alive, and how high the backward pass of a layer of it climbs above all of them.

    Args:
        architecture: The model.
        joint: Rows with :data:`JOINT_COLUMNS`.
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
    group, everything = _recompute_groups(joint, kept.shape[2])
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
    share = _chunk_share(structure, pipeline)
    decoder = slice(0, -2)
    unrecomputed = once[:, :, decoder].sum(axis=2) * share
    before = np.repeat(once[:, :, -1:], runs.shape[2], axis=2)
    before[:, :, -1] = 0.0
    before[:, :, -2] += unrecomputed + (redone_runs * kept_full)[:, :, decoder].sum(axis=2) * share
    plain = np.where(runs > redone_runs, climb - before, -np.inf)
    before[:, :, decoder] += unrecomputed[:, :, None]
    rebuilt = np.where(redone_runs > 0, climb_full - before, -np.inf)
    return alive, plain, rebuilt


def _recompute_groups(joint: Table, parts: int) -> tuple[Array, NDArray[np.bool_]]:
    """Layers per checkpoint by part, (rows, 1, parts), and whether every layer is recomputed, (rows, 1, 1)."""
    full = of_levels(joint, "recompute", lambda level: float(level == "full")) > 0
    uniform = of_levels(joint, "recompute_method", lambda level: float(level == "uniform")) > 0
    declared = joint["recompute_layers"]
    counted = ~np.isnan(declared)
    size = np.where(full & uniform & counted, np.maximum(np.nan_to_num(declared), 1.0), 1.0)
    group = np.ones((joint.rows, 1, parts))
    group[:, :, :-2] = size[:, None, None]
    return group, (full & (uniform | ~counted))[:, None, None]


def _chunk_share(structure: Structure, pipeline: NDArray[np.int64]) -> Array:
    """Share of a stage's layers that its largest virtual stage holds; shape (rows, moments)."""
    layers = structure.counts[pipeline][:, :, :-2].sum(axis=2)
    share: Array = np.minimum(structure.chunk_layers[pipeline] / np.maximum(layers, 1.0), 1.0)
    return share
