"""Writes ``validation.md``: what ``moeplan.estimate`` answers for measured runs (``python results/validation.py``).

Every plan goes through the public API just as a user's would: no calibration, no knowledge of the software release.
``memory.py`` and ``time.py`` go deeper: operator by operator, cross-validated, and with release-specific factors.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import moeplan

TARGET = Path(__file__).with_suffix(".md")
REFERENCE = Path(__file__).resolve().parent.parent / "tests" / "reference"


def main() -> None:
    """Estimate every run and write the tables."""
    lines = [
        "# Estimates against measured runs",
        "",
        "Regenerate with `python results/validation.py`: the public API on each run's plan, uncalibrated. More depth: "
        "[memory.md](memory.md) (stages, operators, Megatron-LM's own runs) and [time.md](time.md) (cross-validation, "
        "operators, collectives, order of configurations).",
        "",
        *_memory(_cases("memory_measured")),
        *_step_time(_cases("time_measured")),
        *_throughput(_cases("throughput_published")),
    ]
    TARGET.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _cases(name: str) -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads((REFERENCE / f"{name}.json").read_text(encoding="utf-8"))["cases"]
    return cases


def _summary(errors: list[float]) -> str:
    size = np.abs(errors)
    return (
        f"{len(errors)} figures: mean error {100 * size.mean():.2f} %, median {100 * np.median(size):.2f} %, "
        f"worst {100 * size.max():.2f} %, bias {100 * np.mean(errors):+.2f} %."
    )


def _memory(cases: list[dict[str, Any]]) -> Iterator[str]:
    rows, errors = [], []
    for case in cases:
        found = moeplan.estimate(case["plan"]).memory
        told = case["measured"]["peak_allocated_gib"]
        errors.append(found.peak_allocated_gib / told - 1)
        peer = case["peer"]["simumax"]["peak_allocated_gib"] / told - 1
        rows.append(
            f"| {case['id']} | {told:.2f} | {found.peak_allocated_gib:.2f} | {100 * errors[-1]:+.2f} % "
            f"| {100 * peer:+.2f} % |"
        )
    yield from ("## Peak memory of the fullest stage", "", _summary(errors), "")
    yield from ("| run | measured GiB | predicted | error | SimuMax v1.2 |", "|---|---|---|---|---|", *rows, "")


def _step_time(cases: list[dict[str, Any]]) -> Iterator[str]:
    rows, errors, peers = [], [], []
    for case in cases:
        found = moeplan.estimate(case["plan"]).time.step_s
        told = case["measured"]["step_s"]
        errors.append(found / told - 1)
        peers.append(case["peer"]["simumax"]["step_s"] / told - 1)
        rows.append(
            f"| {case['id']} | {told:.3f} | {found:.3f} | {100 * errors[-1]:+.1f} % | {100 * peers[-1]:+.1f} % |"
        )
    yield from ("## Step time", "", _summary(errors) + f" SimuMax v1.2, tuned on these runs: {_summary(peers)}", "")
    yield from ("| run | measured s | predicted | error | SimuMax v1.2 |", "|---|---|---|---|---|", *rows, "")


def _throughput(cases: list[dict[str, Any]]) -> Iterator[str]:
    rows, errors, misfits = [], [], 0
    for case in cases:
        found = moeplan.estimate(case["plan"])
        told = case["measured"]["tokens_per_s_per_gpu"]
        errors.append(found.throughput.tokens_per_s_per_gpu / told - 1)
        misfits += not found.fits
        rows.append(
            f"| {case['id']} | {told:,} | {found.throughput.tokens_per_s_per_gpu:,.0f} | {100 * errors[-1]:+.1f} % "
            f"| {'yes' if found.fits else 'no'} |"
        )
    yield from ("## Published throughput", "", _summary(errors), "")
    yield (
        f"All of these ran; {misfits} are said not to fit, because a setting that made them fit is not in the plan "
        "(named in [memory.md](memory.md))."
    )
    yield from ("", "| run | tokens/s per GPU | predicted | error | fits |", "|---|---|---|---|---|", *rows, "")


if __name__ == "__main__":
    main()
