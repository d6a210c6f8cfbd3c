"""What ``search -o DIR`` writes: plans, report, plots and launch files, all of them or none."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from moeplan import __version__
from moeplan.answers.documents import Candidate, Estimate, SearchDocument
from moeplan.api import estimate
from moeplan.errors import PlanError
from moeplan.launch import as_run, refusals, render, target_names
from moeplan.launch.files import write_together
from moeplan.plan import Plan
from moeplan.report.estimate import degrees, model_name, recompute, settings_line
from moeplan.report.search import summary
from moeplan.report.tables import seconds

_DEFAULT_TARGETS = ("megatron",)


def write_folder(
    answer: SearchDocument,
    directory: str,
    targets: str | Sequence[str] | None,
    overwrite: bool,
    command: str,
    predict: Callable[[Plan], Estimate] = estimate,
) -> list[Path]:
    """Write a search's answer to a folder.

    Args:
        answer: What the search found.
        directory: The folder, made if need be.
        targets: Launch targets, as a list or separated by commas; None: Megatron-LM where it can run the plan.
        overwrite: Replace files that are there.
        command: The command that asked, for the headings.
        predict: Estimates a plan as the search did; :func:`moeplan.estimate` where it had no calibration and margin.

    Returns:
        The files written: ``search.json`` and ``report.md`` always; ``best.yaml``, ``top-NN.yaml`` and the launch
        files where something fits; ``pareto.svg`` and ``memory.svg`` where matplotlib is installed.

    Raises:
        PlanError: A target cannot run the best plan, a file is there already, or cannot be written.
    """
    files = {"search.json": answer.model_dump_json(indent=2) + "\n"}
    launch_notes: list[str] = []
    if answer.best is not None:
        files["best.yaml"] = _plan_text(answer.best, "the best plan", directory)
        for place, candidate in enumerate(answer.top[1:], start=2):
            files[f"top-{place:02d}.yaml"] = _plan_text(candidate, f"plan {place} of the search", directory)
        launched, launch_notes = _launch_files(answer, targets, command, predict)
        files |= launched
    files |= _plots(answer)
    files["report.md"] = report(answer, command, [*files, "report.md"], launch_notes)
    return write_together(directory, files, overwrite)


def report(answer: SearchDocument, command: str, files: Sequence[str], notes: Sequence[str]) -> str:
    """The report as Markdown."""
    lines = ["# moeplan search", "", f"Made by moeplan {__version__}: `{command}`", ""]
    lines += ["These are estimates, not measurements.", ""]
    if answer.best is None:
        lines += ["**Nothing fits.** Nearest misses:", "", *_misses(answer), ""]
    else:
        best = answer.best
        speed, memory = best.estimate.throughput, best.estimate.memory
        lines += [
            f"**Best for {model_name(best.plan)} on {best.plan.hardware.gpus} x {best.plan.gpu().name}: "
            f"{degrees(best.plan)}**",
            "",
            f"- {settings_line(best.plan)}",
            f"- {speed.tokens_per_s:,.0f} tokens/s ({speed.tokens_per_s_per_gpu:,.0f} per GPU, MFU "
            f"{100 * speed.mfu:.1f} %), {seconds(best.estimate.time.step_s)} per step",
            f"- {memory.usable_gib - memory.headroom_gib:.1f} of {memory.usable_gib:.1f} GiB per GPU; limit: "
            f"{best.estimate.limit}",
            "",
            "## Best plans, each of another layout",
            "",
            *_table(answer.top),
            "",
        ]
        if len(answer.pareto) > 1:
            lines += ["## Memory against speed", "", *_table(answer.pareto), ""]
        if answer.near_misses:
            lines += ["## Faster, but just too large", "", *_misses(answer), ""]
    lines += ["## How sure this is", "", *(f"- {line}" for line in summary(answer)), ""]
    if answer.best is not None:
        lines += ["## Assumed", "", *(f"- {line}" for line in answer.best.estimate.assumptions), ""]
        lines += [*(f"- warning: {line}" for line in answer.best.estimate.warnings)]
    lines += ["## Files", "", *(f"- `{name}`" for name in sorted(files)), *(f"- {note}" for note in notes), ""]
    if "pareto.svg" in files:
        lines += ["![Memory against speed](pareto.svg)", "", "![Memory of the best plans](memory.svg)", ""]
    return "\n".join(lines)


def _plan_text(candidate: Candidate, what: str, directory: str) -> str:
    plan, estimate = candidate.plan, candidate.estimate
    heading = (
        f"# moeplan {__version__}: {what}; an estimate, not a measurement:\n"
        f"# {estimate.throughput.tokens_per_s:,.0f} tokens/s, {estimate.time.step_s:.4g} s per step, "
        f"{estimate.memory.peak_reserved_gib:.1f} GiB reserved of {estimate.memory.usable_gib:.1f} GiB usable\n"
    )
    # A plan file finds a model or a GPU file by the way from the plan file to it.
    moved = {
        key: os.path.relpath(reference, directory)
        for key, reference in (("model", plan.model), ("hardware.gpu", plan.hardware.gpu))
        if isinstance(reference, str) and not Path(reference).is_absolute() and _is_file(reference)
    }
    return heading + (plan.with_values(moved) if moved else plan).to_yaml()


def _is_file(reference: str) -> bool:
    """Whether a reference is a path rather than a name of the catalog."""
    return ("/" in reference or "." in reference or os.sep in reference) and Path(reference).exists()


def _launch_files(
    answer: SearchDocument, targets: str | Sequence[str] | None, command: str, predict: Callable[[Plan], Estimate]
) -> tuple[dict[str, str], list[str]]:
    """Launch files of the best plan, and what a reader must know: why there are none, or of which plan."""
    if targets is None:
        names: Sequence[str] = _DEFAULT_TARGETS
        found = refusals(answer.top[0].plan, names[0])
        if found:
            return {}, [f"no {names[0]} launch file: {found[0].reason}"]
    else:
        names = target_names(targets) if isinstance(targets, str) else targets
    files: dict[str, str] = {}
    notes = []
    for name in names:
        place, chosen = _that_fits_there(answer.top, name, predict)
        if place > 1:
            notes.append(f"{name}: plan {place} of the search, the best that fits as {name} runs it (see its heading)")
        files |= render(chosen.plan, name, chosen.estimate, command, predict=predict)
    clash = {"best.yaml", "report.md", "search.json"} & files.keys()
    if clash:
        raise PlanError("--to", f"a launch file is called {clash.pop()}", "write it apart with 'moeplan launch'")
    return files, notes


def _that_fits_there(
    top: Sequence[Candidate], target: str, predict: Callable[[Plan], Estimate]
) -> tuple[int, Candidate]:
    """The first plan (counted from one) that fits as the target will really run it; the very first where none does."""
    for place, candidate in enumerate(top, start=1):
        runs = as_run(candidate.plan, target)
        if runs == candidate.plan or predict(runs).fits:
            return place, candidate
    return 1, top[0]


def _plots(answer: SearchDocument) -> dict[str, str]:
    """The plots, where matplotlib is installed."""
    from importlib.util import find_spec

    if answer.best is None or find_spec("matplotlib") is None:
        return {}
    from moeplan.report.plots import memory_plot, pareto_plot

    return {"pareto.svg": pareto_plot(answer), "memory.svg": memory_plot(answer)}


def _table(candidates: Sequence[Candidate]) -> list[str]:
    rows = [
        "| layout | micro batch | recompute | GiB | free | step | tokens/s | MFU |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for candidate in candidates:
        plan, estimate = candidate.plan, candidate.estimate
        memory = estimate.memory
        rows.append(
            f"| {degrees(plan)} | {plan.batch.micro_batch_size} | {recompute(plan)} "
            f"| {memory.usable_gib - memory.headroom_gib:.1f} | {memory.headroom_gib:.1f} "
            f"| {seconds(estimate.time.step_s)} | {estimate.throughput.tokens_per_s:,.0f} "
            f"| {100 * estimate.throughput.mfu:.1f} % |"
        )
    return rows


def _misses(answer: SearchDocument) -> list[str]:
    rows = ["| layout | micro batch | recompute | GiB over | change that would fit |", "|---|---|---|---|---|"]
    for miss in answer.near_misses:
        rows.append(
            f"| {degrees(miss.plan)} | {miss.plan.batch.micro_batch_size} | {recompute(miss.plan)} "
            f"| {miss.overflow_gib:.1f} | {miss.change or '-'} |"
        )
    return rows
