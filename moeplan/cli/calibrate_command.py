"""``moeplan calibrate``: factors fitted to measured runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from moeplan.cli import status
from moeplan.cli.output import console, json_option, print_json, warn

if TYPE_CHECKING:
    from moeplan.calibration import Calibration


@click.command("calibrate")
@click.argument("runs")
@click.option("-o", "--output", default=None, metavar="FILE", help="Write the calibration there.")
@click.option("--overwrite", is_flag=True, help="Replace the file if it is there.")
@json_option
def command(runs: str, output: str | None, overwrite: bool, as_json: bool) -> int:
    """Fit a handful of factors to the measured RUNS: a YAML list of {plan, measured}.

    'measured' may hold step_s or tokens_per_s_per_gpu, peak_allocated_gib, peak_reserved_gib. Factors are pulled
    towards 1 where the runs do not tell; the errors before, after and leaving each run out are printed.

    \b
    moeplan calibrate runs.yaml -o calibration.yaml
    moeplan search mixtral-8x7b --gpu h100 --gpus 64 --calibration calibration.yaml
    """
    from moeplan.calibration import calibrate

    fitted = calibrate(runs)
    write_calibration(fitted.calibration, output, overwrite)
    if as_json:
        print_json(fitted.calibration)
    else:
        from moeplan.report.calibration import show_fit

        show_fit(fitted, console())
    for line in fitted.calibration.warnings:
        warn(line)
    return status.DONE


def write_calibration(calibration: Calibration, output: str | None, overwrite: bool) -> None:
    """Write a calibration's file, if one was asked for."""
    if output is None:
        return
    from moeplan.documents import write_text_atomically

    write_text_atomically(output, calibration.to_yaml(), overwrite)
    click.echo(f"wrote {output}", err=True)
