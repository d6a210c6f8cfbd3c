"""The fold over parts against the sum of its parts, which the explanation shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.search_cases import deepseek, h100, mixtral

from moeplan.estimator.columns import DEFAULTS
from moeplan.estimator.memory import live_parts, peak_memory, stage_memory
from moeplan.estimator.stages import structure
from moeplan.estimator.table import Column
from moeplan.model.architecture import Architecture
from moeplan.search.candidates import candidates
from moeplan.search.space import load_space

_BLOCKS = {
    "recompute": {"granularity": ["none", "full"], "method": [None, "uniform", "block"], "layers": [None, 1, 2]},
    "parallel": {"vpp": [1, 2], "tp": [1, 2]},
    "overlap": {"ep": False},
}


@pytest.mark.parametrize(
    ("model", "space"),
    [(mixtral(), "default"), (deepseek(), "default"), (mixtral(), _BLOCKS)],
    ids=["mixtral", "deepseek", "blocks"],
)
def test_fold_is_the_sum_of_the_parts(model: Architecture, space: Any) -> None:
    base = {**DEFAULTS, "gpus": 256, "global_batch_size": 2048}
    found = candidates(model, h100(), base, load_space(space))
    bodies = np.sort(np.random.default_rng(0).choice(found.bodies.rows, 40, replace=False))
    table, _ = found.of(bodies)
    stages = structure(model, table)
    memory = stage_memory(model, h100(), table, stages, {})
    joint = table.with_columns({"_pipeline": Column(tuple(range(len(stages.counts))), stages.index)})
    alive, plain, rebuilt = live_parts(model, joint, stages)
    climb = np.maximum(np.maximum(plain.max(axis=2), rebuilt.max(axis=2)), 0.0)
    assert memory.activations == pytest.approx(alive.sum(axis=2), rel=1e-12)
    assert memory.transient == pytest.approx(climb, rel=1e-12)


@pytest.mark.parametrize(
    "space", ["default", "fsdp", "precision", _BLOCKS], ids=["default", "fsdp", "precision", "blocks"]
)
def test_peak_is_that_of_the_fullest_moment_to_the_bit(space: Any) -> None:
    model, base = deepseek(), {**DEFAULTS, "gpus": 256, "global_batch_size": 2048}
    found = candidates(model, h100(), base, load_space(space))
    bodies = np.sort(np.random.default_rng(1).choice(found.bodies.rows, 60, replace=False))
    table, _ = found.of(bodies)
    stages = structure(model, table)
    memory = stage_memory(model, h100(), table, stages, {})
    peak = peak_memory(model, h100(), table, stages, {})
    np.testing.assert_array_equal(peak.allocated, memory.peak_allocated.max(axis=1))
    np.testing.assert_array_equal(peak.reserved, memory.peak_reserved.max(axis=1))
    # Any moment of the stage may be told, of the first stage that needs the most.
    first = stages.stage[stages.index, memory.peak_allocated.argmax(axis=1)]
    np.testing.assert_array_equal(stages.stage[stages.index, peak.moment], first)
    terms = (
        memory.parameters,
        memory.gradients,
        memory.optimizer,
        memory.activations,
        memory.transient,
        memory.buffers,
    )
    highest = sum(np.broadcast_to(term, memory.peak_allocated.shape) for term in terms).max(axis=1)
    assert peak.allocated == pytest.approx(highest, rel=1e-12)
