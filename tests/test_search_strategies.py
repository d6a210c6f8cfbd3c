"""Strategies side by side, the largest batch, and what would make a plan fit: all against plain search by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support.search_cases import deepseek, dense, h100, mixtral, request, toy_prices

from moeplan.estimator.table import Table
from moeplan.search import compare, max_batch, search
from moeplan.search.legality import check
from moeplan.search.nearest import changes, larger_gpu, more_gpus
from moeplan.search.strategies import STRATEGIES

_OWN = {"data": None, "tensor": "tp", "expert": "ep", "pipeline": "pp"}


def test_each_strategy_uses_its_own_degree_only() -> None:
    found = {item.strategy: item for item in compare(request(space="default"))}
    assert tuple(found) == STRATEGIES
    for strategy, own in _OWN.items():
        winner = found[strategy].winner
        assert winner is not None, found[strategy].reason
        for name in ("tp", "pp", "cp", "ep"):
            assert (winner.row[name] > 1) == (name == own), (strategy, name)
    mix = found["mix"].winner
    assert mix is not None
    assert mix == search(request(space="default", top=1)).best
    assert all(mix.score >= item.winner.score for item in found.values() if item.winner and item.winner.fits)


def test_strategies_that_are_not_legal_say_why() -> None:
    found = {item.strategy: item for item in compare(request(dense(), gpus=8))}
    assert found["expert"].winner is None
    assert "experts" in found["expert"].reason
    assert found["data"].winner is not None


@pytest.mark.parametrize(("model", "gpus"), [(mixtral(), 64), (dense(), 8), (deepseek(), 512)])
def test_largest_batch_is_the_largest(model: Any, gpus: int) -> None:
    asked = request(model, gpus=gpus, space="quick")
    found = max_batch(asked)
    assert [item.strategy for item in found] == list(STRATEGIES)
    for item in found:
        if item.winner is None or not item.winner.fits:
            assert item.global_batch_size == 0
            assert item.binds
            continue
        row = dict(item.winner.row)
        dp = gpus // (row["tp"] * row["pp"] * row["cp"])
        assert item.global_batch_size == item.micro_batch_size * dp * row["pp"]
        assert toy_prices(Table.of_rows([row])).fits[0]
        assert check(model, h100(), row) == []
        # One more sequence per GPU does not fit: the size is exact.
        row["micro_batch_size"] += 1
        row["global_batch_size"] = row["micro_batch_size"] * dp * row["pp"]
        assert not toy_prices(Table.of_rows([row])).fits[0]
        assert item.binds.startswith("memory")
    assert found[-1].global_batch_size == max(item.global_batch_size for item in found)


def test_largest_batch_against_every_size_by_hand() -> None:
    def prices_of(table: Table) -> Any:
        return toy_prices(table, memory_gib=43.0)

    asked = request(gpus=16, space="quick", pricer=prices_of)
    sizes = tuple(range(1, 100))
    from moeplan.search.candidates import candidates

    space = replace(asked.space, choices={**asked.space.choices, "micro_batch_size": sizes})
    everything = candidates(asked.architecture, asked.machine, asked.base, space, fill_pipeline=True)
    table, _ = everything.of(range(everything.bodies.rows))
    prices = prices_of(table)
    assert prices.fits.any()
    assert max_batch(asked)[-1].global_batch_size == table["global_batch_size"][prices.fits].max()
    assert not prices.fits[table["micro_batch_size"] == 99].any()


def test_objective_batch_finds_what_max_batch_bounds() -> None:
    largest = max_batch(request(space="quick"))[-1].global_batch_size
    best = search(request(space="quick", objective="batch")).best
    assert best is not None
    assert largest / 2 < best.value <= largest


def test_single_changes_make_a_near_miss_fit() -> None:
    # A tenth of a GiB less than the leanest plan without recomputation needs.
    leanest = search(request(objective="memory", space={"recompute": {"granularity": "none"}})).best
    assert leanest is not None
    limit = leanest.device_bytes / 2**30 - 0.1
    tight = request(pricer=lambda table: toy_prices(table, limit), space={"recompute": {"granularity": "none"}})
    miss = search(tight).near_misses
    assert miss
    assert not any(winner.fits for winner in miss)
    found = changes(tight, miss[0])
    assert found
    for change in found:
        assert toy_prices(Table.of_rows([change.row]), limit).fits[0]
        assert check(tight.architecture, tight.machine, change.row) == []
        assert {name: change.row[name] for name in change.values} == dict(change.values)
        untouched = set(miss[0].row) - set(change.values)
        assert all(change.row[name] == miss[0].row[name] for name in untouched)


def test_more_gpus_is_the_first_doubling_that_fits() -> None:
    tight = request(gpus=8, pricer=lambda table: toy_prices(table, memory_gib=9.0))
    assert search(tight).best is None
    found = more_gpus(tight)
    assert found is not None
    gpus = found.values["gpus"]
    assert gpus in (16, 32, 64, 128, 256, 512)
    half = replace(tight, base={**tight.base, "gpus": gpus // 2, "global_batch_size": 8 * gpus // 2})
    assert search(half).best is None


def test_larger_gpu_is_the_smallest_that_holds_the_plan() -> None:
    tight = request(pricer=lambda table: toy_prices(table, memory_gib=5.0), machine=h100(usable_gib=6.0))
    miss = search(tight).near_misses[0]
    machines = [h100(name=f"gpu-{gib}", usable_gib=float(gib)) for gib in (6, 9, 24, 80, 141)]
    found = larger_gpu(tight, miss, machines)
    needed = miss.device_bytes / 2**30 + 1.0
    assert found is not None
    assert found.usable_gib == min(machine.usable_gib for machine in machines if machine.usable_gib >= needed)
    assert larger_gpu(tight, miss, machines[:1]) is None
