"""The fold over parts against the sum of its parts, which the explanation shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.search_cases import deepseek, h100, mixtral

from moeplan.estimator.columns import DEFAULTS
from moeplan.estimator.memory import live_parts, stage_memory
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
