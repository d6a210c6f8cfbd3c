"""Factors fitted to measured runs: known truths are found again, real runs get closer, and doubts are said."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moeplan
from moeplan.calibration import FACTORS, Calibration, calibrate, load_calibration, load_factors
from moeplan.calibration.document import Errors
from moeplan.calibration.fit import NAMES, NOISE, PRIOR, Predictor, fit
from moeplan.calibration.runs import Run, read_runs
from moeplan.errors import PlanError
from moeplan.plan import load_plan

REFERENCE = Path(__file__).parent / "reference"


def plan(model: str = "llama-3-8b", gpus: int = 8, **values: Any) -> dict[str, Any]:
    document: dict[str, Any] = {"model": model, "hardware": {"gpu": "h100", "gpus": gpus}}
    for key, value in {"batch.global_batch_size": 128, **values}.items():
        section, _, name = key.partition(".")
        document.setdefault(section, {})[name] = value
    return document


# Runs that differ in what binds them: long and short sequences, tensor and expert parallelism, one node and four.
PLANS = (
    plan(),
    plan(**{"batch.sequence_length": 8192, "batch.micro_batch_size": 2}),
    plan(**{"parallel.tp": 8, "batch.sequence_length": 2048}),
    plan(**{"parallel.cp": 2, "batch.sequence_length": 32768, "batch.global_batch_size": 8}),
    plan("qwen3-30b-a3b", **{"parallel.ep": 8}),
    plan("qwen3-30b-a3b", gpus=32, **{"parallel.ep": 32}),
    plan(gpus=32, **{"batch.global_batch_size": 32, "overlap.grad_reduce": False, "overlap.param_gather": False}),
)


def runs_under(factors: Mapping[str, float], noise: float = 0.0) -> list[Run]:
    """What the estimator itself would measure on a machine with these factors."""
    blank = [Run(f"run {i}", load_plan(document), 1.0, None, 1.0) for i, document in enumerate(PLANS)]
    predicted = Predictor(blank).predict(factors)
    wobble = np.exp(noise * np.random.default_rng(0).standard_normal(len(blank)))
    return [
        Run(run.name, run.plan, float(step * more), None, float(reserved))
        for run, step, reserved, more in zip(
            blank, predicted["step_s"], predicted["peak_reserved_gib"], wobble, strict=True
        )
    ]


def test_factors_of_one_are_found_where_the_estimator_is_right() -> None:
    fitted = fit(runs_under({}), "test").calibration
    assert fitted.factors == pytest.approx(dict.fromkeys(NAMES, 1.0), abs=1e-6)
    assert fitted.errors["step_s"].max_after == pytest.approx(0.0, abs=1e-6)


def test_known_factors_are_found_again() -> None:
    truth = {"gemm": 0.85, "attention": 1.2, "host_overhead": 1.5, "fragmentation": 1.6}
    fitted = fit(runs_under(truth, noise=0.005), "test").calibration
    for name, value in truth.items():
        # As far as the prior lets the data speak: three of the fit's own standard deviations.
        assert abs(np.log(fitted.factors[name] / value)) < 3 * fitted.spread[name] + 0.02, name
    errors = fitted.errors["step_s"]
    assert errors.mean_before > 0.1
    assert errors.mean_after < 0.02
    assert errors.mean_leave_one_out < errors.mean_before / 2


def test_what_the_runs_do_not_tell_stays_at_one_and_is_said() -> None:
    """One run on one node, its step time only: nothing of the network, the allocator or the split between kernels."""
    measured = runs_under({"gemm": 0.9})[0]
    run = Run(measured.name, measured.plan, measured.step_s, None, None)
    fitted = fit([run], "test").calibration
    for name in ("nic", "fragmentation"):
        assert fitted.factors[name] == pytest.approx(1.0)
        assert fitted.identified[name] == pytest.approx(0.0)
        assert any(f"do not identify {name}" in line for line in fitted.warnings)
    assert fitted.factors["gemm"] < 1
    assert fitted.expected_error() is None


def test_the_fit_is_the_optimum_of_its_own_objective() -> None:
    """No other factors near it have a notably lower cost, recomputed here from the definition."""
    runs = runs_under({"gemm": 0.8, "attention": 0.9, "nvlink": 0.7}, noise=0.03)
    predictor = Predictor(runs)

    def cost(theta: np.ndarray) -> float:
        predicted = predictor.predict(dict(zip(NAMES, np.exp(theta), strict=True)))
        time = np.log(predicted["step_s"] / [run.step_s for run in runs]) / NOISE["step_s"]
        reserved = np.log(predicted["peak_reserved_gib"] / [run.peak_reserved_gib for run in runs])
        prior = theta / np.array([PRIOR[name] for name in NAMES])
        return float(np.sum(time**2) + np.sum((reserved / NOISE["peak_reserved_gib"]) ** 2) + np.sum(prior**2))

    fitted = fit(runs, "test").calibration
    best = np.log([fitted.factors[name] for name in NAMES])
    lowest = cost(best)
    rng = np.random.default_rng(1)
    for _ in range(12):
        step = rng.standard_normal(len(NAMES))
        # Step times have kinks (what binds changes), on which the fit may stop short: by a quarter of a unit of cost,
        # which is a factor of 1.13 in probability.
        assert cost(best + 0.05 * step / np.linalg.norm(step)) > lowest - 0.25
    assert lowest < cost(np.zeros(len(NAMES))) / 2


def test_leaving_one_out_is_a_fit_on_the_others() -> None:
    runs = runs_under({"gemm": 0.85, "attention": 1.15}, noise=0.02)
    together = fit(runs, "test")
    # With seven runs each one matters, which is where the linearised answer is at its worst.
    for index in (0, 4):
        others = fit([run for at, run in enumerate(runs) if at != index], "test").calibration
        predicted = Predictor([runs[index]]).predict(others.factors)["step_s"][0]
        step = runs[index].step_s
        assert step is not None
        assert together.runs[index].leave_one_out["step_s"] == pytest.approx(predicted / step - 1, abs=0.015)


def test_measured_runs_get_closer_and_stay_closer_when_left_out() -> None:
    """Step times of Megatron-Core on eight B200 (tests/reference/time_measured.json), every other run for speed, on a
    machine that takes a quarter longer for everything."""
    cases = json.loads((REFERENCE / "time_measured.json").read_text())["cases"][::2]
    runs = [Run(case["id"], load_plan(case["plan"]), 1.25 * case["measured"]["step_s"], None, None) for case in cases]
    errors = fit(runs, "test").calibration.errors["step_s"]
    assert errors.mean_before > 0.1
    assert errors.mean_after < errors.mean_before / 2
    assert errors.mean_leave_one_out < errors.mean_before / 2


def test_reference_files_are_taken_as_they_are() -> None:
    time, memory = read_runs(REFERENCE / "time_measured.json"), read_runs(REFERENCE / "memory_measured.json")
    assert (len(time), len(memory)) == (19, 9)
    assert time[0].step_s == 0.843
    assert (memory[0].peak_allocated_gib, memory[0].peak_reserved_gib) == (66.55, 70.88)


def test_throughput_becomes_step_time_by_the_tokens_of_a_step() -> None:
    """The reference gives both for every run: they must agree to what their digits allow."""
    for case in json.loads((REFERENCE / "time_measured.json").read_text())["cases"]:
        measured = case["measured"]
        batch, gpus = case["plan"]["batch"], case["plan"]["hardware"]["gpus"]
        tokens = batch["global_batch_size"] * batch["sequence_length"]
        assert tokens / gpus / measured["tokens_per_s_per_gpu"] == pytest.approx(measured["step_s"], rel=1e-3)


def test_runs_in_all_their_forms(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(load_plan(PLANS[0]).to_yaml())
    (tmp_path / "runs.yaml").write_text(
        "- {plan: plan.yaml, measured: {tokens_per_s_per_gpu: 10000}}\n"
        "- {id: a, plan: plan.yaml, measured: {step_s: 7.5, peak_reserved_gib: 60, ran: true}}\n"
        "- {id: a, plan: plan.yaml, measured: {ran: true}}\n"
    )
    first, second, third = read_runs(tmp_path / "runs.yaml")
    # 128 sequences of 4096 tokens over 8 GPUs at 10,000 tokens per second each.
    assert first.step_s == pytest.approx(128 * 4096 / 8 / 10000)
    assert (first.name, second.name, third.name) == ("run 1", "a", "a #2")
    assert not third.measured
    fitted = calibrate(tmp_path / "runs.yaml").calibration
    assert fitted.runs == 2
    assert any("1 of 3 runs have no measurement" in line for line in fitted.warnings)


def test_what_runs_say_of_their_software_holds_for_what_they_calibrate(tmp_path: Path) -> None:
    fusible = plan("qwen3-30b-a3b", **{"parallel.ep": 8, "moe.dispatcher": "hybridep", "kernels.cuda_graphs": True})
    fusible |= {"hardware": {"gpu": "gb200-nvl72", "gpus": 8}, "precision": "mxfp8"}
    measured = {"plan": fusible, "measured": {"step_s": 2.0}}
    path = tmp_path / "runs.yaml"
    path.write_text(json.dumps({"software": {"fused_moe": True}, "runs": [measured, measured]}))
    fitted = calibrate(path).calibration
    assert fitted.software == {"fused_moe": 1.0}
    told, untold = (
        moeplan.estimate(fusible, calibration=calibration(factors={}, software=software)).time.step_s
        for software in (fitted.software, {})
    )
    assert told < untold
    # Runs of different software: the file says only what they share.
    other = {**measured, "software": {"fused_moe": False}}
    path.write_text(json.dumps({"software": {"fused_moe": 1, "compiled": 0}, "runs": [measured, other]}))
    fitted = calibrate(path).calibration
    assert fitted.software == {"compiled": 0.0}
    assert any("different software" in line for line in fitted.warnings)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "has no runs"),
        ("a: 1", "no list of runs"),
        ("- 3", "is no mapping"),
        ("- {measured: {step_s: 1}}", "has no 'plan'"),
        ("- {plan: {}, measured: 3}", "measured is no mapping"),
        ("- {plan: {model: llama-3-8b, hardware: {gpu: h100, gpus: 8}}, measured: {step: 1}}", "did you mean 'step_s'"),
        ("- {plan: {model: llama-3-8b, hardware: {gpu: h100, gpus: 8}}, measured: {step_s: -1}}", "above 0"),
        ("- {plan: {model: llama-3-8b, hardware: {gpu: h100, gpus: 8}}, measured: {step_s: .nan}}", "above 0"),
        ("- {plan: {model: llama-9, hardware: {gpu: h100, gpus: 8}}, measured: {step_s: 1}}", "run 1"),
        ("- {plan: {model: llama-3-8b}, measured: {step_s: 1}}", "hardware"),
        ("- {plan: nowhere.yaml, measured: {step_s: 1}}", "nowhere.yaml"),
        ("- {plan: {model: llama-3-8b, hardware: {gpu: h100, gpus: 8}}, measured: {}}", "none has a measurement"),
        ("{software: {fused: 1}, runs: [{plan: {}, measured: {}}]}", "did you mean 'fused_moe'"),
        ("{software: {fused_moe: 2}, runs: [{plan: {}, measured: {}}]}", "software.fused_moe is '2'"),
        ("{software: fused_moe, runs: [{plan: {}, measured: {}}]}", "software is no mapping"),
    ],
)
def test_bad_runs_are_refused_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "runs.yaml"
    path.write_text(text)
    with pytest.raises(PlanError) as refused:
        calibrate(path)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def calibration(**changes: Any) -> Calibration:
    document: dict[str, Any] = {
        "source": "calibrate",
        "made_by": "test",
        "gpus": ["h100-sxm-80gb"],
        "precisions": ["bf16"],
        "runs": 5,
        "factors": {"gemm": 0.5},
    }
    return load_calibration(document | changes)


def test_the_file_round_trips(tmp_path: Path) -> None:
    path = tmp_path / "calibration.yaml"
    fitted = fit(runs_under({"gemm": 0.9})[:2], "test").calibration
    path.write_text(fitted.to_yaml())
    assert load_calibration(path) == fitted
    assert load_factors(path) == fitted.factors
    assert set(fitted.factors) == set(FACTORS)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "has no factors"),
        ({"factors": {"gemm": 0}}, "gemm"),
        ({"factors": {"gemm": float("nan")}}, "gemm"),
        ({"factors": {"gemm": 1e9}}, "gemm"),
        ({"factors": {"gem": 1.0}}, "did you mean 'gemm'"),
        ({"factors": {"gemm": 1.0}, "color": 3}, "color"),
        ({"factors": {}, "software": {"fused": 1}}, "did you mean 'fused_moe'"),
        ({"factors": {}, "software": {"fused_moe": 2}}, "fused_moe"),
    ],
)
def test_bad_calibrations_are_refused(document: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError) as refused:
        if "factors" in document:
            calibration(**document)
        else:
            load_calibration(document)
    assert message in str(refused.value)


def test_answers_say_whether_they_are_calibrated_and_for_what() -> None:
    plain = moeplan.estimate(PLANS[0])
    slowed = moeplan.estimate(PLANS[0], calibration=calibration())
    assert not plain.calibrated
    assert slowed.calibrated
    # Matrix products are most of this step: at half their speed it takes most of twice as long.
    assert 1.5 < slowed.time.step_s / plain.time.step_s < 2.0
    elsewhere = moeplan.estimate(PLANS[0], calibration=calibration(gpus=["b200-sxm"], precisions=["fp8"]))
    assert any("calibrated on b200-sxm" in line for line in elsewhere.warnings)
    assert any("calibrated in fp8" in line for line in elsewhere.warnings)


def test_the_range_is_that_of_the_runs_left_out() -> None:
    errors = Errors(
        runs=5,
        mean_before=0.1,
        max_before=0.2,
        mean_after=0.01,
        max_after=0.02,
        mean_leave_one_out=0.015,
        max_leave_one_out=0.03,
    )
    sure = moeplan.estimate(PLANS[0], calibration=calibration(errors={"step_s": errors.model_dump()}))
    plain = moeplan.estimate(PLANS[0])
    assert sure.uncertainty is not None
    assert plain.uncertainty is not None
    assert sure.uncertainty.relative == pytest.approx(0.015)
    assert sure.uncertainty.relative < plain.uncertainty.relative
