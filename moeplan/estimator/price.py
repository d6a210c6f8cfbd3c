"""From a table of candidates to their prices: does it fit, how fast is it, what binds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeplan.errors import PlanError
from moeplan.estimator.machine import Machine
from moeplan.estimator.memory import PeakMemory, StageMemory, peak_memory, stage_memory
from moeplan.estimator.precision import precision
from moeplan.estimator.shard import of_levels
from moeplan.estimator.stages import Structure, structure
from moeplan.estimator.table import Codes, Table
from moeplan.estimator.time import StepTime, step_time
from moeplan.model.architecture import Architecture
from moeplan.model.flops import model_flops_per_token
from moeplan.operators.base import Array

GIB = float(1 << 30)

DEFAULT_MARGIN_GIB = 1.0
"""Memory left free by default: what a careful engineer keeps for fragmentation that no model foresees."""


@dataclass(frozen=True)
class Prices:
    """What each candidate costs; every array has shape (rows,). Memory is that of the fullest rank.

    Attributes:
        peak_allocated_bytes: What ``torch.cuda.max_memory_allocated()`` would read.
        peak_reserved_bytes: What ``torch.cuda.max_memory_reserved()`` would read.
        device_bytes: Reserved plus what lives outside the allocator (driver context, NCCL).
        headroom_bytes: Usable memory less ``device_bytes`` and the margin; negative where it does not fit.
        fits: ``headroom_bytes >= 0``.
        stage: Pipeline stage that needs the most.
        step_s: Seconds per optimizer step, the sum of the next four.
        compute_s: Arithmetic and memory-bound kernels, recomputation included.
        exposed_communication_s: Communication that nothing hides.
        bubble_s: Pipeline idle time.
        optimizer_s: The optimizer step.
        tokens_per_s: Tokens of all GPUs together.
        model_tflops_per_gpu: By Megatron's formula: what the model needs, recomputation not counted.
        mfu: ``model_tflops_per_gpu`` over the dense peak of the plan's precision.
    """

    peak_allocated_bytes: Array
    peak_reserved_bytes: Array
    device_bytes: Array
    headroom_bytes: Array
    fits: NDArray[np.bool_]
    stage: NDArray[np.int64]
    step_s: Array
    compute_s: Array
    exposed_communication_s: Array
    bubble_s: Array
    optimizer_s: Array
    tokens_per_s: Array
    model_tflops_per_gpu: Array
    mfu: Array

    def take(self, index: NDArray[Any] | slice) -> Prices:
        """The prices of some rows."""
        return Prices(*(getattr(self, field.name)[index] for field in fields(self)))

    @staticmethod
    def join(parts: list[Prices]) -> Prices:
        """The prices of several tables, one after the other."""
        return Prices(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Prices)))


@dataclass(frozen=True)
class Fit:
    """What each candidate needs of a GPU's memory: enough to tell which ones are worth timing.

    Attributes:
        table: The candidates.
        stages: Their pipelines.
        memory: Their fullest moments.
        device_bytes: Reserved plus what lives outside the allocator; shape (rows,).
        headroom_bytes: Usable memory less ``device_bytes`` and the margin; shape (rows,).
    """

    table: Table
    stages: Structure
    memory: PeakMemory
    device_bytes: Array
    headroom_bytes: Array

    def take(self, rows: Codes) -> Fit:
        """Some rows."""
        memory = PeakMemory(*(getattr(self.memory, field.name)[rows] for field in fields(PeakMemory)))
        stages = replace(self.stages, index=self.stages.index[rows])
        return Fit(self.table.take(rows), stages, memory, self.device_bytes[rows], self.headroom_bytes[rows])


@dataclass(frozen=True)
class Explanation:
    """One candidate stage by stage: what :func:`price` folds, kept apart.

    Attributes:
        prices: The candidate's prices (arrays of one row).
        structure: Every stage's moments.
        memory: Terms by moment.
        time: The step's terms.
    """

    prices: Prices
    structure: Structure
    memory: StageMemory
    time: StepTime


def price(
    architecture: Architecture,
    machine: Machine,
    table: Table,
    factors: Mapping[str, float] | None = None,
    margin_gib: float = DEFAULT_MARGIN_GIB,
) -> Prices:
    """Price every candidate of a table.

    Args:
        architecture: The model.
        machine: The GPU and its links.
        table: Legal candidates with the columns of ``columns.DEFAULTS``. Large tables are best priced in chunks whose
            rows share layer columns (see ``search/sweep.py``).
        factors: Calibration factors by name; absent ones are 1.
        margin_gib: Memory to leave free.

    Returns:
        Arrays in the table's order.
    """
    return timed(architecture, machine, fit(architecture, machine, table, factors, margin_gib), factors)


def fit(
    architecture: Architecture,
    machine: Machine,
    table: Table,
    factors: Mapping[str, float] | None = None,
    margin_gib: float = DEFAULT_MARGIN_GIB,
) -> Fit:
    """Price the memory of every candidate of a table; the arguments are those of :func:`price`."""
    stages = structure(architecture, table)
    return _fit(machine, table, stages, peak_memory(architecture, machine, table, stages, factors or {}), margin_gib)


def timed(
    architecture: Architecture, machine: Machine, found: Fit, factors: Mapping[str, float] | None = None
) -> Prices:
    """Price the time of candidates whose memory is known already."""
    return _prices(architecture, machine, found, step_time(architecture, machine, found.table, found.stages, factors))


def explain(
    architecture: Architecture,
    machine: Machine,
    row: Mapping[str, Any],
    factors: Mapping[str, float] | None = None,
    margin_gib: float = DEFAULT_MARGIN_GIB,
) -> Explanation:
    """Price one candidate and keep every stage: the same code path on a table of one row."""
    return explain_all(architecture, machine, [row], factors, margin_gib)[0]


def explain_all(
    architecture: Architecture,
    machine: Machine,
    rows: Sequence[Mapping[str, Any]],
    factors: Mapping[str, float] | None = None,
    margin_gib: float = DEFAULT_MARGIN_GIB,
) -> list[Explanation]:
    """Price some candidates together and keep every stage of each."""
    if not rows:
        return []
    table = Table.of_rows(rows)
    stages = structure(architecture, table, all_stages=True)
    memory = stage_memory(architecture, machine, table, stages, factors or {})
    time = step_time(architecture, machine, table, stages, factors)
    prices = _prices(architecture, machine, _fit(machine, table, stages, memory.peak(), margin_gib), time)
    whole = Explanation(prices, stages, memory, time)
    return [_of_row(whole, index) for index in range(table.rows)]


def _of_row(whole: Explanation, row: int) -> Explanation:
    """The explanation of one row: its pipeline without padding, arrays of one row."""
    pipeline = int(whole.structure.index[row])
    moments = int(whole.structure.moments[pipeline])
    structure_changes: dict[str, Any] = {
        field.name: getattr(whole.structure, field.name)[pipeline : pipeline + 1, :moments]
        for field in fields(Structure)
        if field.name not in ("parts", "table", "index", "moments")
    }
    structure_changes["table"] = whole.structure.table.take(slice(pipeline, pipeline + 1))
    structure_changes["index"] = np.zeros(1, np.int64)
    structure_changes["moments"] = whole.structure.moments[pipeline : pipeline + 1]
    terms = {field.name: getattr(whole.memory, field.name)[row : row + 1, :moments] for field in fields(StageMemory)}
    return Explanation(
        prices=whole.prices.take(slice(row, row + 1)),
        structure=replace(whole.structure, **structure_changes),
        memory=StageMemory(**terms),
        time=StepTime(*(getattr(whole.time, field.name)[row : row + 1] for field in fields(StepTime))),
    )


def _fit(machine: Machine, table: Table, stages: Structure, memory: PeakMemory, margin_gib: float) -> Fit:
    device = memory.reserved + memory.overhead
    return Fit(table, stages, memory, device, (machine.usable_gib - margin_gib) * GIB - device)


def _prices(architecture: Architecture, machine: Machine, found: Fit, time: StepTime) -> Prices:
    table, memory, stages = found.table, found.memory, found.stages
    step = time.step_s
    tokens = table["global_batch_size"] * table["sequence_length"] / step
    per_gpu_tflops = tokens / table["gpus"] * _flops_per_token(architecture, table) / 1e12
    return Prices(
        peak_allocated_bytes=memory.allocated,
        peak_reserved_bytes=memory.reserved,
        device_bytes=found.device_bytes,
        headroom_bytes=found.headroom_bytes,
        fits=found.headroom_bytes >= 0,
        stage=stages.stage[stages.index, memory.moment],
        step_s=step,
        compute_s=time.compute_s,
        exposed_communication_s=time.exposed_communication_s,
        bubble_s=time.bubble_s,
        optimizer_s=time.optimizer_s,
        tokens_per_s=tokens,
        model_tflops_per_gpu=per_gpu_tflops,
        mfu=per_gpu_tflops / _peak_tflops(machine, table),
    )


def _flops_per_token(architecture: Architecture, table: Table) -> Array:
    """Model FLOPs per token, worked out once per distinct shape of the question."""
    distinct, index = table.distinct(("sequence_length", "top_k", "mtp_layers"))
    values = []
    for row in map(distinct.row, range(distinct.rows)):
        key = ("flops", *row.values())
        if key not in architecture.memo:
            architecture.memo[key] = model_flops_per_token(architecture, *row.values())
        values.append(architecture.memo[key])
    return np.take(np.array(values, np.float64), index)


def _peak_tflops(machine: Machine, table: Table) -> Array:
    """The GPU's dense peak in each candidate's precision."""
    column = table.columns["precision"]
    # A search's space may name precisions that this GPU has not: only those of its candidates count.
    used = {column.levels[code] for code in np.flatnonzero(np.bincount(column.codes))}
    return of_levels(table, "precision", lambda name: peak(machine, name) if name in used else np.nan)


def peak(machine: Machine, name: str) -> float:
    """Dense peak of a GPU in a precision, in TFLOPS.

    Raises:
        PlanError: The GPU does not compute in that precision.
    """
    tflops = machine.peak_tflops.get(precision(name).compute)
    if not tflops:
        supported = ", ".join(key for key, value in machine.peak_tflops.items() if value)
        raise PlanError("precision", f"{machine.name} does not compute in {name}", f"it does in {supported}")
    return tflops
