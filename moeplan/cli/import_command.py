"""``moeplan import``: a plan from a launch script or configuration that exists."""

from __future__ import annotations

import click

from moeplan.cli import status
from moeplan.cli.output import json_option, print_json
from moeplan.errors import PlanError


@click.command("import")
@click.argument("framework")
@click.argument("file")
@click.option("--gpu", default=None, metavar="NAME", help="GPU of the plan: catalog name, alias or path.")
@click.option("--gpus", type=int, default=None, metavar="N", help="GPUs in all, where the file does not say.")
@click.option("--gpus-per-node", type=int, default=None, metavar="N", help="GPUs in one host.")
@click.option("--model", default=None, metavar="NAME|PATH", help="The model, where the file does not describe one.")
@click.option("--vocabulary", type=int, default=None, metavar="N", help="Tokens, where a script leaves it open.")
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="NAME=VALUE",
    help="A variable that the script leaves open: TP=2, or 1=value for its first argument.",
)
@click.option("-o", "--output", default=None, metavar="PLAN.yaml", help="Write the plan there (default: stdout).")
@click.option("--overwrite", is_flag=True, help="Replace the file if it is there.")
@json_option
def command(
    framework: str,
    file: str,
    gpu: str | None,
    gpus: int | None,
    gpus_per_node: int | None,
    model: str | None,
    vocabulary: int | None,
    assignments: tuple[str, ...],
    output: str | None,
    overwrite: bool,
    as_json: bool,
) -> int:
    """Read FILE of FRAMEWORK (megatron, megatron-bridge, deepspeed, torchtitan, accelerate) into a plan.

    For megatron, FILE is a launch script, or a YAML or JSON mapping of flags to values. What could not be used is
    listed on stderr and, with --json, under "unused".

    \b
    moeplan import megatron pretrain.sh --gpu h100 --gpus 64 -o plan.yaml
    """
    from moeplan.documents import write_text_atomically
    from moeplan.importers import read

    found = read(
        framework,
        file,
        gpu=gpu,
        gpus=gpus,
        model=model,
        vocabulary=vocabulary,
        gpus_per_node=gpus_per_node,
        variables=dict(_assignment(text) for text in assignments),
    )
    if output is not None:
        write_text_atomically(output, found.plan.to_yaml(), overwrite)
    if as_json:
        print_json(
            {
                "schema_version": 1,
                "plan": found.plan.to_mapping(),
                "unused": [unused.to_mapping() for unused in found.unused],
                "assumptions": list(found.assumptions),
            }
        )
    elif output is None:
        click.echo(found.plan.to_yaml(), nl=False)
    for line in found.assumptions:
        click.echo(f"assumed: {line}", err=True)
    for unused in found.unused:
        click.echo(f"unused: {unused.name} {unused.value}".rstrip() + f": {unused.reason}", err=True)
    if output is not None:
        click.echo(f"wrote {output}", err=True)
    return status.DONE


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or (not name.isidentifier() and not name.isdigit()):
        raise PlanError(f"--set {text[:60]}", "is no assignment", "write NAME=VALUE, or 1=VALUE for an argument")
    return name, value
