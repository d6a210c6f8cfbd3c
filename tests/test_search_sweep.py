"""The exhaustive sweep against plain loops over every candidate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.search_cases import deepseek, h100, mixtral, request, toy_prices

from moeplan.errors import PlanError
from moeplan.estimator.table import Table
from moeplan.search import SearchRequest, search
from moeplan.search.engine import legal_candidates
from moeplan.search.keep import worth_timing
from moeplan.search.objectives import GIB, OBJECTIVES

_SCORES: dict[str, Callable[[Any, Any], np.ndarray]] = {
    "throughput": lambda table, prices: prices.tokens_per_s,
    "batch": lambda table, prices: table["global_batch_size"],
    "memory": lambda table, prices: -prices.device_bytes / GIB,
    "cost": lambda table, prices: -(2.5 * table["gpus"] / 3600) / prices.tokens_per_s * 1e9,
}


def everything(asked: SearchRequest) -> tuple[Table, Any]:
    found = legal_candidates(asked, OBJECTIVES[asked.objective])
    table, _ = found.of(range(found.bodies.rows))
    return table, toy_prices(table)


@pytest.mark.parametrize("objective", list(_SCORES))
def test_best_is_the_best_of_all(objective: str) -> None:
    asked = request(space="default", objective=objective, base={"global_batch_size": 256})
    table, prices = everything(asked)
    score = np.where(prices.fits, _SCORES[objective](table, prices), -np.inf)
    outcome = search(asked)
    assert outcome.best is not None
    assert outcome.best.score == score.max()
    assert outcome.certificate.exhaustive
    assert outcome.certificate.gap == 0.0
    assert outcome.certificate.optimum == outcome.best.value == abs(score.max())
    assert outcome.counts.legal == outcome.counts.evaluated == table.rows
    assert outcome.counts.fitting == prices.fits.sum()
    assert outcome.counts.candidates >= outcome.counts.legal


def test_top_has_the_best_of_each_of_the_best_layouts() -> None:
    asked = request(space="default", top=7)
    table, prices = everything(asked)
    best: dict[tuple[float, ...], float] = {}
    degrees = np.stack([table[name] for name in ("tp", "pp", "cp", "ep", "etp")], axis=1)
    for key, speed, fits in zip(map(tuple, degrees.tolist()), prices.tokens_per_s, prices.fits, strict=True):
        if fits:
            best[key] = max(best.get(key, 0.0), float(speed))
    expected = sorted(best.values(), reverse=True)[:7]
    assert [winner.tokens_per_s for winner in search(asked).top] == expected


def test_front_is_what_no_other_beats() -> None:
    asked = request(space="quick")
    _, prices = everything(asked)
    memory, speed = prices.device_bytes[prices.fits], prices.tokens_per_s[prices.fits]
    beaten = np.array(
        [
            np.any((memory <= m) & (speed >= s) & ((memory < m) | (speed > s)))
            for m, s in zip(memory, speed, strict=True)
        ]
    )
    front = set(zip(memory[~beaten].tolist(), speed[~beaten].tolist(), strict=True))
    told = [(winner.device_bytes, winner.tokens_per_s) for winner in search(asked).pareto]
    assert set(told) <= front
    assert told == sorted(told)
    # Thinned to one point for each 1/64 of the GPU, but no cell of the front is left out.
    cell = h100().usable_gib * GIB / 64
    assert {int(m / cell) for m, _ in told} == {int(m / cell) for m, _ in front}


def test_answer_does_not_depend_on_threads_or_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = request(deepseek(), gpus=512, space="default")
    one = search(replace(asked, workers=1))
    monkeypatch.setattr("moeplan.search.sweep.CHUNK_ROWS", 3001)
    three = search(replace(asked, workers=3))
    assert one == three


def test_equal_candidates_are_told_in_their_order() -> None:
    def flat(table: Table) -> Any:
        prices = toy_prices(table)
        prices.tokens_per_s = np.ones(table.rows)
        prices.headroom_bytes = np.ones(table.rows)
        prices.fits = np.ones(table.rows, bool)
        return prices

    outcome = search(request(pricer=flat, top=3))
    numbers = [winner.number for winner in outcome.top]
    assert numbers[0] == 0
    assert numbers == sorted(numbers)


def test_near_misses_when_nothing_fits() -> None:
    asked = request(pricer=lambda table: toy_prices(table, memory_gib=5.0))
    table, _ = everything(asked)
    closest = toy_prices(table, memory_gib=5.0).headroom_bytes.max()
    outcome = search(asked)
    assert outcome.best is None
    assert outcome.certificate.exhaustive
    assert outcome.certificate.optimum is None
    assert outcome.near_misses[0].headroom_bytes == closest < 0
    assert [miss.headroom_bytes for miss in outcome.near_misses] == sorted(
        (miss.headroom_bytes for miss in outcome.near_misses), reverse=True
    )


def test_near_misses_are_better_than_the_best_and_miss_by_little() -> None:
    outcome = search(request(space="default"))
    assert outcome.best is not None
    for miss in outcome.near_misses:
        assert miss.score > outcome.best.score
        assert -0.05 * h100().usable_gib * GIB <= miss.headroom_bytes < 0


@given(
    st.lists(st.tuples(st.integers(-90, 30), st.integers(0, 4)), min_size=1, max_size=40),
    st.integers(1, 6),
)
def test_what_is_worth_timing_is_what_a_loop_would_keep(rows: list[tuple[int, int]], size: int) -> None:
    headroom, group = (np.array(column) for column in zip(*rows, strict=True))
    closest = sorted((max(h for h, g in rows if g == layout) for layout in {g for _, g in rows}), reverse=True)[:size]
    told = set(worth_timing(headroom.astype(float), group, 100.0, size).tolist())
    for row, (left, _) in enumerate(rows):
        # 5 % of the GPU is a near miss; what overflows by more is told of only where nothing fits.
        assert (row in told) == (left >= -5 or (max(headroom) < 0 and left >= closest[-1]))


def test_timeout_returns_the_best_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moeplan.search.sweep.CHUNK_ROWS", 500)
    outcome = search(request(space="default", timeout_s=1e-9, workers=1))
    assert outcome.stopped == "budget"
    assert 0 < outcome.counts.evaluated < outcome.counts.legal
    assert not outcome.certificate.exhaustive
    assert outcome.certificate.gap is None


def test_interrupt_returns_the_best_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moeplan.search.sweep.CHUNK_ROWS", 500)

    def stop(progress: Any) -> None:
        if progress.done > 1000:
            raise KeyboardInterrupt

    outcome = search(request(space="default", progress=stop, workers=1))
    assert outcome.stopped == "interrupt"
    assert outcome.best is not None


def test_what_changes_training_is_told() -> None:
    assert search(request(space="quick")).changes_training == ()
    assert search(request(space="active-ratio")).changes_training == ("top_k",)
    assert search(request(space="quick", objective="batch")).changes_training == ("global_batch_size",)


def test_empty_space_names_the_rule() -> None:
    with pytest.raises(PlanError, match="no legal candidate") as caught:
        search(request(space={"parallel": {"ep": 3}}, base={"global_batch_size": 64}))
    assert "ep" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"sampler": "tpee"}, "did you mean 'tpe'"),
        ({"objective": "thruput"}, "did you mean 'throughput'"),
        ({"trials": 0}, "positive"),
        ({"top": 0}, "positive"),
        ({"timeout_s": 0.0}, "positive"),
        ({"timeout_s": float("nan")}, "positive"),
        ({"objective": "cost", "machine": h100(usd_per_hour=float("nan"))}, "price"),
    ],
)
def test_bad_requests(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(PlanError, match=told):
        search(request(mixtral(), **changes))
