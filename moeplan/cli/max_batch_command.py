"""``moeplan max-batch``: the largest batch that fits, and what binds it."""

from __future__ import annotations

from typing import Any

import click

from moeplan.cli import status
from moeplan.cli.asking import arguments, question
from moeplan.cli.output import console, print_json


@click.command("max-batch")
@question
def command(
    model: str | None,
    space: str | None,
    calibration: str | None,
    margin_gib: float | None,
    as_json: bool,
    **values: Any,
) -> int:
    """Find the largest batch of MODEL that fits, per parallel strategy and over all, and what binds it.

    The batch is that of one pass through a full pipeline (micro_batch_size * dp * pp sequences): gradient accumulation
    multiplies it without needing more memory.

    \b
    moeplan max-batch qwen3-30b-a3b --gpu h100 --gpus 16 --sequence-length 8192
    """
    from moeplan.api import max_batch

    answer = max_batch(**arguments(model, space, calibration, margin_gib, values))
    if as_json:
        print_json(answer)
    else:
        from moeplan.report.strategies import show_max_batch

        show_max_batch(answer, console())
    return status.DONE if answer.best is not None else status.NOTHING_FITS
