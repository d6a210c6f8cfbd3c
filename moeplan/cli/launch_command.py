"""``moeplan launch``: launch files for a plan."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Any

import click

from moeplan.cli import status
from moeplan.cli.output import calibration_option, json_option, margin, margin_option, print_json, warn
from moeplan.cli.settings import plan_of, plan_options

if TYPE_CHECKING:
    from moeplan.answers.documents import Estimate
    from moeplan.plan import Plan


@click.command("launch")
@click.argument("plan_or_model")
@plan_options
@click.option("--to", "targets", required=True, metavar="NAMES", help="megatron, megatron-bridge, deepspeed, ...")
@click.option("-o", "--output", required=True, metavar="DIR", help="Folder to write to; made if need be.")
@click.option("--adapt", is_flag=True, help="Where a target cannot run the plan, write the nearest that it can.")
@click.option("--overwrite", is_flag=True, help="Replace files that are there.")
@margin_option
@calibration_option
@json_option
def command(
    plan_or_model: str,
    targets: str,
    output: str,
    adapt: bool,
    overwrite: bool,
    margin_gib: float | None,
    calibration: str | None,
    as_json: bool,
    **values: Any,
) -> int:
    """Write the launch files of a plan: all of them or none.

    PLAN_OR_MODEL and the plan's flags are those of 'moeplan estimate'. Targets, separated by commas: megatron,
    megatron-bridge, deepspeed, torchtitan, accelerate.

    \b
    moeplan launch plan.yaml --to megatron,deepspeed -o run
    """
    from moeplan.api import estimate
    from moeplan.launch import adapt as nearest_plan
    from moeplan.launch import as_run, target_names, write

    plan = plan_of(plan_or_model, values)
    names = target_names(targets)

    def predict(candidate: Plan) -> Estimate:
        return estimate(candidate, calibration=calibration, margin_gib=margin(margin_gib))

    predicted = predict(plan)
    if not predicted.fits:
        warn(f"the plan does not fit: {-predicted.memory.headroom_gib:.1f} GiB too much ({predicted.limit})")
    for name in names:
        runs = as_run(plan, name)
        if predicted.fits and runs != plan and not (there := predict(runs)).fits:
            warn(f"{name}: as it runs there it needs {-there.memory.headroom_gib:.1f} GiB too much ({there.limit})")
    changes = {name: nearest_plan(plan, name)[1] for name in names} if adapt else {}
    for name, changed in changes.items():
        for change in changed:
            warn(f"{name}: {change}")
    line = shlex.join(["moeplan", *sys.argv[1:]])
    written = write(
        plan, names, output, estimate=predicted, overwrite=overwrite, adapt=adapt, command=line, predict=predict
    )
    if as_json:
        files = [str(path) for path in written]
        print_json({"schema_version": 1, "plan": plan.to_mapping(), "files": files, "adapted": changes})
    else:
        for path in written:
            click.echo(path)
    return status.DONE
