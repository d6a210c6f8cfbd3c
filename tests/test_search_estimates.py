"""The search with the real estimator: properties that hold for every legal plan, and answers that re-estimate alike."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.search_cases import deepseek, dense, h100, mixtral, request

from moeplan.estimator.columns import DEFAULTS
from moeplan.estimator.memory import stage_memory
from moeplan.estimator.price import Prices, explain, fit, price, timed
from moeplan.estimator.stages import structure
from moeplan.estimator.table import Table
from moeplan.model.architecture import Architecture
from moeplan.search import SearchRequest, search
from moeplan.search.candidates import Candidates, candidates
from moeplan.search.engine import legal_candidates
from moeplan.search.legality import check
from moeplan.search.objectives import OBJECTIVES
from moeplan.search.space import load_space

_MODELS = {"mixtral": mixtral(), "deepseek": deepseek(), "dense": dense()}


def real(**changes: Any) -> SearchRequest:
    return request(**{"pricer": None, **changes})


@cache
def space_of(model: str, gpus: int, space: str) -> Candidates:
    base = {**DEFAULTS, "gpus": gpus, "global_batch_size": 8 * gpus}
    return candidates(_MODELS[model], h100(), base, load_space(space))


@st.composite
def legal_rows(draw: st.DrawFn) -> tuple[Architecture, dict[str, Any]]:
    """A random legal plan of some model, cluster and space."""
    model = draw(st.sampled_from(sorted(_MODELS)))
    found = space_of(
        model, draw(st.sampled_from([8, 64, 256])), draw(st.sampled_from(["default", "fsdp", "precision"]))
    )
    body = draw(st.integers(0, found.bodies.rows - 1))
    table, _ = found.of(range(body, body + 1))
    return _MODELS[model], table.row(draw(st.integers(0, table.rows - 1)))


def alone(model: Architecture, row: dict[str, Any]) -> Prices:
    return price(model, h100(), Table.of_rows([row]))


@pytest.mark.parametrize(("model", "gpus"), [("mixtral", 64), ("deepseek", 256)])
def test_batched_and_alone_are_the_same_bits(model: str, gpus: int) -> None:
    found = space_of(model, gpus, "default")
    rng = np.random.default_rng(0)
    bodies = np.sort(rng.choice(found.bodies.rows, 60, replace=False))
    table, _ = found.of(bodies)
    together = price(_MODELS[model], h100(), table)
    for index in rng.choice(table.rows, 40, replace=False):
        single = alone(_MODELS[model], table.row(int(index)))
        for part in fields(Prices):
            if part.name == "stage":
                # Stages that need the same to the last bit may be named either way.
                continue
            assert getattr(single, part.name)[0] == getattr(together, part.name)[index], part.name


def test_timing_some_rows_tells_what_timing_all_tells() -> None:
    found = space_of("deepseek", 256, "default")
    table, _ = found.of(np.arange(0, found.bodies.rows, 5))
    # Whole pipelines are left out, so that what the rest is looked up in has gaps.
    chosen = np.flatnonzero((table["pp"] > 2) & (table["vpp"] < 4))
    assert 0 < chosen.size < table.rows
    whole = price(_MODELS["deepseek"], h100(), table)
    some = timed(_MODELS["deepseek"], h100(), fit(_MODELS["deepseek"], h100(), table).take(chosen))
    for part in fields(Prices):
        np.testing.assert_array_equal(getattr(some, part.name), getattr(whole, part.name)[chosen], part.name)


def test_top_re_estimates_to_the_same_figures() -> None:
    asked = real(gpus=64, space="default")
    for winner in (outcome := search(asked)).top:
        told = explain(asked.architecture, asked.machine, winner.row).prices
        assert told.tokens_per_s[0] == winner.tokens_per_s
        assert told.step_s[0] == winner.step_s
        assert told.device_bytes[0] == winner.device_bytes
        assert told.headroom_bytes[0] == winner.headroom_bytes >= 0
        assert check(asked.architecture, asked.machine, winner.row) == []
    assert outcome.best is not None


def test_sweep_finds_what_pricing_everything_at_once_finds() -> None:
    asked = real(architecture=dense(), gpus=8, space="quick")
    found = legal_candidates(asked, OBJECTIVES["throughput"])
    table, _ = found.of(range(found.bodies.rows))
    prices = asked.price(table)
    best = search(asked).best
    assert best is not None
    assert best.tokens_per_s == prices.tokens_per_s[prices.fits].max()


@settings(max_examples=60)
@given(legal_rows())
def test_degrees_multiply_to_the_world_and_time_adds_up(case: tuple[Architecture, dict[str, Any]]) -> None:
    model, row = case
    dp, edp = row["gpus"] // (row["tp"] * row["pp"] * row["cp"]), row["gpus"] // (row["pp"] * row["ep"] * row["etp"])
    assert row["tp"] * row["pp"] * row["cp"] * dp == row["gpus"]
    assert row["pp"] * row["ep"] * row["etp"] * edp == row["gpus"]
    told = alone(model, row)
    parts = told.compute_s + told.exposed_communication_s + told.bubble_s + told.optimizer_s
    assert told.step_s[0] == pytest.approx(parts[0], rel=1e-12)
    assert told.tokens_per_s[0] * told.step_s[0] == pytest.approx(row["global_batch_size"] * row["sequence_length"])
    assert min(told.compute_s[0], told.exposed_communication_s[0], told.bubble_s[0], told.optimizer_s[0]) >= 0
    assert 0 < told.mfu[0] < 1
    assert told.peak_allocated_bytes[0] <= told.peak_reserved_bytes[0] <= told.device_bytes[0]


@settings(max_examples=60)
@given(legal_rows())
def test_memory_never_falls_when_the_micro_batch_grows(case: tuple[Architecture, dict[str, Any]]) -> None:
    model, row = case
    # The number of micro batches stays, so that only their size changes.
    sizes = [1, 2, 3, 4, 8]
    rows = [
        {
            **row,
            "micro_batch_size": size,
            "global_batch_size": row["global_batch_size"] // row["micro_batch_size"] * size,
        }
        for size in sizes
    ]
    told = price(model, h100(), Table.of_rows(rows))
    assert (np.diff(told.peak_allocated_bytes) >= 0).all()
    assert (np.diff(told.device_bytes) >= 0).all()


@settings(max_examples=60)
@given(legal_rows())
def test_more_sharding_never_needs_more_state_memory(case: tuple[Architecture, dict[str, Any]]) -> None:
    model, row = case
    for stages in ([0, 1, 2, 3], [2, 3]):
        framework = "megatron" if 1 in stages else "fsdp2"
        table = Table.of_rows([{**row, "framework": framework, "sharding": stage} for stage in stages])
        memory = stage_memory(model, h100(), table, structure(model, table, all_stages=True), {})
        states = memory.parameters + memory.gradients + memory.optimizer
        assert (np.diff(states, axis=0) <= 1e-6 * states[:-1]).all()


@settings(max_examples=40)
@given(legal_rows())
def test_recomputing_everything_saves_memory_and_costs_time(case: tuple[Architecture, dict[str, Any]]) -> None:
    model, row = case
    plain = {**row, "recompute": "none", "recompute_modules": (), "overlap_ep": False}
    told = price(model, h100(), Table.of_rows([plain, {**plain, "recompute": "full"}]))
    table = Table.of_rows([plain, {**plain, "recompute": "full"}])
    kept = stage_memory(model, h100(), table, structure(model, table, all_stages=True), {}).activations
    assert (kept[1] <= kept[0]).all()
    assert told.compute_s[1] > told.compute_s[0]


def test_more_gpus_are_never_slower_at_their_best() -> None:
    speeds = []
    for gpus in (8, 16, 32, 64):
        best = search(
            replace(real(gpus=gpus, space="quick"), base={**DEFAULTS, "gpus": gpus, "global_batch_size": 512})
        ).best
        speeds.append(0.0 if best is None else best.tokens_per_s)
    assert speeds == sorted(speeds)
    assert speeds[-1] > speeds[0]
