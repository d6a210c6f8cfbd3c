"""``moeplan compare``: parallel strategies side by side."""

from __future__ import annotations

from typing import Any

import click

from moeplan.cli import status
from moeplan.cli.asking import arguments, question
from moeplan.cli.output import console, print_json


@click.command("compare")
@question
@click.option("--objective", default="throughput", metavar="NAME", help="throughput, batch, memory or cost.")
def command(
    model: str | None,
    space: str | None,
    calibration: str | None,
    margin_gib: float | None,
    as_json: bool,
    objective: str,
    **values: Any,
) -> int:
    """Compare data, tensor, expert and pipeline parallelism and their best mix, each at its best.

    \b
    moeplan compare mixtral-8x7b --gpu h100 --gpus 64
    """
    from moeplan.api import compare

    answer = compare(objective=objective, **arguments(model, space, calibration, margin_gib, values))
    if as_json:
        print_json(answer)
    else:
        from moeplan.report.strategies import show_comparison

        show_comparison(answer, console())
    return status.DONE if answer.best is not None else status.NOTHING_FITS
