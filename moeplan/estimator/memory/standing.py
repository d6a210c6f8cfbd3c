"""What a rank holds whatever the micro batch: states, fixed buffers, temporaries of gradients and of the optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from moeplan.estimator.machine import Machine
from moeplan.estimator.memory.buffers import optimizer_temporaries, sharding_buffers, workspaces
from moeplan.estimator.memory.states import (
    STATE_COLUMNS,
    Held,
    data_parallel,
    dummy_gradients,
    elements,
    state_bytes,
)
from moeplan.estimator.shard import CUT_COLUMNS, cut_of
from moeplan.estimator.stages import Structure
from moeplan.estimator.table import Codes, Table
from moeplan.operators.base import Array

_HELD_COLUMNS: tuple[str, ...] = (*CUT_COLUMNS, "fused_gradient_accumulation", "_pipeline")
STANDING_COLUMNS: tuple[str, ...] = tuple(
    dict.fromkeys(
        (*_HELD_COLUMNS, *STATE_COLUMNS, "gpus", "pp", "overlap_grad_reduce", "overlap_param_gather")  # sharded buffers
    )
)
"""Columns that :func:`standing` reads, ``_pipeline`` being the row of the structure: far fewer than activations do."""


@dataclass(frozen=True)
class Standing:
    """Bytes that do not depend on the micro batch; arrays of shape (rows, moments).

    Attributes:
        parameters: Weights, with low-precision copies.
        gradients: The gradient buffer.
        optimizer: Master weights and moments.
        fixed: Workspaces and dummy weight gradients.
        temporary: Gathered parameters and gradients on their way to the main buffer; None where there are none.
        stepping: What the optimizer allocates while it runs, when activations are gone; None where it does not.
    """

    parameters: Array
    gradients: Array
    optimizer: Array
    fixed: Array
    temporary: Array | None
    stepping: Array | None

    @cached_property
    def total(self) -> Array:
        """What is there all the time."""
        return self.parameters + self.gradients + self.optimizer + self.fixed


def standing(machine: Machine, table: Table, structure: Structure) -> Standing:
    """Work out what stands in memory; ``table`` holds :data:`STANDING_COLUMNS`."""
    held, held_index = table.distinct(_HELD_COLUMNS)
    holds = Held(held, structure)
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
    return Standing(
        parameters=parameters,
        gradients=states(per.gradient_whole, per.gradient_shared),
        optimizer=optimizer,
        fixed=_fixed(machine, held, structure)[held_index],
        temporary=_gradient_temporaries(table, structure, holds, held_index),
        stepping=optimizer_temporaries(table, optimizer),
    )


def _gradient_temporaries(table: Table, structure: Structure, holds: Held, held_index: Codes) -> Array | None:
    """Gathered parameters and gradients before they reach the main buffer; shape (rows, moments), None for none."""
    found: Array | None = None
    unfused = 1.0 - table["fused_gradient_accumulation"]
    if unfused.any():
        # Without fused accumulation a weight's 16-bit gradient exists until it is added to the main buffer.
        found = unfused[:, None] * 2.0 * holds.largest[held_index]
    if (table["sharding"] >= 2).any():
        buffers = _sharding_buffers(table, structure)
        found = buffers if found is None else found + buffers
    return found


def _fixed(machine: Machine, held: Table, structure: Structure) -> Array:
    """Workspaces and dummy gradients, which depend on weights and pipeline only; shape (held rows, moments)."""
    present = structure.counts > 0
    # A dummy gradient depends on how weights are cut and on which parts a stage holds: few of either.
    holdings, holding_of = np.unique(present.reshape(-1, present.shape[2]), axis=0, return_inverse=True)
    cut, cut_of_row = held.distinct((*CUT_COLUMNS, "fused_gradient_accumulation"))
    dummies = dummy_gradients(cut, structure.parts, holdings)
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
