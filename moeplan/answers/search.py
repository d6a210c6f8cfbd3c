"""From a search's outcome to its document: every winner is told as a plan and its estimate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from moeplan.answers.documents import Candidate, Certificate, Counts, NearMiss, SearchDocument, Study
from moeplan.answers.request import Question, build_request, dotted_key, told_request
from moeplan.estimator.price import GIB
from moeplan.search.engine import search
from moeplan.search.request import SearchOutcome, SearchRequest, Winner

# Plans of the Pareto front that are told in full; the front is thinned evenly, its ends kept.
_MOST_PARETO = 16
_MOST_NEAR_MISSES = 5


def search_plans(document: Mapping[str, Any], settings: Mapping[str, Any], **options: Any) -> SearchDocument:
    """Search; the arguments are those of :func:`~moeplan.answers.request.build_request` (raises PlanError)."""
    question = build_request(document, settings, **options)
    outcome = search(question.request)
    front = _thinned(outcome.pareto)
    told = question.told([winner.row for winner in (*outcome.top, *front)])
    top = tuple(told[: len(outcome.top)])
    return SearchDocument(
        request=told_request(question),
        best=top[0] if top else None,
        top=top,
        pareto=tuple(told[len(outcome.top) :]),
        near_misses=_near_misses(question, outcome),
        counts=Counts(**_fields(outcome.counts, Counts.model_fields)),
        certificate=Certificate(**_fields(outcome.certificate, Certificate.model_fields)),
        study=Study(**_fields(outcome.study, Study.model_fields)),
        stopped=outcome.stopped,
        notes=_notes(outcome, top),
    )


def _near_misses(question: Question, outcome: SearchOutcome) -> tuple[NearMiss, ...]:
    """The closest to fitting, each with the smallest change that would make it fit."""
    misses = outcome.near_misses[:_MOST_NEAR_MISSES]
    changes = [_single_change(question.request, winner) for winner in misses]
    if misses and outcome.best is None and not any(changes) and not outcome.stopped:
        changes = [_larger(question.request, misses[0])] * len(misses)
    told = question.told([winner.row for winner in misses])
    return tuple(
        NearMiss(**dict(candidate), overflow_gib=max(-winner.headroom_bytes / GIB, 0.0), change=change)
        for candidate, winner, change in zip(told, misses, changes, strict=True)
    )


def _single_change(request: SearchRequest, winner: Winner) -> str:
    from moeplan.search.nearest import changes

    found = changes(request, winner)
    if not found:
        return ""
    return f"{found[0].what} (then {found[0].tokens_per_s:,.0f} tokens/s, {found[0].headroom_bytes / GIB:.1f} GiB free)"


def _larger(request: SearchRequest, miss: Winner) -> str:
    """More GPUs, or GPUs with more memory, where no change of the plan helps."""
    from moeplan.hardware import gpu_names, load_gpu
    from moeplan.search.nearest import larger_gpu, more_gpus

    ways = []
    more = more_gpus(request)
    if more is not None:
        ways.append(f"{more.what} (then {more.tokens_per_s:,.0f} tokens/s, {more.headroom_bytes / GIB:.1f} GiB free)")
    larger = larger_gpu(request, miss, (load_gpu(name).machine() for name in gpu_names()))
    if larger is not None:
        ways.append(f"the same number of {larger.name} ({larger.usable_gib:.0f} GiB)")
    return ", or ".join(ways)


def _notes(outcome: SearchOutcome, top: tuple[Candidate, ...]) -> tuple[str, ...]:
    notes = []
    if outcome.changes_training:
        keys = ", ".join(map(dotted_key, outcome.changes_training))
        notes.append(f"the search chose what changes the training itself: {keys}")
    if outcome.stopped:
        notes.append(f"stopped by {outcome.stopped}: this is the best so far")
    if top:
        best = top[0].estimate
        notes.append(f"what binds the best plan: {best.limit}")
        close = _close(top)
        if close > 1 and best.uncertainty is not None:
            which = f"all {close}" if close == len(top) else f"the first {close}"
            notes.append(
                f"{which} plans shown are closer to each other than the estimate is certain "
                f"(±{100 * best.uncertainty.relative:.0f} %): measure them"
            )
    return tuple(notes)


def _close(top: tuple[Candidate, ...]) -> int:
    """How many of the first plans lie within the uncertainty of the best one's throughput."""
    best = top[0].estimate
    if best.uncertainty is None:
        return 1
    floor = best.throughput.tokens_per_s * (1 - best.uncertainty.relative)
    return sum(1 for candidate in top if candidate.estimate.throughput.tokens_per_s >= floor)


def _thinned(winners: tuple[Winner, ...]) -> Sequence[Winner]:
    if len(winners) <= _MOST_PARETO:
        return winners
    last = len(winners) - 1
    return [winners[round(position * last / (_MOST_PARETO - 1))] for position in range(_MOST_PARETO)]


def _fields(source: object, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(source, name) for name in names}
