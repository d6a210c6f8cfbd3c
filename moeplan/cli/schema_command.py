"""``moeplan schema``: the JSON Schema of the documents."""

from __future__ import annotations

import click

from moeplan.cli import status
from moeplan.cli.output import print_json


@click.command("schema")
@click.argument("document", type=click.Choice(["plan", "estimate", "search"]))
@click.option("--json", is_flag=True, hidden=True, help="The schema is JSON in any case.")
def command(document: str, json: bool) -> int:
    """Print the JSON Schema (draft 2020-12) of a plan, an estimate or a search."""
    from moeplan.answers.schema import schema

    print_json(schema(document))
    return status.DONE
