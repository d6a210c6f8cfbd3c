"""``moeplan models``: the models of the catalog."""

from __future__ import annotations

import click

from moeplan.cli import status
from moeplan.cli.output import console, json_option, print_json


@click.command("models")
@json_option
def command(as_json: bool) -> int:
    """List the models of the catalog with their parameters."""
    from moeplan.model import describe, load_model, model_names

    documents = [{"name": name, **describe(load_model(name))} for name in model_names()]
    if as_json:
        print_json({"schema_version": 1, "models": documents})
    else:
        from moeplan.report.catalog import show_models

        show_models(documents, console())
    return status.DONE
