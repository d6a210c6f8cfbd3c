"""``moeplan estimate``: what one plan needs and how fast it is."""

from __future__ import annotations

from typing import Any

import click

from moeplan.cli import status
from moeplan.cli.output import calibration_option, console, json_option, margin, margin_option, print_json
from moeplan.cli.settings import plan_of, plan_options


@click.command("estimate")
@click.argument("plan_or_model")
@plan_options
@click.option("--breakdown", is_flag=True, help="Show where memory and time go, operator by operator.")
@margin_option
@calibration_option
@json_option
def command(
    plan_or_model: str,
    breakdown: bool,
    margin_gib: float | None,
    calibration: str | None,
    as_json: bool,
    **values: Any,
) -> int:
    """Estimate memory, step time, throughput and cost of one configuration.

    PLAN_OR_MODEL is a plan file (- for standard input), a catalog name, or the path of a config.json or its folder.
    Flags override what a plan file says; --set reaches any key.

    \b
    moeplan estimate plan.yaml --breakdown
    moeplan estimate mixtral-8x7b --gpu h100 --gpus 64 --tp 2 --ep 8 --set recompute.granularity=full
    """
    from moeplan.api import estimate

    plan = plan_of(plan_or_model, values)
    answer = estimate(plan, calibration=calibration, breakdown=breakdown, margin_gib=margin(margin_gib))
    if as_json:
        print_json(answer)
    else:
        from moeplan.report.estimate import show_estimate

        show_estimate(answer, console())
    return status.DONE if answer.fits else status.NOTHING_FITS
