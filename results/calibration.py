"""Writes ``calibration.md``: how much calibration helps on runs left out of it (``python results/calibration.py``)."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import time_cases

from moeplan.calibration.document import FACTORS, Calibration
from moeplan.calibration.fit import fit
from moeplan.calibration.runs import Run, read_runs

TARGET = Path(__file__).with_suffix(".md")
REFERENCE = Path(__file__).resolve().parent.parent / "tests" / "reference"
# Fewer runs than this leave nothing to fit on once one is left out.
_LEAST = 4


def groups() -> dict[str, list[Run]]:
    """Measured runs by where they ran: one set of factors is for one GPU type and precision."""
    found: dict[str, list[Run]] = defaultdict(list)
    for run in read_runs(REFERENCE / "time_measured.json"):
        found["B200, bf16, eight GPUs, all overlap off (time_measured.json)"].append(run)
    for run in read_runs(REFERENCE / "memory_measured.json"):
        found["B200, memory (memory_measured.json)"].append(run)
    for run in read_runs(REFERENCE / "throughput_published.json"):
        if run.measured:
            gpu = run.plan.gpu().machine().name
            # A run's name gives its release.
            told = replace(run, software=time_cases.software_of(run.name.split("/")[1]))
            found[f"{gpu}, {run.plan.precision}, releases mixed (throughput_published.json)"].append(told)
    return {name: runs for name, runs in found.items() if len(runs) >= _LEAST}


def row(name: str, calibration: Calibration) -> list[str]:
    """One line of the table per quantity that any factor can change."""
    told = [
        f"{factor} {calibration.factors[factor]:.2f} ± {calibration.spread[factor]:.2f}"
        for factor in FACTORS
        if calibration.identified[factor] >= 0.25
    ]
    lines = []
    for quantity, errors in calibration.errors.items():
        if quantity == "peak_allocated_gib":
            continue  # accounting: no factor acts on it
        cells = [
            f"{mean:.1%} ({most:.1%})"
            for mean, most in (
                (errors.mean_before, errors.max_before),
                (errors.mean_after, errors.max_after),
                (errors.mean_leave_one_out, errors.max_leave_one_out),
            )
        ]
        lines.append(f"| {name} | {quantity} | {errors.runs} | {' | '.join(cells)} | {', '.join(told) or 'none'} |")
    return lines


def main() -> None:
    """Write the table."""
    lines = [
        "# Calibration: what measured runs buy",
        "",
        "Regenerate with `python results/calibration.py`. Each group of runs is fitted as `moeplan calibrate` fits a "
        "file; errors are mean (largest) of predicted against measured. *Left out* predicts each run by factors fitted "
        "to the others: that is the error to expect of a run that was not measured. Only factors that the runs tell "
        "are listed. Published runs mix software releases: those from NeMo 26.06 on say so (`software: {fused_moe: "
        "1}`); what else releases changed no factor of the machine explains, and `moeplan calibrate` warns where "
        "factors do not carry over from run to run.",
        "",
        "| runs | quantity | n | before | after | left out | factors told by the runs |",
        "|---|---|---|---|---|---|---|",
    ]
    better = total = 0
    for name, runs in groups().items():
        calibration = fit(runs, "results/calibration.py").calibration
        lines += row(name, calibration)
        errors = calibration.errors.get("step_s")
        if errors is not None:
            total += 1
            better += errors.mean_leave_one_out < errors.mean_before
    lines += ["", f"Step times left out come closer than without calibration in {better} of {total} groups."]
    TARGET.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
