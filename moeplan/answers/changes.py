"""What one change of a plan would be worth: every legal single change, priced in one table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from moeplan.answers.documents import Saving
from moeplan.estimator.machine import Machine
from moeplan.estimator.price import GIB, price
from moeplan.estimator.shard import RECOMPUTE_MODULES
from moeplan.estimator.table import Table
from moeplan.model.architecture import Architecture
from moeplan.search.facts import facts
from moeplan.search.rules import RULES


@dataclass(frozen=True)
class Change:
    """One change of a plan and what it would bring.

    Attributes:
        text: What to change, in the plan's keys.
        row: The candidate after it.
        device_bytes: Memory needed then.
        headroom_bytes: Memory left then; negative where it still does not fit.
        memory_gib: Change of the memory needed; negative saves.
        step_time: Relative change of the time per token.
    """

    text: str
    row: Mapping[str, Any]
    device_bytes: float
    headroom_bytes: float
    memory_gib: float
    step_time: float


def changes(
    architecture: Architecture,
    machine: Machine,
    row: Mapping[str, Any],
    factors: Mapping[str, float] | None,
    margin_gib: float,
) -> list[Change]:
    """Every legal single change of a candidate that could save memory, priced.

    Args:
        architecture: The model.
        machine: The GPU.
        row: The candidate.
        factors: Calibration factors.
        margin_gib: Memory to leave free.
    """
    proposed = list(_proposals(row))
    rows = [dict(row), *({**row, **update} for _, update in proposed)]
    legal = _legal(architecture, machine, rows)
    kept = [(text, changed) for (text, _), changed, good in zip(proposed, rows[1:], legal[1:], strict=True) if good]
    prices = price(
        architecture, machine, Table.of_rows([dict(row), *(changed for _, changed in kept)]), factors, margin_gib
    )
    pace = 1.0 / prices.tokens_per_s
    return [
        Change(
            text=text,
            row=changed,
            device_bytes=float(prices.device_bytes[position]),
            headroom_bytes=float(prices.headroom_bytes[position]),
            memory_gib=float(prices.device_bytes[position] - prices.device_bytes[0]) / GIB,
            step_time=float(pace[position] / pace[0] - 1),
        )
        for position, (text, changed) in enumerate(kept, start=1)
    ]


def savings(found: list[Change], most: int = 6) -> tuple[Saving, ...]:
    """The changes that save at least 1 % of a GiB, those that cost the least time per GiB first."""
    useful = [change for change in found if change.memory_gib < -0.01]
    useful.sort(key=lambda change: (change.step_time / -change.memory_gib, change.memory_gib))
    return tuple(
        Saving(change=change.text, memory_gib=change.memory_gib, step_time=change.step_time) for change in useful[:most]
    )


def _proposals(row: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    modules = tuple(row["recompute_modules"] or ()) if row["recompute"] == "selective" else ()
    if row["recompute"] != "full":
        for module in RECOMPUTE_MODULES:
            if module not in modules:
                yield f"recompute {module}", {"recompute": "selective", "recompute_modules": (*modules, module)}
        whole = {"recompute": "full", "recompute_modules": (), "recompute_method": None, "recompute_layers": None}
        yield "recompute.granularity: full", whole
    elif row["recompute_layers"] is not None:
        yield "recompute.layers: null (all)", {"recompute_method": None, "recompute_layers": None}
    for stage in range(row["sharding"] + 1, 4):
        yield f"optimizer.sharding: {stage}", {"sharding": stage}
    for name, key in (("state_dtype", "optimizer.state_dtype"), ("gradient_dtype", "optimizer.gradient_dtype")):
        if row[name] == "fp32":
            yield f"{key}: bf16", {name: "bf16"}
    if row["offload_fraction"] < 1:
        yield "optimizer.offload_fraction: 1.0", {"offload_fraction": 1.0}
    if row["micro_batch_size"] % 2 == 0:
        half = row["micro_batch_size"] // 2
        yield f"batch.micro_batch_size: {half}", {"micro_batch_size": half}
    if not row["fused_cross_entropy"]:
        yield "kernels.fused_cross_entropy: true", {"fused_cross_entropy": True}
    for name in ("tp", "pp", "cp", "ep"):
        yield f"parallel.{name}: {2 * row[name]}", {name: 2 * row[name]}


def _legal(architecture: Architecture, machine: Machine, rows: list[dict[str, Any]]) -> list[bool]:
    known = facts(architecture, machine)
    table = Table.of_rows(rows)
    legal = np.ones(len(rows), np.bool_)
    with np.errstate(divide="ignore", invalid="ignore"):
        for rule in RULES:
            legal &= ~np.asarray(rule.broken(known, table))
    return [bool(good) for good in legal]
