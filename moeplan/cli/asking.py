"""What search, max-batch and compare have in common: the question's flags, and how it is put to the API."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from moeplan.cli.output import calibration_option, json_option, margin, margin_option
from moeplan.cli.settings import chosen, document_of, space_options

Command = TypeVar("Command", bound=Callable[..., Any])


def question(command: Command) -> Command:
    """MODEL, a flag for every key of the plan, --space, --calibration, --margin-gib and --json."""
    command = json_option(calibration_option(margin_option(command)))
    command = click.option(
        "--space",
        metavar="NAME|FILE",
        default=None,
        help="Search space: a shipped one (default, quick, active-ratio, precision, fsdp, long-context, everything) "
        "or a YAML file.",
    )(command)
    command = space_options(command)
    return click.argument("model", required=False)(command)


def arguments(
    model: str | None, space: str | None, calibration: str | None, margin_gib: float | None, values: dict[str, Any]
) -> dict[str, Any]:
    """The keywords for the API: the plan that the search starts from, and what narrows the space."""
    document = document_of(model)[0] if model is not None else {}
    settings = chosen(values, several=True)
    hardware = {}
    if "hardware.gpu" in settings:
        hardware["gpu"] = settings.pop("hardware.gpu")
    if "model" in settings:
        document["model"] = settings.pop("model")
    if isinstance(settings.get("hardware.gpus"), int):
        hardware["gpus"] = settings.pop("hardware.gpus")
    if hardware:
        document["hardware"] = {**(document.get("hardware") or {}), **hardware}
    return {
        "plan": document,
        "settings": settings,
        "space": space,
        "calibration": calibration,
        "margin_gib": margin(margin_gib),
    }
