"""Where the memory of one candidate goes, stage by stage and operator by operator."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from moeplan.estimator.machine import Machine
from moeplan.estimator.memory import stage_memory
from moeplan.estimator.memory.buffers import outside_terms, stage_buffers, workspaces
from moeplan.estimator.memory.layers import walk
from moeplan.estimator.memory.parts import live_parts
from moeplan.estimator.shard import cut_of, shard_of
from moeplan.estimator.stages import Structure
from moeplan.estimator.table import Column, Table
from moeplan.model.architecture import Architecture, Layer
from moeplan.operators.base import Shard


@dataclass(frozen=True)
class StageDetail:
    """One stage at the moment that needs the most.

    Attributes:
        stage: Pipeline stage.
        holds: The operation during whose backward pass the peak is reached.
        parts: Bytes by name, the largest first: ``states of <component>``, ``saved by <operation>``, buffers, and
            ``temporaries of <operation>``. They sum to the stage's ``peak_allocated``.
        outside: Bytes by name beyond that: what the allocator keeps cached, driver context, NCCL, dispatch buffers.
    """

    stage: int
    holds: str
    parts: tuple[tuple[str, float], ...]
    outside: tuple[tuple[str, float], ...]


def detail(
    architecture: Architecture,
    machine: Machine,
    row: Mapping[str, Any],
    structure: Structure,
    factors: Mapping[str, float],
) -> list[StageDetail]:
    """Take one candidate's memory apart.

    Args:
        architecture: The model.
        machine: The GPU.
        row: The candidate, with the names of ``columns.DEFAULTS``.
        structure: Its pipeline with all stages kept.
        factors: Calibration factors.
    """
    table = Table.of_rows([row])
    memory = stage_memory(architecture, machine, table, structure, factors)
    extended = table.with_columns({"_pipeline": Column((0,), structure.index)})
    alive, plain, rebuilt = live_parts(architecture, extended, structure)
    shard = shard_of(extended)
    gemm = workspaces(machine, extended, structure)
    messages = stage_buffers(architecture, extended, shard, structure)
    around = {name: float(size[0]) for name, size in outside_terms(architecture, machine, table).items()}
    needed = memory.peak_reserved[0] + memory.overhead[0]
    found = []
    for stage in np.unique(structure.stage[0]):
        moments = np.flatnonzero(structure.stage[0] == stage)
        moment = int(moments[np.argmax(needed[moments])])
        terms: dict[str, float] = defaultdict(float)
        states = float((memory.parameters + memory.gradients + memory.optimizer)[0, moment])
        for component, share in _state_shares(structure, cut_of(table), moment).items():
            terms[f"states of {component}"] += states * share
        for index, part in enumerate(structure.parts):
            for name, share in _saved_shares(part, shard, architecture.hidden).items():
                terms[f"saved by {name}"] += float(alive[0, moment, index]) * share
        holder = _holder(architecture, structure, shard, plain[0, moment], rebuilt[0, moment])
        terms[f"temporaries of {holder}"] += float(memory.transient[0, moment])
        spaces, held = float(gemm[0, moment]), float(messages[0, moment])
        terms["GEMM workspaces"] += spaces
        terms["messages and gather buffers"] += held
        terms["dummy weight gradients"] += float(memory.buffers[0, moment]) - spaces - held
        cached = float((memory.peak_reserved - memory.peak_allocated)[0, moment])
        beyond = {"cached by the allocator": cached, **around}
        found.append(StageDetail(int(stage), holder, _largest_first(terms), _largest_first(beyond)))
    return found


def _largest_first(terms: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    return tuple(sorted(((name, size) for name, size in terms.items() if size), key=lambda item: -item[1]))


def _state_shares(structure: Structure, shard: Shard, moment: int) -> dict[str, float]:
    """Each component's share of a stage's parameters."""
    elements: dict[str, float] = defaultdict(float)
    embedding = len(structure.parts) - 2
    for index, part in enumerate(structure.parts):
        count = structure.counts[0, moment, index]
        if index == embedding:
            count = count + structure.embedding_copies[0, moment]
        for weight in part.weights(shard):
            elements[weight.component] += float(count * weight.elements[0])
    total = sum(elements.values()) or 1.0
    return {component: count / total for component, count in elements.items()}


def _saved_shares(part: Layer, shard: Shard, hidden: int) -> dict[str, float]:
    """Each operation's share of what one layer keeps; a recomputed layer keeps its input only."""
    recomputed = bool(shard.value("recompute.full")[0]) and len(part.operators) > 1
    points = walk(part, shard, hidden)
    kept: dict[str, float] = defaultdict(float)
    for point in points:
        kept[point.name] += float(point.kept[0])
    total = sum(kept.values())
    if recomputed and points and total:
        return {"recomputed layers": 1.0}
    return {name: size / total for name, size in kept.items()} if total else {}


def _holder(
    architecture: Architecture, structure: Structure, shard: Shard, plain: np.ndarray, rebuilt: np.ndarray
) -> str:
    """The operation at the top of the highest climb."""
    highest = np.maximum(plain, rebuilt)
    if not np.isfinite(highest).any() or highest.max() <= 0:
        return "optimizer step"
    part = int(np.argmax(highest))
    points = walk(structure.parts[part], shard, architecture.hidden)
    full = rebuilt[part] > plain[part]
    heights = [float((point.climb_full if full else point.climb)[0]) for point in points]
    return points[int(np.argmax(heights))].name
