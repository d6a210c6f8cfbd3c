"""Memory against measurements: Megatron-Core stage by stage, Megatron-LM's own runs, published runs that ran."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "results"))

from memory_cases import Fit, Integration, Stage, cases, fits, integration, measured, priced, savings

from moeplan.plan import load_plan


@pytest.fixture(scope="module")
def stages() -> list[Stage]:
    return measured()


@pytest.fixture(scope="module")
def runs() -> list[Integration]:
    return integration()


@pytest.fixture(scope="module")
def published() -> list[Fit]:
    return fits()


def test_every_stage_is_within_one_percent_and_half_a_percent_on_average(stages: list[Stage]) -> None:
    errors = np.abs([stage.predicted_allocated / stage.allocated - 1 for stage in stages])
    assert len(stages) == 10
    assert errors.max() < 0.01
    assert errors.mean() < 0.005


def test_every_stage_is_closer_than_the_estimator_that_was_tuned_on_these_runs(stages: list[Stage]) -> None:
    compared = [stage for stage in stages if stage.peer is not None]
    assert len(compared) == 9
    for stage in compared:
        assert stage.peer is not None
        assert abs(stage.predicted_allocated - stage.allocated) < abs(stage.peer - stage.allocated), stage.case


def test_reserved_memory_is_within_three_percent(stages: list[Stage]) -> None:
    for stage in stages:
        assert stage.predicted_reserved == pytest.approx(stage.reserved, rel=0.03), stage.case


def test_integration_runs_after_the_step_are_within_three_percent(runs: list[Integration]) -> None:
    compared = [run for run in runs if not run.left_out]
    assert len(compared) >= 26
    for run in compared:
        assert run.static[1] == pytest.approx(run.static[0], rel=0.03), run.case


def test_integration_runs_peak_within_six_percent(runs: list[Integration]) -> None:
    for run in runs:
        if not run.left_out:
            assert run.peak[1] == pytest.approx(run.peak[0], rel=0.06), run.case


@pytest.mark.parametrize(
    ("recompute", "saved_gib"),
    [
        ({"granularity": "none"}, 6.08),
        ({"granularity": "full"}, 1.02),
        ({"granularity": "selective", "modules": ["layernorm", "mla_up_proj", "moe_act"]}, 3.38),
    ],
)
def test_recomputation_keeps_what_another_account_keeps(recompute: dict[str, Any], saved_gib: float) -> None:
    # SimuMax v1.2, cached bytes per micro batch of the measured DeepSeek-V2 run (four layers, EP8).
    plan = next(case["plan"] for case in cases("memory_measured") if "deepseekv2" in case["id"])
    answer = priced(load_plan({**plan, "recompute": recompute}))
    assert answer.gib("activations", 0) == pytest.approx(saved_gib, rel=0.02)


def test_published_runs_fit_unless_their_missing_setting_is_named(published: list[Fit]) -> None:
    assert len(published) == 84 + 75
    assert all(run.fits or run.missing for run in published)
    assert sum(not run.fits for run in published) <= 15


def test_published_savings_lie_within_the_pipeline_s_stages() -> None:
    # The report names no stage; its figure must be one that some stage could show, to its own rounding.
    for measure in savings():
        assert 0.95 * measure.least <= measure.published <= 1.05 * measure.most, measure.measure
