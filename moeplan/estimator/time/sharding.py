"""What happens once per step outside the layers: gradient reduction, parameter gathering and the optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from moeplan.estimator.machine import Machine
from moeplan.estimator.precision import GRADIENT_BYTES, OPTIMIZER_MOMENTS, STATE_BYTES, precision
from moeplan.estimator.shard import CUT_COLUMNS, cut_of, of_levels
from moeplan.estimator.stages import Structure
from moeplan.estimator.table import Codes, Column, Table
from moeplan.estimator.time.coefficients import coefficients
from moeplan.estimator.time.collectives import Links
from moeplan.estimator.time.efficiency import Kernels
from moeplan.operators.base import Array

STEP_COLUMNS: tuple[str, ...] = (
    "gpus",
    "tp",
    "pp",
    "cp",
    "ep",
    "etp",
    "framework",
    "precision",
    "optimizer",
    "sharding",
    "state_dtype",
    "gradient_dtype",
    "offload_fraction",
)


@dataclass(frozen=True)
class StepWork:
    """Per-step work of the stage that holds most parameters; arrays of shape (rows,).

    Attributes:
        reduce: Seconds to reduce (all-reduce or reduce-scatter) all gradients once.
        gather: Seconds to gather all parameters once; 0 where they are replicated.
        optimizer: Seconds of the optimizer step.
        elements: Parameters on the rank.
    """

    reduce: Array
    gather: Array
    optimizer: Array
    elements: Array


def step_work(
    machine: Machine, table: Table, structure: Structure, factors: Mapping[str, float]
) -> tuple[StepWork, Codes]:
    """Price the per-step work on the distinct rows that decide it.

    Returns:
        The work over distinct rows, and each table row's distinct row.
    """
    pipelines = Column(tuple(range(structure.counts.shape[0])), structure.index)
    distinct, index = table.with_columns({"_pipeline": pipelines}).distinct((*STEP_COLUMNS, "_pipeline"))
    dense, expert = _elements(structure, distinct)
    links, kernels = Links(machine, factors), Kernels(machine, factors)
    tp, ep, etp, gpus, pp = (distinct[name] for name in ("tp", "ep", "etp", "gpus", "pp"))
    dense_span = links.span(gpus / (tp * pp), tp)
    expert_span = links.span(gpus / (ep * etp * pp), ep * etp)
    gradient = of_levels(distinct, "gradient_dtype", lambda name: GRADIENT_BYTES.get(name, 4.0))
    sent = of_levels(distinct, "precision", lambda name: precision(name).collective)
    sharded = distinct["sharding"] >= 1
    passes = np.where(sharded, 1.0, 2.0)
    reduce = sum(
        np.where(
            sharded,
            links.ring_s(span, count * gradient),
            links.ring_s(span, count * gradient, 2.0),
        )
        for span, count in ((dense_span, dense), (expert_span, expert))
    )
    gather = (links.ring_s(dense_span, dense * sent) + links.ring_s(expert_span, expert * sent)) * (2.0 - passes)
    shards = np.where(sharded, 1 / dense_span.size, 1.0), np.where(sharded, 1 / expert_span.size, 1.0)
    owned = dense * shards[0] + expert * shards[1]
    optimizer = _optimizer_s(kernels, distinct, owned, dense + expert, gradient)
    return StepWork(np.asarray(reduce), gather, optimizer, dense + expert), index


def _elements(structure: Structure, table: Table) -> tuple[Array, Array]:
    """Dense and expert parameters on the fullest stage; shape (rows,)."""
    cuts, index = table.distinct(CUT_COLUMNS)
    shard = cut_of(cuts)
    counted = np.zeros((2, cuts.rows, len(structure.parts)))
    for position, part in enumerate(structure.parts):
        for weight in part.weights(shard):
            counted[int(weight.expert), :, position] += weight.elements
    held = structure.counts[table["_pipeline"].astype(np.int64)]
    dense, expert = (np.einsum("rmp,rp->rm", held, counted[kind][index]) for kind in (0, 1))
    fullest = np.argmax(dense + expert, axis=1)
    rows = np.arange(table.rows)
    return dense[rows, fullest], expert[rows, fullest]


def _optimizer_s(kernels: Kernels, table: Table, owned: Array, held: Array, gradient: Array) -> Array:
    """Memory traffic of the optimizer step and its fixed part.

    Per owned parameter: the gradient is read for its norm and for the update, every moment and the fp32 master are read
    and written, the 16-bit parameter is written (fused Adam); per held parameter the gradient buffer is cleared, and
    low-precision copies are cast once. The offloaded share is updated by the CPU: gradients go down and parameters come
    up over PCIe, and the update itself runs at the host's memory bandwidth per GPU.
    """
    data = coefficients()["optimizer"]
    state = of_levels(table, "state_dtype", lambda name: STATE_BYTES.get(name, 4.0))
    moments = of_levels(table, "optimizer", lambda name: OPTIMIZER_MOMENTS.get(name, 2.0))
    copies = of_levels(table, "precision", lambda name: precision(name).weight_copies)
    per_owned = 2 * gradient + 2 * moments * state + 8.0 + 2.0
    per_held = gradient + np.where(copies > 0, 2.0 + copies, 0.0)
    offloaded = np.clip(table["offload_fraction"], 0.0, 1.0)
    rate = kernels.memory_rate("optimizer")
    device = (owned * (1 - offloaded) * per_owned + held * per_held) / rate
    host = (
        owned
        * offloaded
        * (
            np.maximum(gradient, 2.0) / Links(kernels.machine, kernels.factors).host_rate
            + per_owned / (data["host_gb_per_s"] * 1e9)
        )
    )
    seconds: Array = device + host + data["fixed_ms"] * 1e-3
    return seconds
