"""What commands print: one JSON document on stdout, or tables; everything else on stderr."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
calibration_option = click.option(
    "--calibration", metavar="FILE", default=None, help="Factors that 'moeplan calibrate' fitted."
)
margin_option = click.option(
    "--margin-gib", type=float, default=None, metavar="GIB", help="Memory per GPU to leave free (default 1)."
)


def print_json(document: BaseModel | Any) -> None:
    """Print one document on stdout."""
    dump = getattr(document, "model_dump_json", None)
    click.echo(dump(indent=2) if dump is not None else json.dumps(document, indent=2, allow_nan=False))


def console() -> Console:
    """The terminal on stdout; piped output is as wide as a table needs and without colour."""
    from rich.console import Console

    terminal = Console(highlight=False, soft_wrap=False)
    return terminal if terminal.is_terminal else Console(highlight=False, width=180, color_system=None)


def warn(message: str) -> None:
    """A warning on stderr."""
    click.echo(f"warning: {message}", err=True)


def margin(given: float | None) -> float:
    """The margin on the command line, or the default."""
    from moeplan.estimator.price import DEFAULT_MARGIN_GIB

    return DEFAULT_MARGIN_GIB if given is None else given
