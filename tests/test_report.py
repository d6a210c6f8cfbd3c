"""What the tables say: the same figures as the documents, and words where there is no figure."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support.models import SMALL_MIXTRAL

import moeplan
from moeplan.answers.sizing import calculate
from moeplan.cli.app import run
from moeplan.report.estimate import degrees, show_estimate
from moeplan.report.search import show_search
from moeplan.report.sizing import show_sizing
from moeplan.report.strategies import show_comparison, show_max_batch
from moeplan.report.tables import count, money, seconds

QUESTION: dict[str, Any] = {"model": SMALL_MIXTRAL, "gpu": "h100", "gpus": 16}


def shown(show: Any, document: Any, *more: Any, width: int = 180) -> str:
    """What a table prints, without colour."""
    console = Console(width=width, color_system=None, highlight=False)
    with console.capture() as capture:
        show(document, console, *more)
    return capture.get()


def test_an_estimate_tells_its_own_figures() -> None:
    estimate = moeplan.estimate(
        {"model": QUESTION["model"], "hardware": {"gpu": "h100", "gpus": 16}, "parallel": {"pp": 2, "ep": 8}},
        breakdown=True,
    )
    text = shown(show_estimate, estimate)
    assert f"{estimate.throughput.tokens_per_s:,.0f} tokens/s" in text
    assert f"fits, with {estimate.memory.headroom_gib:,.2f} GiB" in text
    assert estimate.limit in text
    for stage in estimate.memory.stages:
        assert re.search(rf"^ {stage.stage} .*{stage.peak_allocated_gib:,.2f}", text, re.MULTILINE)
    assert estimate.breakdown is not None
    assert f"the wall: {estimate.breakdown.wall}" in text
    for saving in estimate.savings:
        assert saving.change in text
    for line in estimate.assumptions:
        assert line.split()[0] in text


def test_a_plan_that_does_not_fit_says_by_how_much() -> None:
    estimate = moeplan.estimate({"model": "mixtral-8x7b", "hardware": {"gpu": "h100", "gpus": 1}})
    assert f"does not fit: {-estimate.memory.headroom_gib:,.2f} GiB too much" in shown(show_estimate, estimate)


@pytest.mark.parametrize("width", [80, 180])
def test_a_search_tells_every_plan_and_how_sure_it_is(width: int) -> None:
    found = moeplan.search(**QUESTION, space="quick", top=3)
    yours = moeplan.estimate({"model": QUESTION["model"], "hardware": {"gpu": "h100", "gpus": 16}})
    text = shown(show_search, found, yours, width=width)
    assert found.best is not None
    assert f"{found.counts.legal:,} legal" in text
    assert "certificate: every legal candidate's memory" in text
    for candidate in found.top:
        assert f"{candidate.estimate.throughput.tokens_per_s:,.0f}" in text
    gain = found.best.estimate.throughput.tokens_per_s / yours.throughput.tokens_per_s
    assert f"{gain:.2f} times as fast" in " ".join(text.split())


def test_nothing_fits_is_said_with_what_would_help() -> None:
    found = moeplan.search(model="mixtral-8x7b", gpu="l40s", gpus=8, space="quick")
    text = " ".join(shown(show_search, found, width=200).split())
    assert found.best is None
    assert "nothing fits" in text
    assert f"{found.near_misses[0].overflow_gib:,.2f} GiB too much per GPU" in text
    assert "none fits" in text
    change = next((miss.change for miss in found.near_misses if miss.change), "")
    assert change in text


def test_the_change_that_would_fit_does_fit() -> None:
    closest = moeplan.search(model="mixtral-8x7b", gpu="l40s", gpus=8, space="quick").near_misses[0]
    assert closest.change.startswith("optimizer state in host memory")
    assert not closest.estimate.fits
    assert moeplan.estimate(closest.plan.with_values({"optimizer.offload_fraction": 1.0})).fits


def test_more_gpus_are_named_where_no_single_change_helps() -> None:
    closest = moeplan.search(model="mixtral-8x7b", gpu="l40s", gpus=4, space="quick").near_misses[0]
    gpus = int(closest.change.split()[0])
    assert gpus > 4
    assert moeplan.search(model="mixtral-8x7b", gpu="l40s", gpus=gpus, space="quick", top=1).best is not None


def test_strategies_are_told_side_by_side() -> None:
    compared = moeplan.compare(**QUESTION, space="quick")
    text = shown(show_comparison, compared)
    for one in compared.strategies:
        assert one.strategy in text
        if one.fits and one.estimate is not None:
            assert f"{one.estimate.throughput.tokens_per_s:,.0f}" in text
    largest = moeplan.max_batch(**QUESTION, space="quick")
    text = shown(show_max_batch, largest)
    assert largest.best is not None
    assert f"largest of all: {largest.best.global_batch_size:,} sequences" in text


def test_the_calculator_s_table_holds_the_article_s_figures() -> None:
    document = calculate(
        experts=64, expert_parameters=1e9, shared_parameters=10e9, batch_size=[4096, 8192], active_ratio=0.25,
        dtype="fp16", gpu="h100",
    )  # fmt: skip
    text = shown(show_sizing, document)
    assert "148.0 GB = 137.8 GiB" in text
    assert "16 tokens per expert, 65,536 bytes" in text
    assert document.result.gpus_needed is not None
    assert f"at least {document.result.gpus_needed} GPUs" in text
    assert "8,192" in text


def test_a_fit_is_told_with_its_errors(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    plan = {"model": QUESTION["model"], "hardware": {"gpu": "h100", "gpus": 16}, "parallel": {"ep": 8}}
    step_s = moeplan.estimate(plan).time.step_s
    (tmp_path / "runs.json").write_text(
        json.dumps({"runs": [{"id": "mine", "plan": plan, "measured": {"step_s": 1.1 * step_s}}]})
    )
    assert run(["calibrate", str(tmp_path / "runs.json")]) == 0
    text = capsys.readouterr().out
    # Predicted over measured, less one: 1 / 1.1 - 1.
    assert "-9.1 %" in text
    assert "gemm" in text


def test_degrees_above_one_are_named() -> None:
    plan = moeplan.load_plan(
        {"model": "mixtral-8x7b", "hardware": {"gpu": "h100", "gpus": 64}, "parallel": {"tp": 2, "pp": 2, "ep": 8}}
    )
    assert degrees(plan) == "tp 2, pp 2, dp 16, ep 8, edp 4"
    assert degrees(plan, experts_derived=False) == "tp 2, pp 2, dp 16, ep 8"
    alone = moeplan.load_plan({"model": "llama-3-8b", "hardware": {"gpu": "h100", "gpus": 1}})
    assert degrees(alone) == "one GPU"


@pytest.mark.parametrize(
    ("told", "text"),
    [
        (count(46_702_792_704), "46.7 B"),
        (count(950), "950"),
        (seconds(0.0125), "12.5 ms"),
        (seconds(2e-5), "20 µs"),
        (seconds(0), "0"),
        (money(None), "-"),
        (money(float("nan")), "-"),
        (money(12.5), "$12.50"),
        (money(12345.6), "$12,346"),
    ],
)
def test_figures_read_as_people_write_them(told: str, text: str) -> None:
    assert told == text
