"""One optimizer step: layers folded into stages, stages into a pipeline, and what happens once per step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeplan.estimator.fold import pipelines_of, stages_of, total
from moeplan.estimator.machine import Machine
from moeplan.estimator.shard import shard_of
from moeplan.estimator.stages import Structure, micro_batches, trained_mtp_layers
from moeplan.estimator.table import Codes, Column, Table
from moeplan.estimator.time.coefficients import coefficients
from moeplan.estimator.time.collectives import Links
from moeplan.estimator.time.items import group_limit
from moeplan.estimator.time.layers import LayerTime, layer_times
from moeplan.estimator.time.schedule import bubble_s
from moeplan.estimator.time.sharding import StepWork, step_work
from moeplan.model.architecture import Architecture
from moeplan.operators.base import Array


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step; arrays of shape (rows,) that add up to :attr:`step_s`.

    Attributes:
        compute_s: Kernels of the slowest stage, recomputation included.
        exposed_communication_s: Communication that nothing hides.
        bubble_s: Pipeline idle time of the slowest stage.
        optimizer_s: The optimizer step.
    """

    compute_s: Array
    exposed_communication_s: Array
    bubble_s: Array
    optimizer_s: Array

    @property
    def step_s(self) -> Array:
        """The whole step: exactly the sum of the four terms."""
        return self.compute_s + self.exposed_communication_s + self.bubble_s + self.optimizer_s


def step_time(
    architecture: Architecture,
    machine: Machine,
    table: Table,
    structure: Structure,
    factors: Mapping[str, float] | None = None,
) -> StepTime:
    """Time every candidate of a table.

    Args:
        architecture: The model.
        machine: The GPU and its links.
        table: Candidates with the columns of ``columns.DEFAULTS``.
        structure: The pipelines of the same table.
        factors: Calibration factors on speed (``gemm``, ``attention``, ``hbm``, ``nvlink``, ``nic``) and on the host's
            cost (``host_overhead``); absent ones are 1.
    """
    found = step_terms(architecture, machine, table, structure, factors or {})
    return StepTime(found.compute, found.inside + found.neighbours + found.once, found.bubble, found.optimizer)


@dataclass(frozen=True)
class StepTerms:
    """What a step is made of, before it is folded into :class:`StepTime`; arrays of shape (rows,), in seconds.

    Attributes:
        compute: Kernels of the slowest stage.
        inside: Exposed communication inside layers.
        neighbours: Exposed messages between pipeline stages.
        once: Exposed gradient reduction and parameter gathering.
        bubble: Pipeline idle time.
        optimizer: The optimizer step.
        stage: Moment of the structure that sets the pace.
    """

    compute: Array
    inside: Array
    neighbours: Array
    once: Array
    bubble: Array
    optimizer: Array
    stage: NDArray[np.int64]


def step_terms(
    architecture: Architecture, machine: Machine, table: Table, structure: Structure, factors: Mapping[str, float]
) -> StepTerms:
    """The terms of :func:`step_time`, apart."""
    stages, stage_of = _stages(architecture, machine, table, structure, factors)
    work, work_of = step_work(machine, table, structure, factors)
    m = micro_batches(table)
    return StepTerms(
        compute=np.take(stages.compute, stage_of) * m,
        inside=np.take(stages.exposed, stage_of) * m
        + np.take(stages.hidden, stage_of) * np.minimum(_unpaired(table), m),
        neighbours=_neighbours_s(machine, table, stages, stage_of, m, factors),
        once=_once_per_step_s(table, stages, stage_of, work, work_of, m),
        bubble=np.where(table["pp"] > 1, np.take(stages.bubble, stage_of), 0.0),
        optimizer=np.take(work.optimizer, work_of),
        stage=np.take(stages.slowest, stage_of),
    )


def _unpaired(table: Table) -> Array:
    """Micro batches whose expert exchange finds no other to hide behind: those that fill the pipeline, and one more.

    On the last stage of an interleaved pipeline (VPP-1) PP chunks of VPP to a micro batch run forward alone.
    """
    vpp = np.maximum(table["vpp"], 1.0)
    return np.asarray(((vpp - 1) * table["pp"] + 1) / vpp)


_ALWAYS = ("backward", "replay", "exposed_forward", "exposed_backward")


@dataclass(frozen=True)
class _Stages:
    """The slowest stage of each distinct (layer cut, pipeline), per micro batch; arrays of shape (stage rows,).

    Attributes:
        compute: Kernels, replays included.
        exposed: Exposed communication inside layers.
        hidden: Expert exchange inside layers that another micro batch hides.
        forward: Kernels of forward: what gathered parameters hide behind.
        backward: Kernels of backward: what reduced gradients hide behind.
        bubble: Idle seconds over the whole step.
        message: Bytes that pass between neighbouring stages per micro batch and virtual stage.
        virtual: Virtual stages per stage.
        slowest: Moment of the structure that sets the pace.
    """

    compute: Array
    exposed: Array
    hidden: Array
    forward: Array
    backward: Array
    bubble: Array
    message: Array
    virtual: Array
    slowest: NDArray[np.int64]


def _stages(
    architecture: Architecture,
    machine: Machine,
    table: Table,
    structure: Structure,
    factors: Mapping[str, float],
) -> tuple[_Stages, Codes]:
    times, layer_of, layers = layer_times(structure.parts, machine, table, factors, group_limit(architecture))
    keys = {
        "_layer": Column(tuple(range(layers.rows)), layer_of),
        "_pipeline": Column(tuple(range(structure.counts.shape[0])), structure.index),
    }
    rows, index = table.with_columns(keys).distinct(keys)
    layer, pipeline = (rows[name].astype(np.int64) for name in keys)
    distinct = Table(structure.table.through(pipeline), pipeline.size)
    # Under full recomputation of every layer all runs are replayed; under block recomputation the structure says which.
    in_blocks = ~structure.table.equals("_block_layers", None)
    block = in_blocks[pipeline]

    whole = [sum((getattr(time, name) for name in _ALWAYS), time.forward) for time in times]
    slowest = _slowest(structure, layer, pipeline, whole, [time.replay_full for time in times], in_blocks)
    moment = pipeline * structure.runs.shape[1] + slowest
    runs = _by_part(structure.runs, moment)
    redone = runs
    if block.any():
        redone = np.where(block, _by_part(structure.recomputed_runs, moment), runs)

    def fold(name: str, counts: Array) -> Array:
        # Part after part, so that a row has the same bits whatever stands beside it.
        found = np.zeros(distinct.rows)
        for position, time in enumerate(times):
            found += getattr(time, name).take(layer) * counts[position]
        return found

    forward, weight = fold("forward", runs), fold("weight", runs)
    backward = fold("backward", runs) + fold("replay", runs) + fold("replay_full", redone)
    exposed = fold("exposed_forward", runs) + fold("exposed_backward", runs)
    dual = distinct.equals("schedule", "dualpipe")
    # DualPipe's rank holds two stages and runs half of the micro batches through each.
    half = np.where(dual, 0.5, 1.0)
    pace = (forward + backward + exposed) * half
    everything, all_weight = _whole_model(architecture, times, layer, distinct, redone, runs)
    virtual = np.maximum(distinct["vpp"], 1.0)
    bubble = bubble_s(
        distinct["pp"],
        virtual,
        distinct.equals("schedule", "zero_bubble"),
        dual,
        np.maximum(everything - pace, 0.0),
        np.maximum(all_weight - weight * half, 0.0),
        backward * half,
        pace,
        weight * half,
    )
    message = _message(architecture, layers)[layer]
    found = _Stages(
        compute=(forward + backward) * half,
        exposed=exposed * half,
        hidden=fold("hidden", runs) * half,
        forward=forward * half,
        backward=backward * half,
        bubble=bubble,
        message=message,
        virtual=virtual,
        slowest=slowest,
    )
    return found, index


def _by_part(counts: Array, moment: NDArray[np.int64]) -> Array:
    """Counts of each part at one moment per row; shape (parts, rows)."""
    flat = counts.reshape(-1, counts.shape[2])
    return np.stack([np.take(flat[:, part], moment) for part in range(flat.shape[1])])


def _slowest(
    structure: Structure,
    layer: Codes,
    pipeline: Codes,
    whole: Sequence[Array],
    replayed: Sequence[Array],
    block: NDArray[np.bool_],
) -> Codes:
    """The first moment of the stage that takes the longest per micro batch; shape (rows,).

    Args:
        structure: The pipelines.
        layer: Row of the seconds below for each row; shape (rows,).
        pipeline: Pipeline of each row; shape (rows,).
        whole: Seconds of one layer of each part but the replay of whole layers; shape (layers,) each.
        replayed: Seconds of that replay; the same.
        block: Pipelines on which only the first layers of each stage are replayed; shape (pipelines,).
    """
    order, groups = pipelines_of(pipeline, structure.counts.shape[0])
    everything = [own + again for own, again in zip(whole, replayed, strict=True)]
    # Filled in the order of pipelines, which is contiguous, and put back into the table's at the end.
    slowest = np.zeros(order.size, np.int32)
    for index, part in groups:
        stages = stages_of(structure, index)
        if len(stages) == 1:
            continue
        which = layer.take(order[part])
        own = [seconds.take(which) for seconds in (whole if block[index] else everything)]
        again = [seconds.take(which) for seconds in replayed] if block[index] else []
        longest, place = np.full(which.size, -np.inf), slowest[part]
        for moments in stages:
            seconds = total(own, structure.runs[index, moments.start])
            if block[index]:
                seconds += total(again, structure.recomputed_runs[index, moments.start])
            # Later stages have larger numbers, so that the last one that was slower is the largest.
            np.maximum(place, (seconds > longest) * np.int32(moments.start), out=place)
            np.maximum(longest, seconds, out=longest)
    found = np.empty(order.size, np.int64)
    found[order] = slowest
    return found


def _whole_model(
    architecture: Architecture,
    times: list[LayerTime],
    layer: NDArray[np.integer[Any]],
    table: Table,
    redone: Array,
    runs: Array,
) -> tuple[Array, Array]:
    """Seconds of one micro batch over all stages (forward, backward, exposed), and the weight gradients among them."""
    kinds = np.bincount(np.array(architecture.layer_kinds), minlength=len(architecture.kinds)).astype(float)
    mtp = np.array([trained_mtp_layers(architecture, level) for level in table.columns["mtp_layers"].levels], float)
    trained = table.columns["mtp_layers"].spread(mtp)
    counts: list[Array | float] = list(kinds)
    if architecture.mtp_layer is not None:
        counts.append(trained)
    counts += [1.0, 1.0 + trained]
    replayed = redone.sum(axis=0) / np.maximum(runs.sum(axis=0), 1e-30)
    everything = np.zeros(table.rows)
    weight = np.zeros(table.rows)
    for position, time in enumerate(times):
        plain = time.forward + time.backward + time.replay + time.exposed_forward + time.exposed_backward
        everything += counts[position] * (np.take(plain, layer) + replayed * np.take(time.replay_full, layer))
        weight += counts[position] * np.take(time.weight, layer)
    return everything, weight


def _message(architecture: Architecture, layers: Table) -> Array:
    """Bytes between neighbouring stages: the residual stream of one micro batch."""
    shard = shard_of(layers)
    return np.asarray(shard.sequence_tokens * architecture.hidden * shard.value("activation_bytes", 2.0))


def _neighbours_s(
    machine: Machine,
    table: Table,
    stages: _Stages,
    stage_of: Codes,
    m: Array,
    factors: Mapping[str, float],
) -> Array:
    """Exposed messages between stages: two per micro batch and virtual stage.

    The plain schedule waits for each (Megatron's ``send_forward_recv_backward``); the interleaved one overlaps them
    with computation (``overlap_p2p_comm``), which leaves the fitted share ``p2p_exposed``.
    """
    pp = table["pp"]
    links = Links(machine, factors)
    span = links.span(pp, table["gpus"] / pp)
    message = links.neighbour_s(span, np.take(stages.message, stage_of))
    virtual = np.take(stages.virtual, stage_of)
    exposed = np.where(virtual > 1, coefficients()["overlap"]["p2p_exposed"] * virtual, 1.0)
    return np.where(pp > 1, 2.0 * m * message * exposed, 0.0)


def _once_per_step_s(table: Table, stages: _Stages, stage_of: Codes, work: StepWork, work_of: Codes, m: Array) -> Array:
    """Exposed gradient reduction and parameter gathering."""
    leak = coefficients()["overlap"]["interference"]
    forward, backward = np.take(stages.forward, stage_of), np.take(stages.backward, stage_of)
    reduce, gather = np.take(work.reduce, work_of), np.take(work.gather, work_of)
    sharding = table["sharding"]
    reductions = np.where(sharding >= 2, m, 1.0)
    regathered = sharding >= 3

    def left(communication: Array, computation: Array, overlapped: Array) -> Array:
        hidden = np.minimum(communication, computation)
        return np.asarray(np.where(overlapped > 0, communication - (1 - leak) * hidden, communication))

    reduced = left(reduce, backward, table["overlap_grad_reduce"]) * reductions
    gathered = left(gather, forward, table["overlap_param_gather"])
    # Fully sharded parameters are gathered again for backward, beside it and the reduction.
    again = left(gather + reduce, backward, table["overlap_param_gather"]) * m
    return np.asarray(np.where(regathered, gathered * m + again, reduced + gathered))
