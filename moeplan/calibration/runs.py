"""Measured runs as users and published tables write them: a plan, and what was measured of it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from moeplan.calibration.document import SOFTWARE
from moeplan.errors import PlanError, nearest
from moeplan.plan import Plan, load_plan

# Quantities that a fit can use.
QUANTITIES = ("step_s", "tokens_per_s_per_gpu", "peak_allocated_gib", "peak_reserved_gib")
# What published tables give beside them.
_OTHER = (
    "stages",
    "model_tflops_per_gpu",
    "ran",
    "rank",
    "iteration_s",
    "allocated_after_step_gib",
    "tokens_per_s",
    "mfu",
    "note",
)


@dataclass(frozen=True)
class Run:
    """One measured run.

    Attributes:
        name: Its ``id``, or its place in the file.
        plan: What ran.
        step_s: Measured seconds per step (from tokens per second and GPU where only that is given), or None.
        peak_allocated_gib: Measured, on the fullest rank, or None.
        peak_reserved_gib: Measured, on the fullest rank, or None.
        software: What its software has that a plan cannot say (``document.SOFTWARE``), 0 to 1 by name.
    """

    name: str
    plan: Plan
    step_s: float | None
    peak_allocated_gib: float | None
    peak_reserved_gib: float | None
    software: Mapping[str, float] = field(default_factory=dict)

    @property
    def measured(self) -> bool:
        """Whether there is anything to compare with."""
        return any(value is not None for value in (self.step_s, self.peak_allocated_gib, self.peak_reserved_gib))


def read_runs(path: str | os.PathLike[str]) -> list[Run]:
    """Read a file of runs: a list, or a mapping with a list under ``runs`` or ``cases``.

    Each item is ``{plan, measured}`` and may have an ``id`` and, as the file itself, ``software``: what a plan cannot
    say of it, such as ``{fused_moe: true}``. ``plan`` is a mapping, or the path of a plan file, looked for beside the
    file of runs too.

    Raises:
        PlanError: The file cannot be read, or an item is no run.
    """
    from moeplan.documents import read_list_or_mapping

    where = os.fspath(path)
    document = read_list_or_mapping(path, limit_bytes=64 * 2**20)
    items = document if isinstance(document, list) else document.get("runs", document.get("cases"))
    if not isinstance(items, list):
        raise PlanError(where, "has no list of runs", "write a list of {plan, measured}, or one under 'runs'")
    if not items:
        raise PlanError(where, "has no runs", "write at least one {plan, measured}")
    common = _software(document, where) if isinstance(document, Mapping) else {}
    runs = [
        _run(item, f"{where}: run {position}", Path(where).parent, common) for position, item in enumerate(items, 1)
    ]
    return _unique(runs)


def _software(document: Mapping[str, Any], where: str) -> dict[str, float]:
    """What a file or a run says of its software."""
    told = document.get("software", {})
    if not isinstance(told, Mapping):
        raise PlanError(where, "software is no mapping", f"write {{{', '.join(SOFTWARE)}}} as true or false")
    for name, share in told.items():
        if name not in SOFTWARE:
            raise PlanError(where, f"software has an unknown key {name!r}", nearest(str(name), SOFTWARE, "remove it"))
        if not isinstance(share, bool | int | float) or not 0 <= share <= 1:
            raise PlanError(
                where, f"software.{name} is {str(share)[:40]!r}", "say true, false or a share between 0 and 1"
            )
    return {str(name): float(share) for name, share in told.items()}


def _run(item: Any, where: str, folder: Path, software: Mapping[str, float]) -> Run:
    if not isinstance(item, Mapping):
        raise PlanError(where, "is no mapping", "write {plan: ..., measured: {step_s: ...}}")
    for key in ("plan", "measured"):
        if key not in item:
            raise PlanError(where, f"has no {key!r}", "write {plan: ..., measured: {step_s: ...}}")
    measured = item["measured"]
    if not isinstance(measured, Mapping):
        raise PlanError(where, "measured is no mapping", f"give one of {', '.join(QUANTITIES)}")
    for key in measured:
        if key not in (*QUANTITIES, *_OTHER):
            raise PlanError(where, f"measured has an unknown key {key!r}", nearest(str(key), QUANTITIES, "remove it"))
    reference = item["plan"]
    if isinstance(reference, str) and not Path(reference).is_absolute() and (folder / reference).exists():
        reference = str(folder / reference)
    try:
        plan = load_plan(reference)
    except PlanError as error:
        raise PlanError(f"{where}: {error.where}", error.problem, error.remedy) from None
    return Run(
        name=str(item.get("id", where.rpartition(": ")[2])),
        plan=plan,
        step_s=_step(measured, plan, where),
        peak_allocated_gib=_positive(measured, "peak_allocated_gib", where),
        peak_reserved_gib=_positive(measured, "peak_reserved_gib", where),
        software={**software, **_software(item, where)},
    )


def _step(measured: Mapping[str, Any], plan: Plan, where: str) -> float | None:
    """Step time and throughput are the same measurement: the former where both are given."""
    step = _positive(measured, "step_s", where)
    rate = _positive(measured, "tokens_per_s_per_gpu", where)
    if step is not None or rate is None:
        return step
    return plan.tokens_per_step / (rate * plan.hardware.gpus)


def _positive(measured: Mapping[str, Any], key: str, where: str) -> float | None:
    value = measured.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise PlanError(where, f"measured.{key} is {str(value)[:40]!r}", "give a number above 0")
    return float(value)


def _unique(runs: list[Run]) -> list[Run]:
    """Names that repeat get a number."""
    seen: dict[str, int] = {}
    found = []
    for run in runs:
        seen[run.name] = seen.get(run.name, 0) + 1
        found.append(run if seen[run.name] == 1 else replace(run, name=f"{run.name} #{seen[run.name]}"))
    return found
