"""Layouts and candidates: what is built is exactly what brute force finds legal."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.search_cases import deepseek, dense, h100, mixtral

from moeplan.errors import PlanError
from moeplan.estimator.columns import DEFAULTS
from moeplan.estimator.layout import layout_chunks
from moeplan.estimator.table import Table
from moeplan.model.architecture import Architecture
from moeplan.search.candidates import candidates
from moeplan.search.facts import facts
from moeplan.search.layouts import DEGREES, layouts
from moeplan.search.legality import check
from moeplan.search.pipelines import pipelines
from moeplan.search.rules import RULES
from moeplan.search.space import Space, load_space

_DEGREE_RULES = {
    "attention-degrees-divide-gpus",
    "expert-degrees-divide-gpus",
    "heads-divide-by-tp",
    "kv-heads-match-tp",
    "widths-divide-by-tp",
    "expert-width-divides-by-etp",
    "experts-divide-by-ep",
    "expert-parallelism-needs-experts",
}


@pytest.mark.parametrize("gpus", [1, 6, 8, 12])
@pytest.mark.parametrize("model", [mixtral(), dense()], ids=["moe", "dense"])
def test_layouts_are_those_that_brute_force_finds(model: Architecture, gpus: int) -> None:
    anything = {name: tuple(range(1, gpus + 1)) for name in ("tp", "pp", "cp", "ep", "etp")}
    built = layouts(facts(model, h100()), (gpus,), anything)
    rows = {tuple(int(built[name][index]) for name in DEGREES) for index in range(built.rows)}
    assert len(rows) == built.rows
    divisors = [degree for degree in range(1, gpus + 1) if gpus % degree == 0]
    brute = set()
    for tp, pp, cp, ep, etp in product(divisors, repeat=5):
        if gpus % (tp * pp * cp) or gpus % (pp * ep * etp):
            continue
        row = {"gpus": gpus, "tp": tp, "pp": pp, "cp": cp, "ep": ep, "etp": etp, "gpus_per_node": gpus}
        if not _DEGREE_RULES & {violation.rule for violation in check(model, h100(), row)}:
            brute.add((gpus, tp, pp, cp, ep, etp))
    assert rows == brute


def test_layouts_multiply_to_the_world_on_both_grids() -> None:
    built = layouts(facts(deepseek(), h100()), (256, 2048), {})
    attention = built["tp"] * built["cp"] * built["pp"]
    experts = built["etp"] * built["ep"] * built["pp"]
    assert (built["gpus"] % attention == 0).all()
    assert (built["gpus"] % experts == 0).all()
    assert set(built.columns["gpus"].levels) == {256, 2048}
    # Tensor parallelism across the NVLink domain is legal, but not looked for unless a space asks.
    assert max(built.columns["tp"].levels) == 8


def test_same_candidates_as_brute_force_over_the_product() -> None:
    model, machine = mixtral(), h100()
    choices: dict[str, tuple[Any, ...]] = {
        "tp": (1, 2),
        "pp": (1, 3, 4),
        "cp": (1,),
        "ep": (1, 8),
        "etp": (1, 2),
        "vpp": (1, 2),
        "micro_batch_size": (1, 3),
        "recompute": ("none", "selective", "full"),
        "recompute_modules": (("moe",), ("mla_up_proj",)),
        "dispatcher": ("alltoall", "deepep"),
        "overlap_ep": (False, True),
    }
    base = {**DEFAULTS, "gpus": 16, "global_batch_size": 32}
    found = candidates(model, machine, base, Space("test", {**choices, "pipeline_layout": (None,)}))
    table, _ = found.of(range(found.bodies.rows))
    built = [tuple(sorted(table.row(index).items(), key=lambda item: item[0])) for index in range(table.rows)]
    assert len(set(map(repr, built))) == len(built) == len(found)
    rows = []
    for values in product(*choices.values()):
        row = {**base, **dict(zip(choices, values, strict=True))}
        if row["recompute"] != "selective":
            row["recompute_modules"] = ()
        # A dispatcher that dispatches nothing is one candidate, not two.
        if row["tp"] * row["ep"] * row["etp"] > 1 or row["dispatcher"] == "alltoall":
            rows.append(row)
    # Every rule on every row of the product, none of them left out or applied early.
    product_table = Table.of_rows(rows)
    legal = ~np.logical_or.reduce([rule.broken(facts(model, machine), product_table) for rule in RULES])
    brute = {repr(tuple(sorted(rows[index].items(), key=lambda item: item[0]))) for index in np.flatnonzero(legal)}
    for index in range(0, len(rows), 97):
        assert (check(model, machine, rows[index]) == []) == legal[index]
    assert set(map(repr, built)) == brute


@settings(max_examples=25)
@given(
    model=st.sampled_from([mixtral(), deepseek(), dense()]),
    gpus=st.sampled_from([1, 2, 8, 24, 48, 64, 256, 1024]),
    per_gpu=st.sampled_from([1, 3, 8]),
    name=st.sampled_from(["quick", "default", "fsdp", "precision", "long-context", "active-ratio"]),
    data=st.data(),
)
def test_random_candidates_pass_every_rule(
    model: Architecture, gpus: int, per_gpu: int, name: str, data: st.DataObject
) -> None:
    base = {**DEFAULTS, "gpus": gpus, "global_batch_size": gpus * per_gpu}
    found = candidates(model, h100(), base, load_space(name))
    if not len(found):
        return
    body = data.draw(st.integers(0, found.bodies.rows - 1))
    table, _ = found.of(range(body, body + 1))
    row = table.row(data.draw(st.integers(0, table.rows - 1)))
    assert check(model, h100(), row) == []
    dp, edp = gpus / (row["tp"] * row["pp"] * row["cp"]), gpus / (row["pp"] * row["ep"] * row["etp"])
    assert dp == int(dp)
    assert edp == int(edp)


def test_parts_make_the_whole() -> None:
    base = {**DEFAULTS, "gpus": 64, "global_batch_size": 512}
    found = candidates(mixtral(), h100(), base, load_space("default"))
    spans = found.spans(1000)
    assert [start for start, _ in spans[1:]] == [stop for _, stop in spans[:-1]]
    assert spans[0][0] == 0
    assert spans[-1][1] == found.bodies.rows
    assert sum(found.of(range(start, stop))[0].rows for start, stop in spans) == len(found)
    by_layout = [found.of_layout(layout) for layout in range(found.layouts.rows)]
    assert sorted(int(body) for bodies in by_layout for body in bodies) == list(range(found.bodies.rows))
    assert all(len(bodies) for bodies in by_layout)


def test_filling_batch_keeps_every_pipeline_full() -> None:
    base = {**DEFAULTS, "gpus": 64}
    found = candidates(mixtral(), h100(), base, load_space("quick"), fill_pipeline=True)
    table, _ = found.of(range(found.bodies.rows))
    dp = table["gpus"] / (table["tp"] * table["pp"] * table["cp"])
    assert (table["global_batch_size"] == table["micro_batch_size"] * dp * table["pp"]).all()


def test_balanced_layouts_are_megatrons_published_ones() -> None:
    # Megatron-Bridge's deepseek_v3 recipe names these for (PP16, VPP2) up to notation and for (PP8, VPP4) exactly.
    cuts = {(cut.pp, cut.vpp, cut.layout) for cut in pipelines(deepseek(), (8, 16), (2, 4), (None,), None)}
    assert (8, 4, "Et|(tt|)*30mL") in cuts
    published = layout_chunks("Et*3|(tt|)*29m|L", 16, 61, 1)
    mine = [layout_chunks(layout, 16, 61, 1) for pp, vpp, layout in cuts if (pp, vpp) == (16, 2) and layout]
    assert published in mine


@settings(max_examples=60)
@given(layers=st.integers(1, 40), pp=st.integers(1, 8), vpp=st.integers(1, 4), mtp=st.sampled_from([0, 1, 2]))
def test_balanced_layouts_minimize_the_largest_stage(layers: int, pp: int, vpp: int, mtp: int) -> None:
    from moeplan.search.pipelines import Costs, balanced_layout

    costs = Costs((3.0,) * layers, 0.0, 4.0, 1.0)
    layout = balanced_layout(costs, pp, vpp, mtp)
    items = [3.0] * layers + ([4.0 * mtp] if mtp else []) + [1.0]
    if layout is None:
        assert pp * vpp > len(items)
        return
    try:
        chunks = layout_chunks(layout, pp, layers, mtp)
    except PlanError as error:
        raise AssertionError(str(error)) from None
    assert len(chunks) == pp * vpp
    largest = max(3.0 * chunk.layers + 4.0 * chunk.mtp + chunk.head for chunk in chunks)
    assert largest == pytest.approx(_best_cut(items, pp * vpp))


def _best_cut(items: list[float], stages: int) -> float:
    """The smallest possible largest stage, by dynamic programming over prefixes."""
    prefix = [0.0]
    for item in items:
        prefix.append(prefix[-1] + item)
    best = {(0, 0): 0.0}
    for stage in range(1, stages + 1):
        for end in range(stage, len(items) + 1):
            best[stage, end] = min(
                (
                    max(best[stage - 1, start], prefix[end] - prefix[start])
                    for start in range(stage - 1, end)
                    if (stage - 1, start) in best
                ),
                default=float("inf"),
            )
    return best[stages, len(items)]
