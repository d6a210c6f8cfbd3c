"""One door to the search: builds the candidates, picks the sweep or a study, and gathers the answer."""

from __future__ import annotations

from dataclasses import replace

from moeplan.errors import PlanError, nearest
from moeplan.search.candidates import Candidates, candidates
from moeplan.search.keep import Memory
from moeplan.search.objectives import GIB, Objective, objective
from moeplan.search.request import (
    SAMPLERS,
    Certificate,
    Counts,
    SearchOutcome,
    SearchRequest,
    StudyFacts,
)
from moeplan.search.space import CHANGES_TRAINING
from moeplan.search.sweep import sweep

# Micro batches that a search for the largest batch tries; ``max_batch`` finds the exact integer.
_SIZES = tuple(1 << power for power in range(11))


def search(request: SearchRequest) -> SearchOutcome:
    """Find the best candidates of a space.

    Raises:
        PlanError: The request cannot be used, or the space has no legal candidate.
    """
    _check(request)
    goal = objective(request.objective, request.machine)
    found = legal_candidates(request, goal)
    memory = Memory.empty(goal, request.machine.usable_gib * GIB, request.top)
    exhaustive = request.sampler == "exhaustive" or (request.sampler == "auto" and len(found) <= request.limit)
    facts = StudyFacts(sampler="exhaustive", seed=request.seed)
    if exhaustive:
        stopped = sweep(request, found, goal, memory)
        if request.storage is not None:
            from moeplan.search.study import record

            facts = record(request, found, goal, memory)
    else:
        from moeplan.search.study import run

        stopped, facts = run(request, found, goal, memory)
    return _outcome(request, found, goal, memory, stopped, facts)


def legal_candidates(request: SearchRequest, goal: Objective) -> Candidates:
    """The legal candidates of a request.

    Raises:
        PlanError: There are none; the message names the rules that refuse the plan that the search starts from.
    """
    space = request.space
    fill = goal.fills_pipeline and "global_batch_size" not in space.choices
    if fill and len(space.choices.get("micro_batch_size", ())) > 1:
        # Asking for the largest batch opens its size; a single value that the user gave stays.
        space = replace(space, choices={**space.choices, "micro_batch_size": _SIZES})
    found = candidates(request.architecture, request.machine, request.base, space, fill)
    if not len(found):
        raise PlanError("search", "the space has no legal candidate", _why_empty(request))
    return found


def _why_empty(request: SearchRequest) -> str:
    """The rule that refuses one plain plan of the space, which is the likeliest culprit."""
    from moeplan.search.legality import check

    empty = [name for name, values in request.space.choices.items() if not values]
    if empty:
        return f"no value of {', '.join(empty)} is left"
    row = {name: values[0] for name, values in request.space.choices.items()}
    row |= {"recompute": "none", "recompute_modules": (), "recompute_method": None, "recompute_layers": None}
    broken = check(request.architecture, request.machine, {**request.base, **row})
    if not broken:
        return "widen the space, the batch or the number of GPUs"
    return f"for instance, {broken[0].reason}: {broken[0].remedy}"


def _outcome(
    request: SearchRequest, found: Candidates, goal: Objective, memory: Memory, stopped: str, facts: StudyFacts
) -> SearchOutcome:
    whole = memory.evaluated == len(found)
    best = memory.top.held[0] if memory.top.held else None
    certificate = Certificate(exhaustive=whole)
    if whole and best is not None:
        certificate = Certificate(True, best.value, 0.0)
    return SearchOutcome(
        top=tuple(memory.top.held),
        pareto=memory.thinned_front(),
        near_misses=memory.near_misses(),
        counts=Counts(found.raw, len(found), memory.evaluated, memory.fitting),
        certificate=certificate,
        objective=goal.name,
        unit=goal.unit,
        study=facts,
        stopped=stopped,
        changes_training=_changes(request, goal),
    )


def _changes(request: SearchRequest, goal: Objective) -> tuple[str, ...]:
    opened = request.space.opened(CHANGES_TRAINING)
    if goal.fills_pipeline and "global_batch_size" not in request.space.choices:
        opened = (*opened, "global_batch_size")
    return opened


def _check(request: SearchRequest) -> None:
    if request.sampler not in SAMPLERS:
        hint = nearest(request.sampler, SAMPLERS, f"use one of {', '.join(SAMPLERS)}")
        raise PlanError("sampler", f"there is no sampler {request.sampler!r}", hint)
    for name, value in (("trials", request.trials), ("top", request.top), ("limit", request.limit)):
        if value is not None and value < 1:
            raise PlanError(name, f"{value} is below 1", "give a positive number")
    if request.timeout_s is not None and not request.timeout_s > 0:
        raise PlanError("timeout", f"{request.timeout_s} is no time", "give a positive number of seconds")
