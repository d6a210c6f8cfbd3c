"""The Optuna study: legal by construction, never twice the same, resumable, deterministic, and close to the optimum."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.search_cases import deepseek, h100, mixtral, request

from moeplan.errors import PlanError
from moeplan.search import SearchRequest, search
from moeplan.search.facts import facts
from moeplan.search.layouts import DEGREES, layouts
from moeplan.search.recipes import nearest_layouts
from moeplan.search.storage import open_storage
from moeplan.search.study import question
from moeplan.search.tree import LayoutTree

_TREE = LayoutTree(layouts(facts(deepseek(), h100()), (256,), {}))


def asked(**changes: Any) -> SearchRequest:
    return request(**{"space": "quick", "sampler": "tpe", "trials": 25, **changes})


@given(point=st.fixed_dictionaries({name: st.floats(0.0, 1.0) for name in _TREE.names}))
def test_every_point_is_a_layout_and_back(point: dict[str, float]) -> None:
    layout = _TREE.decode(point)
    assert 0 <= layout < len(_TREE.values)
    assert _TREE.decode(_TREE.encode(layout)) == layout


def test_every_layout_has_a_point() -> None:
    assert [_TREE.decode(_TREE.encode(layout)) for layout in range(len(_TREE.values))] == list(range(len(_TREE.values)))


def test_nearest_other_is_the_fewest_doublings_away() -> None:
    known = {100}
    other = _TREE.nearest_other(100, known)
    assert other != 100

    def steps(layout: int) -> float:
        import math

        pairs = zip(_TREE.values[layout], _TREE.values[100], strict=True)
        return sum(abs(math.log2(a / b)) for a, b in pairs)

    assert steps(other) == min(steps(layout) for layout in range(len(_TREE.values)) if layout != 100)
    assert _TREE.nearest_other(100, range(len(_TREE.values))) == 100


def test_recipes_become_the_nearest_legal_layouts() -> None:
    table = layouts(facts(deepseek(), h100()), (2048,), {})
    found = dict(nearest_layouts(table, 2048))
    degrees = {tuple(int(table[name][row]) for name in DEGREES[1:]) for row in found}
    # DeepSeek-V3's own layout is legal as published: tp 1, pp 16, cp 1, ep 64, etp 1 on 2,048 GPUs.
    assert (1, 16, 1, 64, 1) in degrees


@pytest.mark.parametrize("sampler", ["tpe", "random", "nsga2"])
def test_samplers_come_close_to_the_certified_optimum(sampler: str) -> None:
    optimum = search(asked(sampler="exhaustive")).certificate.optimum
    assert optimum is not None
    outcome = search(asked(sampler=sampler, trials=60))
    assert outcome.best is not None
    assert outcome.best.value >= 0.97 * optimum
    assert outcome.study.sampler == sampler
    # The study knows nothing about what it has not priced.
    assert not outcome.certificate.exhaustive
    assert outcome.certificate.gap is None


@pytest.mark.parametrize("seed", range(3))
def test_tpe_reaches_99_percent_in_100_trials(seed: int) -> None:
    wide = asked(architecture=deepseek(), gpus=256, space="default", trials=100, seed=seed)
    optimum = search(replace(wide, sampler="exhaustive")).certificate.optimum
    best = search(wide).best
    assert optimum is not None
    assert best is not None
    assert best.value >= 0.99 * optimum


def test_same_seed_same_answer_and_other_seed_other_trials() -> None:
    assert search(asked(seed=3)) == search(asked(seed=3))
    assert search(asked(seed=3)).counts != search(asked(seed=4)).counts


def test_a_study_that_has_seen_everything_stops_with_a_certificate() -> None:
    outcome = search(asked(gpus=8, trials=10_000))
    assert outcome.study.trials < 10_000
    assert outcome.certificate.exhaustive
    assert outcome.certificate.gap == 0.0
    exact = search(asked(gpus=8, sampler="exhaustive"))
    assert outcome.best == exact.best
    assert outcome.top == exact.top
    assert outcome.pareto == exact.pareto


def test_minimized_objectives() -> None:
    exact = search(asked(sampler="exhaustive", objective="memory")).best
    found = search(asked(objective="memory", trials=80)).best
    assert exact is not None
    assert found is not None
    assert exact.value <= found.value <= 1.05 * exact.value


@pytest.mark.parametrize("kind", ["journal:///{}/study.log", "{}/plain.log", "sqlite:///{}/study.db"])
def test_storage_persists_and_resumes(kind: str, tmp_path: Path) -> None:
    storage = kind.format(tmp_path).replace("journal:////", "journal:///")
    first = search(asked(storage=storage, trials=6))
    study = optuna.load_study(study_name=first.study.name, storage=open_storage(storage))
    states = [trial.state.name for trial in study.get_trials()]
    assert states.count("COMPLETE") == 6
    # A trial shows what a dashboard needs, and feasibility as Optuna understands it.
    trial = study.trials[0]
    assert {"number", "tokens_per_s", "memory_gib", "candidate"} <= trial.user_attrs.keys()
    assert set(trial.constraints) == {"memory_overflow_gib"}
    again = search(asked(storage=storage, trials=9))
    assert again.study.trials == 9
    assert again.counts.evaluated > first.counts.evaluated
    # With the budget spent, asking once more only reads: the same answer.
    assert search(asked(storage=storage, trials=9)).top == again.top
    with pytest.raises(PlanError, match="another question"):
        search(asked(storage=storage, trials=9, objective="memory", study_name=first.study.name))


def test_no_layout_is_priced_twice(tmp_path: Path) -> None:
    storage = str(tmp_path / "study.log")
    outcome = search(asked(storage=storage, trials=40))
    study = optuna.load_study(study_name=outcome.study.name, storage=open_storage(storage))
    seen = [
        tuple(trial.user_attrs["candidate"][name] for name in DEGREES)
        for trial in study.get_trials()
        if trial.state == optuna.trial.TrialState.COMPLETE
    ]
    assert len(seen) == 40
    assert len(set(seen)) == 40


def test_infeasible_layouts_carry_their_overflow(tmp_path: Path) -> None:
    storage = str(tmp_path / "study.log")
    outcome = search(asked(storage=storage, trials=30))
    study = optuna.load_study(study_name=outcome.study.name, storage=open_storage(storage))
    for trial in study.get_trials(states=(optuna.trial.TrialState.COMPLETE,)):
        overflow = trial.constraints["memory_overflow_gib"]
        assert (overflow > 0) == (trial.user_attrs["memory_gib"] > 78.0)
    assert outcome.best is not None
    assert study.best_trial.value == outcome.best.value


def test_a_sweep_records_its_winners(tmp_path: Path) -> None:
    storage = str(tmp_path / "study.log")
    outcome = search(asked(sampler="exhaustive", storage=storage))
    study = optuna.load_study(study_name=outcome.study.name, storage=open_storage(storage))
    assert outcome.best is not None
    assert study.best_trial.value == outcome.best.value
    assert study.best_trial.user_attrs["number"] == outcome.best.number
    trials = len(study.get_trials())
    assert trials >= len(outcome.top)
    search(asked(sampler="exhaustive", storage=storage))
    assert len(optuna.load_study(study_name=outcome.study.name, storage=open_storage(storage)).trials) == trials


def test_interrupt_leaves_no_open_trial(tmp_path: Path) -> None:
    storage = str(tmp_path / "study.log")

    def stop(progress: Any) -> None:
        if progress.done >= 4:
            raise KeyboardInterrupt

    # Ctrl-C may come at any time; here it comes from the progress bar, after a trial, ...
    outcome = search(asked(storage=storage, progress=stop))
    assert outcome.stopped == "interrupt"
    assert outcome.best is not None

    calls = []

    def price(table: Any) -> Any:
        from support.search_cases import toy_prices

        calls.append(1)
        if len(calls) > 12:
            raise KeyboardInterrupt
        return toy_prices(table)

    # ... and here in the middle of one.
    outcome = search(asked(storage=storage, pricer=price))
    assert outcome.stopped == "interrupt"
    study = optuna.load_study(study_name=outcome.study.name, storage=open_storage(storage))
    assert not study.get_trials(states=(optuna.trial.TrialState.RUNNING,))


def test_timeout_is_a_budget() -> None:
    outcome = search(asked(timeout_s=1e-9))
    assert outcome.stopped == "budget"
    assert outcome.best is None
    assert outcome.near_misses == ()


def test_auto_is_exhaustive_up_to_its_limit() -> None:
    small = search(asked(sampler="auto"))
    assert small.certificate.exhaustive
    large = search(asked(sampler="auto", limit=10))
    assert large.study.sampler == "tpe"
    assert not large.certificate.exhaustive


def test_question_ignores_what_does_not_change_it() -> None:
    base = asked()
    assert question(base) == question(replace(base, seed=9, trials=3, top=2, workers=1))
    assert question(base) != question(replace(base, objective="memory"))
    assert question(base) != question(replace(base, margin_gib=2.0))
    assert question(base) != question(replace(base, architecture=deepseek()))
    assert question(base) == question(asked(architecture=mixtral()))


@pytest.mark.parametrize(
    ("storage", "told"),
    [
        ("mongodb://host/db", "unknown kind"),
        ("sqllite:///x.db", "did you mean 'sqlite'"),
        ("sqlite:////proc/none/x.db", "cannot be opened"),
        ("postgresql://user:secret@127.0.0.1:1/none?connect_timeout=1", "cannot be opened|driver"),
    ],
)
def test_bad_storages_are_refused_in_one_line(storage: str, told: str) -> None:
    with pytest.raises(PlanError, match=told) as caught:
        search(asked(storage=storage))
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_importing_the_search_loads_no_optuna() -> None:
    code = "import sys, moeplan.search.engine, moeplan.search.sweep; print('optuna' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "False"
