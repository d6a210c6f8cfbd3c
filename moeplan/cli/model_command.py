"""``moeplan model``: parameters of one model, by component."""

from __future__ import annotations

import click

from moeplan.cli import status
from moeplan.cli.output import console, json_option, print_json


@click.command("model")
@click.argument("name_or_path")
@json_option
def command(name_or_path: str, as_json: bool) -> int:
    """Count the parameters of a model: in all, those one token meets, and by component.

    NAME_OR_PATH is a catalog name, or the path of a Hugging Face config.json or its folder.
    """
    from moeplan.model import describe, load_model

    document = describe(load_model(name_or_path))
    if as_json:
        print_json(document)
    else:
        from moeplan.report.catalog import show_model

        show_model(document, console())
    return status.DONE
