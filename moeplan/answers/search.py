"""From a question to the search document: the request is built, searched, and every winner is told as an estimate."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from moeplan.answers.changes import changes, smallest_fitting
from moeplan.answers.documents import Candidate, Certificate, Counts, NearMiss, SearchDocument, Study
from moeplan.answers.estimate import estimate_plan
from moeplan.errors import PlanError
from moeplan.estimator.price import DEFAULT_MARGIN_GIB, GIB
from moeplan.plan import COLUMN_KEYS, Plan, validate_plan
from moeplan.search.engine import search
from moeplan.search.request import Progress, SearchOutcome, SearchRequest, Winner
from moeplan.search.space import Space, load_space

# Plans of the Pareto front that are told in full; the front is thinned evenly, its ends kept.
_MOST_PARETO = 16
_MOST_NEAR_MISSES = 5


def search_plans(
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
    factors: Mapping[str, float] | None = None,
    margin_gib: float = DEFAULT_MARGIN_GIB,
    workers: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> SearchDocument:
    """Search.

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
        factors: Calibration factors.
        margin_gib: Memory to leave free.
        workers: Threads.
        progress: Called now and then.

    Raises:
        PlanError: The request cannot be used.
    """
    choices = load_space(space).overlaid(_nested(settings), where) if settings else load_space(space)
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
        factors=factors,
        margin_gib=margin_gib,
        workers=workers,
        progress=progress,
    )
    return _document(base, request, search(request), margin_gib)


def _base(document: Mapping[str, Any], space: Space, where: str) -> Plan:
    """The plan that the search starts from: what the document says, then the first choice of every key it narrows."""
    named = dict(document)
    hardware = dict(named.get("hardware") or {})
    if space.model is not None:
        named.setdefault("model", space.model)
    if space.gpu is not None:
        hardware.setdefault("gpu", space.gpu)
    gpus = space.choices.get("gpus")
    if gpus:
        # The default batch is a multiple of the GPUs: the largest cluster makes one that suits the smaller.
        hardware["gpus"] = max(gpus)
    for key, flag in (("gpu", "--gpu"), ("gpus", "--gpus")):
        if key not in hardware:
            raise PlanError(where, f"hardware.{key} is missing", f"name it with {flag}")
    named["hardware"] = hardware
    batch = dict(named.get("batch") or {})
    for key in ("sequence_length", "global_batch_size"):
        chosen = space.choices.get(key)
        if chosen and chosen[0] is not None:
            batch[key] = max(chosen)
    if batch:
        named["batch"] = batch
    return validate_plan(named, where)


def _document(base: Plan, request: SearchRequest, outcome: SearchOutcome, margin_gib: float) -> SearchDocument:
    def told(winner: Winner) -> Candidate:
        plan = base.with_row(winner.row)
        return Candidate(plan=plan, estimate=estimate_plan(plan, request.factors, margin_gib))

    top = tuple(told(winner) for winner in outcome.top)
    return SearchDocument(
        request=_request(base, request, margin_gib),
        best=top[0] if top else None,
        top=top,
        pareto=tuple(told(winner) for winner in _thinned(outcome.pareto)),
        near_misses=tuple(
            _near_miss(base, request, winner, told(winner), margin_gib)
            for winner in outcome.near_misses[:_MOST_NEAR_MISSES]
        ),
        counts=Counts(**_fields(outcome.counts, Counts.model_fields)),
        certificate=Certificate(**_fields(outcome.certificate, Certificate.model_fields)),
        study=Study(**_fields(outcome.study, Study.model_fields)),
        stopped=outcome.stopped,
        notes=_notes(base, outcome, top),
    )


def _near_miss(base: Plan, request: SearchRequest, winner: Winner, candidate: Candidate, margin_gib: float) -> NearMiss:
    row = candidate.plan.row()
    found = changes(request.architecture, request.machine, row, request.factors, margin_gib, more_gpus=True)
    return NearMiss(
        plan=candidate.plan,
        estimate=candidate.estimate,
        overflow_gib=max(-winner.headroom_bytes / GIB, 0.0),
        change=smallest_fitting(found),
    )


def _notes(base: Plan, outcome: SearchOutcome, top: tuple[Candidate, ...]) -> tuple[str, ...]:
    notes = []
    if outcome.changes_training:
        keys = ", ".join(".".join(COLUMN_KEYS.get(name, (name,))) for name in outcome.changes_training)
        notes.append(f"the space opens what changes the training itself: {keys}")
    if outcome.stopped:
        notes.append(f"stopped by {outcome.stopped}: this is the best so far")
    if top:
        best = top[0].estimate
        notes.append(f"what binds the best plan: {best.limit}")
        close = _close(top)
        if close > 1:
            notes.append(
                f"the first {close} plans are closer to each other than the estimate is certain "
                f"(±{100 * (best.uncertainty.relative if best.uncertainty else 0):.0f} %): measure them"
            )
    return tuple(notes)


def _close(top: tuple[Candidate, ...]) -> int:
    """How many of the first plans lie within the uncertainty of the best one's throughput."""
    best = top[0].estimate
    if best.uncertainty is None:
        return 1
    floor = best.throughput.tokens_per_s * (1 - best.uncertainty.relative)
    return sum(1 for candidate in top if candidate.estimate.throughput.tokens_per_s >= floor)


def _request(base: Plan, request: SearchRequest, margin_gib: float) -> dict[str, Any]:
    """What was asked, defaults included, as plain JSON values."""
    space = {
        ".".join(COLUMN_KEYS.get(name, (name,))): list(values) for name, values in sorted(request.space.choices.items())
    }
    told = {
        "plan": base.to_mapping(),
        "space": {"name": request.space.name, "choices": space},
        "objective": request.objective,
        "sampler": request.sampler,
        "trials": request.trials,
        "timeout_s": request.timeout_s,
        "seed": request.seed,
        "top": request.top,
        "margin_gib": margin_gib,
        "calibration": dict(request.factors) if request.factors else None,
    }
    plain: dict[str, Any] = json.loads(json.dumps(told))
    return plain


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for dotted, value in settings.items():
        section, _, key = dotted.partition(".")
        if key:
            nested.setdefault(section, {})[key] = value
        else:
            nested[section] = value
    return nested


def _thinned(winners: tuple[Winner, ...]) -> Iterable[Winner]:
    if len(winners) <= _MOST_PARETO:
        return winners
    last = len(winners) - 1
    return [winners[round(position * last / (_MOST_PARETO - 1))] for position in range(_MOST_PARETO)]


def _fields(source: object, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(source, name) for name in names}
