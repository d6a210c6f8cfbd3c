"""``moeplan search``: the best configurations that fit."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Any

import click

from moeplan.cli import status
from moeplan.cli.asking import arguments, question
from moeplan.cli.output import console, margin, print_json
from moeplan.cli.progress import progress_bar

if TYPE_CHECKING:
    from moeplan.answers.documents import Estimate, SearchDocument
    from moeplan.plan import Plan


@click.command("search")
@question
@click.option("--objective", default="throughput", metavar="NAME", help="throughput, batch, memory or cost.")
@click.option("--sampler", default="auto", metavar="NAME", help="auto, exhaustive, tpe, random or nsga2.")
@click.option("--trials", type=int, default=None, metavar="N", help="Trials of the Optuna study (default 200).")
@click.option("--timeout", type=float, default=None, metavar="SECONDS", help="Stop then, and tell the best so far.")
@click.option("--seed", type=int, default=0, metavar="N", help="Seed of the sampler (default 0).")
@click.option("--storage", default=None, metavar="URL|FILE", help="Keep the study: a journal file or a database URL.")
@click.option("--study-name", default=None, metavar="NAME", help="Its name there; a study of that name is continued.")
@click.option("--workers", type=int, default=None, metavar="N", help="Threads (default: one per core, at most four).")
@click.option("--top", type=int, default=10, metavar="N", help="Plans to tell, each of another layout (default 10).")
@click.option("--seed-plan", default=None, metavar="FILE", help="A plan that you have: searched around and compared.")
@click.option("-o", "--output", default=None, metavar="DIR", help="Write plans, report, plots and launch files there.")
@click.option("--to", "targets", default=None, metavar="NAMES", help="Launch targets for -o (default: megatron).")
@click.option("--overwrite", is_flag=True, help="Replace files that are there.")
def command(
    model: str | None,
    space: str | None,
    calibration: str | None,
    margin_gib: float | None,
    as_json: bool,
    seed_plan: str | None,
    output: str | None,
    targets: str | None,
    overwrite: bool,
    timeout: float | None,
    **values: Any,
) -> int:
    """Find the fastest (largest, leanest, cheapest) configurations of MODEL that fit.

    MODEL is a catalog name, the path of a config.json or its folder, or a plan file to start from. A plan's flag takes
    one value or several (--tp 1,2,4) and narrows the space; degrees are searched over every legal value otherwise.

    \b
    moeplan search mixtral-8x7b --gpu a100-sxm-80gb --gpus 64
    moeplan search ./config.json --gpu h100 --gpus 256 --space precision --sequence-length 8192 -o out
    """
    from moeplan.api import estimate, search

    keys = ("objective", "sampler", "trials", "seed", "storage", "study_name", "workers", "top")
    options = {key: values.pop(key) for key in keys}
    asked = arguments(model or seed_plan, space, calibration, margin_gib, values)
    check_output(output, overwrite)
    with progress_bar(options["objective"]) as progress:
        answer = search(**asked, timeout_s=timeout, progress=progress, **options)
    compared = _compare_with(seed_plan, answer, asked)
    if as_json:
        print_json(answer)
    else:
        from moeplan.report.search import show_search

        show_search(answer, console(), compared)
    if output is not None:
        from moeplan.report.folder import write_folder

        def predict(plan: Plan) -> Estimate:
            return estimate(plan, calibration=calibration, margin_gib=margin(margin_gib))

        line = shlex.join(["moeplan", *sys.argv[1:]])
        for path in write_folder(answer, output, targets, overwrite, line, predict):
            click.echo(f"wrote {path}", err=True)
    return exit_status(answer)


def exit_status(answer: SearchDocument) -> int:
    """What a search's end means for the shell."""
    if answer.stopped:
        return status.INTERRUPTED if answer.stopped == "interrupt" else status.STOPPED_EARLY
    return status.DONE if answer.best is not None else status.NOTHING_FITS


def check_output(output: str | None, overwrite: bool) -> None:
    """Refuse a folder that is in the way before the search is done."""
    if output is None:
        return
    from pathlib import Path

    from moeplan.errors import PlanError

    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise PlanError(output, "is not a folder", "name another with -o")
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise PlanError(output, "is not empty", "pass --overwrite, or name another folder with -o")


def _compare_with(seed_plan: str | None, answer: SearchDocument, asked: dict[str, Any]) -> Any:
    """The estimate of the plan that the user has, or None."""
    if seed_plan is None:
        return None
    from moeplan.api import estimate
    from moeplan.plan import load_plan

    keys = {key: asked[key] for key in ("calibration", "margin_gib") if key in asked}
    return estimate(load_plan(seed_plan), **keys)
