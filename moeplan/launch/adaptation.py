"""The nearest plan that a framework can run: change what it refuses, one key at a time, as little as possible."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isqrt, log2
from typing import Any

from moeplan.errors import PlanError
from moeplan.launch.refusal import Refusal
from moeplan.plan import Plan

# More rounds than there are keys would mean that two rules push a value back and forth.
_MOST_ROUNDS = 40
# How many numbers of micro batches on either side are tried.
_NEAR = 32

_NAMES: dict[str, Sequence[Any]] = {
    "precision": ("bf16", "fp16", "tf32", "fp32"),
    "cp_comm": ("p2p", "a2a", "allgather"),
    "dispatcher": ("alltoall", "allgather", "deepep", "hybridep"),
    "schedule": ("1f1b",),
    "sharding": (0, 1, 2, 3),
    "recompute": ("none", "selective", "full"),
    "recompute_modules": ((),),
    "offload_modules": ((),),
    "pipeline_layout": (None,),
    "offload_fraction": (0.0,),
    "state_dtype": ("fp32",),
    "gradient_dtype": ("fp32",),
    "optimizer": ("adam", "sgd"),
    "capacity_factor": (None,),
    "top_k": (None,),
    "mtp_layers": (None, 0),
}


def adapted(plan: Plan, target: str, refusals: Callable[[Plan], list[Refusal]]) -> tuple[Plan, list[str]]:
    """The nearest plan that ``refusals`` has nothing against, and what was changed, one line each.

    Raises:
        PlanError: No key of the plan helps.
    """
    changes: list[str] = []
    for _ in range(_MOST_ROUNDS):
        found = refusals(plan)
        if not found:
            return plan, changes
        step = next((step for refusal in found if (step := _step(plan, refusal, len(found), refusals))), None)
        if step is None:
            raise PlanError(target, found[0].reason, found[0].remedy)
        plan, told = step
        changes += told
    raise PlanError(target, "no plan near this one can run", f"start from: {refusals(plan)[0].remedy}")


def _step(
    plan: Plan, refusal: Refusal, count: int, refusals: Callable[[Plan], list[Refusal]]
) -> tuple[Plan, list[str]] | None:
    if refusal.changes:
        changed = plan.with_values(refusal.changes)
        if changed == plan:
            return None
        told = [
            f"{key}: {_shown(plan, key)} -> {value} ({refusal.reason})"
            for key, value in refusal.changes.items()
            if _shown(plan, key) != value
        ]
        return changed, told
    row = plan.row()
    for column in refusal.columns:
        for value in _values(column, row):
            if value == row.get(column):
                continue
            try:
                changed = plan.with_row({column: value, **_coupled(column, value)})
            except PlanError:
                continue
            left = refusals(changed)
            if len(left) < count and all(other.reason != refusal.reason for other in left):
                return changed, [f"{column}: {row[column]} -> {value} ({refusal.reason})"]
    return None


def _coupled(column: str, value: Any) -> dict[str, Any]:
    """Other columns that the value forces."""
    if column == "recompute" and value != "selective":
        coupled: dict[str, Any] = {"recompute_modules": ()}
        return coupled if value == "full" else {**coupled, "recompute_method": None, "recompute_layers": None}
    if column == "recompute_modules":
        return {"recompute": "none"}
    if column in ("pp", "vpp"):
        return {"pipeline_layout": None} | ({"vpp": 1} if column == "pp" and value == 1 else {})
    return {}


def _values(column: str, row: dict[str, Any]) -> Sequence[Any]:
    """Values to try, the nearest first."""
    if column in _NAMES:
        return _NAMES[column]
    current = row.get(column)
    if isinstance(current, bool) or current is None:
        return (False, True)
    if not isinstance(current, int):
        return ()
    if column == "vpp":
        candidates: Sequence[int] = range(1, 17)
    elif column == "global_batch_size":
        passes = max(1, row["micro_batch_size"] * (row["gpus"] // (row["tp"] * row["pp"] * row["cp"])))
        whole = max(1, current // passes)
        # Whole numbers of micro batches around the one asked, and whole rounds of the pipeline.
        near = {whole + offset for offset in range(-_NEAR, _NEAR + 1)}
        rounds = {(whole // row["pp"] + offset) * row["pp"] for offset in range(-_NEAR, _NEAR + 1)}
        candidates = [passes * count for count in near | rounds if count > 0]
    elif column == "sequence_length":
        candidates = [1 << power for power in range(7, 21)]
    elif column in ("gpus", "gpus_per_node"):
        return ()
    else:
        candidates = _divisors(row["gpus"])
    return sorted((value for value in candidates if value > 0), key=lambda value: abs(log2(value / current)))


def _shown(plan: Plan, key: str) -> Any:
    value: Any = plan
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _divisors(number: int) -> list[int]:
    small = [divisor for divisor in range(1, isqrt(number) + 1) if number % divisor == 0]
    return sorted({*small, *(number // divisor for divisor in small)})
