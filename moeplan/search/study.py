"""The Optuna study: Optuna chooses layouts, an exact vectorised pass prices every candidate of the layout chosen.

Each degree is a float in [0, 1] decoded into the values that are legal after the degrees before it (``tree.py``): all
trials have the same distributions, which keeps the multivariate sampler whole, every trial is legal, and no layout is
priced twice (``fresh.py``). Optuna is imported on first use.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from moeplan.errors import PlanError
from moeplan.search.candidates import Candidates
from moeplan.search.keep import Memory
from moeplan.search.objectives import GIB, Objective
from moeplan.search.recipes import nearest_layouts
from moeplan.search.request import DEFAULT_TRIALS, Progress, SearchRequest, StudyFacts, Winner
from moeplan.search.storage import open_storage
from moeplan.search.sweep import price_batch
from moeplan.search.tree import LayoutTree

if TYPE_CHECKING:
    import optuna

_CONSTRAINT = "memory_overflow_gib"
# A trial takes milliseconds: one that has been running for an hour belongs to a process that died.
_STALE = timedelta(hours=1)
# NSGA-II wants generations: with the default of 50 a study of 200 trials has four of them.
_POPULATION = 20


@dataclass(frozen=True)
class Verdict:
    """What the inner pass found for one layout: its best candidate, or the one closest to fitting."""

    winner: Winner
    overflow_gib: float


class Oracle:
    """The exact inner pass with its memo: layout in, verdict out."""

    def __init__(self, request: SearchRequest, found: Candidates, goal: Objective, memory: Memory) -> None:
        self.request, self.found, self.goal, self.memory = request, found, goal, memory
        self.known: dict[int, Verdict] = {}

    def ask(self, layout: int) -> Verdict:
        """Price every candidate of a layout, once."""
        if layout not in self.known:
            self.known[layout] = self._price(layout)
        return self.known[layout]

    def _price(self, layout: int) -> Verdict:
        bodies = self.found.of_layout(layout)
        batch = price_batch(self.request, self.found, self.goal, bodies)
        self.memory.absorb(self.memory.digest(batch))
        fits = np.flatnonzero(batch.prices.fits)
        if fits.size:
            order = np.lexsort((fits, -batch.tie[fits], -batch.score[fits]))
            return Verdict(batch.winner(self.goal, int(fits[order[0]])), 0.0)
        closest = batch.winner(self.goal, int(np.argmax(batch.prices.headroom_bytes)))
        return Verdict(closest, -closest.headroom_bytes / GIB)


def run(request: SearchRequest, found: Candidates, goal: Objective, memory: Memory) -> tuple[str, StudyFacts]:
    """Search with a sampler of Optuna's.

    Returns:
        Why the search stopped early (empty, ``budget`` or ``interrupt``) and the facts of the study.

    Raises:
        PlanError: The storage cannot be used, or holds a study of that name for another question.
    """
    tree, oracle = LayoutTree(found.layouts), Oracle(request, found, goal, memory)
    study = _open(request, goal)
    study.sampler = _sampler(request, len(study.get_trials(deepcopy=False)), tree, oracle)
    _recall(study, tree, oracle)
    for layout, source in nearest_layouts(found.layouts, int(max(found.layouts.columns["gpus"].levels))):
        study.enqueue_trial(tree.encode(layout), user_attrs={"origin": source}, skip_if_exists=True)
    try:
        stopped = _loop(request, goal, study, tree, oracle)
    except KeyboardInterrupt:
        stopped = "interrupt"
    return stopped, _facts(request, study, request.sampler if request.sampler != "auto" else "tpe")


def _loop(request: SearchRequest, goal: Objective, study: optuna.Study, tree: LayoutTree, oracle: Oracle) -> str:
    """Trials until the budget is spent or every layout is priced; returns ``budget`` when time ran out first."""
    deadline = math.inf if request.timeout_s is None else time.monotonic() + request.timeout_s
    trials = request.trials or DEFAULT_TRIALS
    while (told := _told(study)) < trials and len(oracle.known) < len(tree.values):
        if time.monotonic() > deadline:
            return "budget"
        _try_one(request, study, tree, oracle)
        if request.progress is not None:
            held = oracle.memory.top.held
            request.progress(Progress(told + 1, trials, goal.value(held[0].score) if held else None))
    return ""


def record(request: SearchRequest, found: Candidates, goal: Objective, memory: Memory) -> StudyFacts:
    """Write the winners of a sweep into the storage as finished trials, for dashboards and later studies.

    Raises:
        PlanError: The storage cannot be used, or holds a study of that name for another question.
    """
    import optuna

    tree = LayoutTree(found.layouts)
    study = _open(request, goal)
    there = {trial.user_attrs.get("number") for trial in study.get_trials(deepcopy=False)}
    winners = {winner.number: winner for winner in (*memory.top.held, *memory.thinned_front(), *memory.near_misses())}
    study.add_trials(
        [
            optuna.trial.create_trial(
                params=tree.encode(winner.group),
                distributions=_distributions(tree),
                value=winner.value,
                user_attrs=_attributes(winner),
                constraints={_CONSTRAINT: -winner.headroom_bytes / GIB},
            )
            for winner in winners.values()
            if winner.number not in there
        ]
    )
    return _facts(request, study, "exhaustive")


def question(request: SearchRequest) -> str:
    """A fingerprint of what is asked: everything that changes the meaning of a trial, and nothing else."""
    asked = {
        "model": repr(request.architecture),
        "machine": repr(request.machine),
        "base": sorted((name, repr(value)) for name, value in request.base.items()),
        "space": sorted((name, repr(values)) for name, values in request.space.choices.items()),
        "objective": request.objective,
        "factors": sorted((request.factors or {}).items()),
        "margin_gib": request.margin_gib,
    }
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


def _try_one(request: SearchRequest, study: optuna.Study, tree: LayoutTree, oracle: Oracle) -> None:
    import optuna

    trial = study.ask(_distributions(tree))
    try:
        layout = tree.decode(trial.params)
        verdict = oracle.ask(layout)
        trial.set_constraint(_CONSTRAINT, verdict.overflow_gib)
        if request.storage is not None:
            for name, value in _attributes(verdict.winner).items():
                trial.set_user_attr(name, value)
        study.tell(trial, verdict.winner.value)
    except BaseException:
        # Ctrl-C or a defect: no trial may stay open, it would repel the sampler for ever.
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        raise


def _open(request: SearchRequest, goal: Objective) -> optuna.Study:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    asked = question(request)
    name = request.study_name or f"{request.architecture.name}-{request.machine.name}-{goal.name}-{asked[:8]}"
    storage = open_storage(request.storage)
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        direction="minimize" if goal.smaller_is_better else "maximize",
        load_if_exists=True,
    )
    asked_before = study.user_attrs.get("question")
    if asked_before is None:
        study.set_user_attr("question", asked)
        study.set_user_attr("objective", f"{goal.name} ({goal.unit})")
    elif asked_before != asked:
        raise PlanError("study", f"{name!r} in the storage answers another question", "give another --study name")
    return study


def _sampler(request: SearchRequest, done: int, tree: LayoutTree, oracle: Oracle) -> optuna.samplers.BaseSampler:
    import optuna

    from moeplan.search.fresh import FreshSampler

    # A continued study must not draw the numbers again that it began with.
    seed = request.seed + done
    base: optuna.samplers.BaseSampler
    if request.sampler == "random":
        base = optuna.samplers.RandomSampler(seed=seed)
    elif request.sampler == "nsga2":
        base = optuna.samplers.NSGAIISampler(population_size=_POPULATION, seed=seed)
    else:
        base = optuna.samplers.TPESampler(seed=seed)
    return FreshSampler(base, tree, oracle.known)


def _recall(study: optuna.Study, tree: LayoutTree, oracle: Oracle) -> None:
    """Price again what a continued study has tried (the inner pass is exact and cheap), and close what died."""
    import optuna

    states = optuna.trial.TrialState
    for trial in study.get_trials(deepcopy=False):
        if trial.state == states.COMPLETE and trial.params.keys() >= set(tree.names):
            oracle.ask(tree.decode(trial.params))
        elif trial.state == states.RUNNING and _stale(trial.datetime_start):
            study.tell(trial.number, state=states.FAIL)


def _stale(started: datetime | None) -> bool:
    return started is not None and datetime.now(started.tzinfo) - started > _STALE


def _told(study: optuna.Study) -> int:
    import optuna

    return len(study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)))


def _distributions(tree: LayoutTree) -> dict[str, optuna.distributions.BaseDistribution]:
    import optuna

    return {name: optuna.distributions.FloatDistribution(0.0, 1.0) for name in tree.names}


def _attributes(winner: Winner) -> dict[str, Any]:
    """What a dashboard shows beside a trial."""
    return {
        "number": winner.number,
        "tokens_per_s": winner.tokens_per_s,
        "memory_gib": winner.device_bytes / GIB,
        "candidate": {name: value for name, value in winner.row.items() if value is not None},
    }


def _facts(request: SearchRequest, study: optuna.Study, sampler: str) -> StudyFacts:
    return StudyFacts(
        name=study.study_name,
        storage=_without_password(request.storage),
        trials=_told(study),
        sampler=sampler,
        seed=request.seed,
    )


def _without_password(storage: str | None) -> str:
    if storage is None:
        return ""
    head, mark, tail = storage.partition("://")
    if not mark or "@" not in tail:
        return storage
    user, _, host = tail.rpartition("@")
    return f"{head}://{user.partition(':')[0]}@{host}"
