"""A calibration as tables: factors, errors before and after, run by run."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console

from moeplan.calibration import FACTORS, SOFTWARE, Calibration
from moeplan.calibration.fit import FitResult
from moeplan.report.tables import heading, seconds, table


def show_fit(fitted: FitResult, console: Console) -> None:
    """Factors, errors and every run."""
    calibration = fitted.calibration
    show_factors(calibration, console)
    heading(console, "Error of the predictions, mean (largest)")
    listing = table(("quantity", "runs", "before", "after", "leave one out"))
    for quantity, errors in calibration.errors.items():
        listing.add_row(
            quantity,
            str(errors.runs),
            f"{100 * errors.mean_before:.1f} % ({100 * errors.max_before:.1f} %)",
            f"{100 * errors.mean_after:.1f} % ({100 * errors.max_after:.1f} %)",
            f"{100 * errors.mean_leave_one_out:.1f} % ({100 * errors.max_leave_one_out:.1f} %)",
        )
    console.print(listing)
    heading(console, "Run by run (predicted over measured, less one)")
    listing = table(("run", "quantity", "before", "after", "leave one out"), left=2)
    for run in fitted.runs:
        for quantity in run.before:
            listing.add_row(
                run.name,
                quantity,
                *(_signed(errors, quantity) for errors in (run.before, run.after, run.leave_one_out)),
            )
    console.print(listing)


def show_factors(calibration: Calibration, console: Console) -> None:
    """Every factor with its spread and how far the runs tell it."""
    heading(console, "Factors (1 is the estimator's own figure)")
    listing = table(("factor", "multiplies", "value", "spread", "told by the runs"), left=2)
    for name, meaning in FACTORS.items():
        if name not in calibration.factors:
            continue
        spread, told = calibration.spread.get(name), calibration.identified.get(name)
        listing.add_row(
            name,
            meaning,
            f"{calibration.factors[name]:.3f}",
            f"±{100 * spread:.0f} %" if spread is not None else "-",
            f"{100 * told:.0f} %" if told is not None else "-",
        )
    console.print(listing)
    for name, share in calibration.software.items():
        console.print(f"software, as told: {name} {share:g} ({SOFTWARE[name]})")


def show_kernels(calibration: Calibration, console: Console) -> None:
    """What was benchmarked, and the factors."""
    listing = table(("kernel", "precision", "shape", "measured", "predicted"), left=3)
    for kernel in calibration.kernels:
        listing.add_row(
            kernel.kind,
            kernel.precision,
            " ".join(f"{name}={size}" for name, size in kernel.shape.items()),
            seconds(kernel.measured_s),
            seconds(kernel.predicted_s) if kernel.predicted_s is not None else "-",
        )
    heading(console, f"Kernels on {', '.join(calibration.gpus)}")
    console.print(listing)
    show_factors(calibration, console)


def _signed(errors: Mapping[str, float], quantity: str) -> str:
    return f"{100 * errors[quantity]:+.1f} %" if quantity in errors else "-"
