"""Collectives against measured exchanges and against what physics forbids."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from moeplan.estimator.time.collectives import Limit, Links, distinct, reached
from moeplan.hardware import load_gpu

CASES = json.loads((Path(__file__).parent / "reference" / "collectives.json").read_text())["cases"]
GPUS = {"GB200": "gb200-nvl72", "H100": "h100-sxm-80gb"}
DEEPSEEK = Limit(8, 4)


def links(gpu: str, **factors: float) -> Links:
    return Links(load_gpu(gpu).machine(None), factors)


def one(value: float) -> np.ndarray:
    return np.array([float(value)])


def test_measured_exchanges_of_deepseek_v3() -> None:
    errors = []
    for case in CASES:
        if case["kind"] != "comm_latency":
            continue
        tokens, copies, row = one(case["tokens"]), one(8), one(2 * case["hidden"])
        for key, microseconds in case["us"].items():
            gpu, library = key.split("_")
            network = links(GPUS[gpu])
            span = network.span(one(case["ep"]), 1.0)
            if library == "alltoall":
                seconds = network.all_to_all_s(span, tokens * copies * row)
            else:
                back = case["op"] == "combine"
                seconds = network.dispatch_s(span, tokens, copies, row, library.lower(), DEEPSEEK, back)
            errors.append(abs(float(seconds[0]) * 1e6 / microseconds - 1))
    assert len(errors) == 32
    assert np.mean(errors) < 0.12
    assert max(errors) < 0.30


def test_where_groups_lie() -> None:
    h100 = links("h100-sxm-80gb")
    assert h100.span(one(8), 1.0).local == 8
    assert h100.span(one(8), 2.0).local == 4
    assert h100.span(one(64), 8.0).local == 1
    # 64 of the 72 GPUs of a rack are used: jobs come in powers of two.
    rack = links("gb200-nvl72")
    assert rack.span(one(64), 1.0).local == 64
    assert rack.span(one(256), 1.0).local == 64


def test_a_ring_across_nodes_uses_every_local_nic() -> None:
    h100 = links("h100-sxm-80gb")
    size = one(1 << 34)
    alone = h100.ring_s(h100.span(one(16), 8.0), size)
    together = h100.ring_s(h100.span(one(16), 1.0), size)
    assert alone[0] > 4 * together[0]


@pytest.mark.parametrize("kind", ["ring", "all_to_all"])
def test_never_faster_than_the_link(kind: str) -> None:
    machine = load_gpu("h100-sxm-80gb").machine(None)
    network = Links(machine, {})
    payload = one(1e9)
    span = network.span(one(8), 1.0)
    seconds = network.ring_s(span, payload) if kind == "ring" else network.all_to_all_s(span, payload)
    assert seconds[0] > 1e9 * 7 / 8 / (machine.nvlink_gb_per_s * 1e9)


def test_a_group_of_one_sends_nothing() -> None:
    network = links("a100-sxm-80gb")
    span = network.span(one(1), 1.0)
    for seconds in (
        network.ring_s(span, one(1e9), 2.0),
        network.all_to_all_s(span, one(1e9)),
        network.neighbour_s(span, one(1e9)),
        network.dispatch_s(span, one(4096), one(8), one(8192), "deepep"),
    ):
        assert seconds[0] == 0.0


def test_calibration_scales_bandwidth() -> None:
    plain, fast = links("h100-sxm-80gb"), links("h100-sxm-80gb", nvlink=2.0, nic=2.0)
    for size in (8, 64):
        span = plain.span(one(size), 1.0)
        ratio = plain.all_to_all_s(span, one(1e10)) / fast.all_to_all_s(span, one(1e10))
        assert ratio[0] == pytest.approx(2.0, rel=0.01)


@pytest.mark.parametrize(("places", "limit"), [(8, None), (64, None), (2, DEEPSEEK), (8, DEEPSEEK), (64, DEEPSEEK)])
def test_places_reached_against_drawing_them(places: int, limit: Limit | None) -> None:
    rng = np.random.default_rng(0)
    experts, trials, total = 256, 4000, 0
    for _ in range(trials):
        if limit is None:
            chosen = rng.integers(0, experts, 8)
        else:
            groups = rng.choice(limit.groups, limit.chosen, replace=False)
            width = experts // limit.groups
            # Two of the eight experts from each of the four groups.
            chosen = np.concatenate([group * width + rng.integers(0, width, 8 // limit.chosen) for group in groups])
        total += len(np.unique(chosen * places // experts))
    assert float(reached(one(places), one(8), limit)[0]) == pytest.approx(total / trials, rel=0.02)


def test_distinct_counts_boxes() -> None:
    assert distinct(one(1), one(8))[0] == 1
    assert distinct(one(1e6), one(8))[0] == pytest.approx(8, rel=1e-4)
