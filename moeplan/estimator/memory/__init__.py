"""Memory of every pipeline stage, as the allocator would read it: states, live activations, temporaries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from moeplan.estimator.machine import Machine
from moeplan.estimator.memory.buffers import OUTSIDE_COLUMNS, outside, reserved, stage_tensors
from moeplan.estimator.memory.fold import Blocks, LayerBytes, Ledger, StandingBytes
from moeplan.estimator.memory.layers import layer_memory
from moeplan.estimator.memory.parts import LAYER_COLUMNS, chunk_share, live_parts, recompute_groups
from moeplan.estimator.memory.standing import STANDING_COLUMNS, Standing, standing
from moeplan.estimator.shard import shard_of
from moeplan.estimator.stages import Structure
from moeplan.estimator.table import Codes, Column, Table
from moeplan.model.architecture import Architecture
from moeplan.operators.base import Array

__all__ = ["LAYER_COLUMNS", "PeakMemory", "StageMemory", "live_parts", "peak_memory", "stage_memory"]


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

    def peak(self) -> PeakMemory:
        """The fullest moment of every row."""
        moment = np.argmax(self.peak_allocated, axis=1)
        at = (np.arange(moment.size), moment)
        return PeakMemory(self.peak_allocated[at], self.peak_reserved[at], self.overhead[at], moment)


@dataclass(frozen=True)
class PeakMemory:
    """The fullest moment of every candidate; arrays of shape (rows,).

    Attributes:
        allocated: What ``torch.cuda.max_memory_allocated()`` would read, in bytes.
        reserved: What ``torch.cuda.max_memory_reserved()`` would read.
        overhead: Outside the allocator.
        moment: A moment of the stage that needs it, which is the first of those that need as much.
    """

    allocated: Array
    reserved: Array
    overhead: Array
    moment: Codes


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
    ledger, stands = _ledger(architecture, machine, table, structure)
    moment = ledger.moments()

    def by_row(term: Array | None) -> Array:
        return np.zeros(1) if term is None else np.take(term, ledger.stands, axis=0)

    transient = moment.climb + by_row(stands.temporary)
    if stands.stepping is not None:
        # Activations are gone when the optimizer runs.
        transient = np.maximum(transient, by_row(stands.stepping) - moment.alive)
    overhead = _overhead(architecture, machine, table)
    return StageMemory(
        parameters=by_row(stands.parameters),
        gradients=by_row(stands.gradients),
        optimizer=by_row(stands.optimizer),
        activations=moment.alive,
        transient=transient,
        buffers=by_row(stands.fixed) + moment.around,
        overhead=np.broadcast_to(overhead[:, None], moment.allocated.shape),
        peak_allocated=moment.allocated,
        peak_reserved=reserved(moment.allocated, factors.get("fragmentation", 1.0)),
    )


def peak_memory(
    architecture: Architecture,
    machine: Machine,
    table: Table,
    structure: Structure,
    factors: Mapping[str, float],
) -> PeakMemory:
    """The fullest moment of :func:`stage_memory`, to the same bits, without holding the others."""
    ledger, _ = _ledger(architecture, machine, table, structure)
    allocated, moment = ledger.peak()
    # What is reserved grows with what is allocated, and what lies outside is the same on every stage.
    held = reserved(allocated, factors.get("fragmentation", 1.0))
    return PeakMemory(allocated, held, _overhead(architecture, machine, table), moment)


def _overhead(architecture: Architecture, machine: Machine, table: Table) -> Array:
    """Bytes outside the allocator; shape (rows,)."""
    grids, index = table.distinct(OUTSIDE_COLUMNS)
    return np.take(np.broadcast_to(outside(architecture, machine, grids), grids.rows), index)


def _ledger(
    architecture: Architecture, machine: Machine, table: Table, structure: Structure
) -> tuple[Ledger, Standing]:
    """What is added up at every moment, and of that what stands, term by term."""
    pipelines = structure.counts.shape[0]
    extended = table.with_columns({"_pipeline": Column(tuple(range(pipelines)), structure.index)})
    rows, stands_of = extended.distinct(STANDING_COLUMNS)
    stands = standing(machine, rows, structure)
    layers, layer_of = table.distinct(LAYER_COLUMNS)

    def by_moment(term: Array | None) -> Array | None:
        return None if term is None else np.ascontiguousarray(term.T)

    ledger = Ledger(
        structure=structure,
        layers=_layers(architecture, layers, structure),
        layer=layer_of,
        standing=StandingBytes(
            np.ascontiguousarray(stands.total.T), by_moment(stands.temporary), by_moment(stands.stepping)
        ),
        stands=stands_of,
        share=chunk_share(structure, np.arange(pipelines)),
        blocks=_blocks(architecture, extended, structure),
    )
    return ledger, stands


def _layers(architecture: Architecture, layers: Table, structure: Structure) -> LayerBytes:
    """What layers keep where all of them are recomputed or none; ``layers`` holds :data:`LAYER_COLUMNS`."""
    shard = shard_of(layers)
    memory = [layer_memory(part, shard, architecture.hidden) for part in structure.parts]

    def stacked(name: str) -> Array:
        return np.stack([np.broadcast_to(getattr(part, name), layers.rows) for part in memory])

    group, everything = recompute_groups(layers, len(memory))
    size, redone = group[:, 0].T, everything[:, 0, 0]
    kept = np.where(redone, stacked("kept_full") / size, stacked("kept"))
    climb = np.where(redone, stacked("transient_full") + (size - 1.0) * stacked("whole"), stacked("transient"))
    around = (np.broadcast_to(tensor, layers.rows) for tensor in stage_tensors(architecture, layers, shard, structure))
    return LayerBytes(kept, climb, redone, *around)


def _blocks(architecture: Architecture, extended: Table, structure: Structure) -> Blocks | None:
    """Rows of which the first layers of each virtual stage are recomputed."""
    redone = np.asarray(structure.recomputed_runs.any(axis=(1, 2)))
    if not redone.any():
        return None
    rows = np.flatnonzero(redone[structure.index])
    place = np.full(extended.rows, -1)
    place[rows] = np.arange(rows.size)
    alive, plain, rebuilt = live_parts(architecture, extended.take(rows), structure)
    climb = np.maximum(np.maximum(plain.max(axis=2), rebuilt.max(axis=2)), 0.0)
    return Blocks(place, alive.sum(axis=2).T, climb.T)
