"""From what a user says to the request that the search understands, and back to plain JSON values."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moeplan.answers.documents import Candidate
from moeplan.answers.estimate import estimate_legal
from moeplan.errors import PlanError
from moeplan.estimator.price import DEFAULT_MARGIN_GIB
from moeplan.plan import COLUMN_KEYS, Plan, validate_plan
from moeplan.search.request import Progress, SearchRequest
from moeplan.search.space import Space, load_space

if TYPE_CHECKING:
    from moeplan.calibration import Calibration


# Whole numbers of a request: a seed as NumPy's generators take it, the rest to keep nonsense out.
_LIMITS = {"seed": (0, (1 << 32) - 1), "top": (1, 10_000), "workers": (1, 1024), "trials": (1, 10_000_000)}


@dataclass(frozen=True)
class Question:
    """A search about to be done.

    Attributes:
        base: The plan that it starts from.
        request: What the search understands.
        calibration: Factors fitted to measured runs, or None.
        margin_gib: Memory to leave free.
    """

    base: Plan
    request: SearchRequest
    calibration: Calibration | None
    margin_gib: float

    def told(self, rows: Sequence[Mapping[str, Any]]) -> list[Candidate]:
        """Legal candidates as plans and estimates."""
        plans = [self.base.with_row(row) for row in rows]
        estimates = estimate_legal(plans, self.calibration, self.margin_gib)
        return [Candidate(plan=plan, estimate=estimate) for plan, estimate in zip(plans, estimates, strict=True)]


def build_request(
    document: Mapping[str, Any],
    settings: Mapping[str, Any],
    *,
    where: str = "search",
    space: Any = None,
    objective: str = "throughput",
    sampler: str = "auto",
    trials: int | None = None,
    timeout_s: float | None = None,
    seed: int = 0,
    storage: str | None = None,
    study_name: str | None = None,
    top: int = 10,
    calibration: Calibration | None = None,
    margin_gib: float = DEFAULT_MARGIN_GIB,
    workers: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Question:
    """Put a question together.

    Args:
        document: What the base plan says: model, hardware, and whatever else is given.
        settings: Dotted keys of the plan, each a value, a list of choices or a range: they narrow the space.
        where: Name of the document in messages.
        space: Search space: a shipped name, a path or a mapping.
        objective: throughput, batch, memory or cost.
        sampler: auto, exhaustive, tpe, random or nsga2.
        trials: Trials of a study.
        timeout_s: Seconds after which the best so far is told.
        seed: Of the sampler.
        storage: Where Optuna keeps the study.
        study_name: Its name there.
        top: Plans to tell, each of another layout.
        calibration: Factors fitted to measured runs.
        margin_gib: Memory to leave free.
        workers: Threads.
        progress: Called now and then.

    Raises:
        PlanError: The request cannot be used.
    """
    for name, value in (("seed", seed), ("top", top), ("workers", workers), ("trials", trials)):
        _check(name, value)
    choices = load_space(space)
    if settings:
        choices = choices.overlaid(_nested(settings), where)
    base = _base(document, choices, where)
    request = SearchRequest(
        architecture=base.architecture(),
        machine=base.gpu().machine(base.hardware.gpus_per_node),
        base=base.row(),
        space=choices,
        objective=objective,
        sampler=sampler,
        trials=trials,
        timeout_s=timeout_s,
        seed=seed,
        storage=storage,
        study_name=study_name,
        top=top,
        factors=calibration.known if calibration is not None else None,
        margin_gib=margin_gib,
        workers=workers,
        progress=progress,
    )
    return Question(base, request, calibration, margin_gib)


def told_request(question: Question) -> dict[str, Any]:
    """What was asked, defaults included, as plain JSON values."""
    base, request = question.base, question.request
    space = {dotted_key(name): list(values) for name, values in sorted(request.space.choices.items())}
    told = {
        "plan": base.to_mapping(),
        "space": {"name": request.space.name, "choices": space},
        "objective": request.objective,
        "sampler": request.sampler,
        "trials": request.trials,
        "timeout_s": request.timeout_s,
        "seed": request.seed,
        "top": request.top,
        "margin_gib": question.margin_gib,
        "calibration": dict(request.factors) if request.factors else None,
    }
    plain: dict[str, Any] = json.loads(json.dumps(told))
    return plain


def dotted_key(column: str) -> str:
    """The plan's key of a candidate's column."""
    return ".".join(COLUMN_KEYS.get(column, (column,)))


def _check(name: str, value: Any) -> None:
    least, most = _LIMITS[name]
    whole = isinstance(value, int) and not isinstance(value, bool)
    if value is not None and not (whole and least <= value <= most):
        raise PlanError(name, f"is {value!r}", f"give a whole number from {least} to {most}")


def _base(document: Mapping[str, Any], space: Space, where: str) -> Plan:
    """The plan that the search starts from: what the document says, then what the space names and holds fixed."""
    named = dict(document)
    hardware = dict(named.get("hardware") or {})
    if space.model is not None:
        named.setdefault("model", space.model)
    if space.gpu is not None:
        hardware.setdefault("gpu", space.gpu)
    for column, key in (("gpus", "gpus"), ("gpus_per_node", "gpus_per_node")):
        chosen = [value for value in space.choices.get(column, ()) if value is not None]
        if chosen:
            # The default batch is a multiple of the GPUs: the largest cluster makes one that suits the smaller.
            hardware[key] = max(chosen)
    if "model" not in named:
        raise PlanError(where, "model is missing", "name a model, or the path of its config.json")
    for key, flag in (("gpu", "--gpu"), ("gpus", "--gpus")):
        if key not in hardware:
            raise PlanError(where, f"hardware.{key} is missing", f"name it with {flag}")
    named["hardware"] = hardware
    batch = dict(named.get("batch") or {})
    for key in ("sequence_length", "global_batch_size"):
        chosen = [value for value in space.choices.get(key, ()) if value is not None]
        if chosen:
            batch[key] = max(chosen)
    if batch:
        named["batch"] = batch
    return validate_plan(named, where)


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for dotted, value in settings.items():
        section, _, key = dotted.partition(".")
        if key:
            nested.setdefault(section, {})[key] = value
        else:
            nested[section] = value
    return nested
