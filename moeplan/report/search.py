"""A search as tables: the best plan, the others, what almost fits, and how sure the answer is."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from moeplan.answers.documents import Candidate, Estimate, NearMiss, SearchDocument
from moeplan.report.estimate import degrees, model_name, recompute, settings_line, show_memory, show_time
from moeplan.report.tables import gib, heading, money, seconds, table

# Columns of text from which figures that follow from others are shown too.
_WIDE = 150


def show_search(answer: SearchDocument, console: Console, yours: Estimate | None = None) -> None:
    """The whole answer; ``yours`` is the plan that the user has, to compare with."""
    if answer.best is None:
        show_nothing_fits(answer, console)
    else:
        show_best(answer.best, console)
        if yours is not None:
            show_yours(yours, answer.best.estimate, console)
        heading(console, f"Best {len(answer.top)} plans, each of another layout")
        console.print(candidates_table(answer.top, console.width))
        if len(answer.pareto) > 1:
            heading(console, "Memory against speed (no plan beats these in both)")
            console.print(candidates_table(answer.pareto, console.width))
        if answer.near_misses:
            heading(console, "Faster, but just too large")
            console.print(misses_table(answer.near_misses))
    for line in summary(answer):
        console.print(line, highlight=False, markup=False)


def show_best(best: Candidate, console: Console) -> None:
    """The best plan in full."""
    plan = best.plan
    heading(console, f"Best for {model_name(plan)} on {plan.hardware.gpus} x {plan.gpu().name}: {degrees(plan)}")
    console.print(settings_line(plan), highlight=False, markup=False)
    if plan.parallel.pipeline_layout:
        console.print(f"pipeline layout {plan.parallel.pipeline_layout}", highlight=False, markup=False)
    show_memory(best.estimate, console)
    show_time(best.estimate, console)


def show_yours(yours: Estimate, best: Estimate, console: Console) -> None:
    """The user's own plan beside the best."""
    state = "fits" if yours.fits else f"does not fit ({gib(-yours.memory.headroom_gib)} GiB too much)"
    gain = best.throughput.tokens_per_s / yours.throughput.tokens_per_s
    console.print(
        f"your plan {state}: {yours.throughput.tokens_per_s:,.0f} tokens/s; the best is {gain:.2f} times as fast",
        highlight=False,
    )


def show_nothing_fits(answer: SearchDocument, console: Console) -> None:
    """What overflows by how much, and the smallest change that would fit."""
    console.print("nothing fits", style="bold red")
    if not answer.near_misses:
        return
    closest = answer.near_misses[0]
    console.print(
        f"the closest needs {gib(closest.overflow_gib)} GiB too much per GPU; {closest.estimate.limit}",
        highlight=False,
        markup=False,
    )
    change = next((miss.change for miss in answer.near_misses if miss.change), "")
    if change:
        console.print(f"smallest change that would fit: {change}", highlight=False, markup=False)
    else:
        console.print("no single change, no 64 times as many GPUs and no GPU of the catalog would make it fit")
    heading(console, "Nearest misses")
    console.print(misses_table(answer.near_misses))


def candidates_table(candidates: Sequence[Candidate], width: int = _WIDE) -> Table:
    """Plans side by side; a narrow terminal gets fewer columns."""
    derived = ("/GPU", "MFU", "$/B tokens") if width >= _WIDE else ()
    listing = table(("layout", "mb", "recompute", "other", "GiB", "free", "step", "tokens/s", *derived), left=4)
    for candidate in candidates:
        plan, estimate = candidate.plan, candidate.estimate
        cells = [
            degrees(plan, experts_derived=False),
            str(plan.batch.micro_batch_size),
            recompute(plan),
            _other(candidate),
            f"{estimate.memory.usable_gib - estimate.memory.headroom_gib:.1f}",
            f"{estimate.memory.headroom_gib:.1f}",
            seconds(estimate.time.step_s),
            f"{estimate.throughput.tokens_per_s:,.0f}",
        ]
        if derived:
            cells += [
                f"{estimate.throughput.tokens_per_s_per_gpu:,.0f}",
                f"{100 * estimate.throughput.mfu:.1f} %",
                money(estimate.cost.usd_per_billion_tokens),
            ]
        listing.add_row(*cells)
    return listing


def misses_table(misses: Sequence[NearMiss]) -> Table:
    """Plans that do not fit, with what would help."""
    listing = table(("layout", "mb", "recompute", "smallest change that would fit", "GiB over", "tokens/s"), left=4)
    for miss in misses:
        listing.add_row(
            degrees(miss.plan, experts_derived=False),
            str(miss.plan.batch.micro_batch_size),
            recompute(miss.plan),
            miss.change or "-",
            f"{miss.overflow_gib:.1f}",
            f"{miss.estimate.throughput.tokens_per_s:,.0f}",
        )
    return listing


def summary(answer: SearchDocument) -> list[str]:
    """How much was looked at and how sure the answer is, one line each."""
    counts, certificate, study = answer.counts, answer.certificate, answer.study
    lines = [
        f"{counts.candidates:,} combinations, {counts.legal:,} legal, {counts.evaluated:,} priced, "
        f"{counts.fitting:,} fit"
    ]
    if certificate.exhaustive and answer.best is None:
        lines.append("certificate: every legal candidate's memory was priced, and none fits")
    elif certificate.exhaustive:
        lines.append(
            "certificate: every legal candidate's memory and the time of every one that fits were priced, "
            "so no plan of this space is better (gap 0)"
        )
    elif certificate.gap is not None:
        lines.append(f"certificate: within {100 * certificate.gap:.2f} % of the optimum")
    else:
        lines.append(f"no certificate: {study.trials} trials of {study.sampler}, seed {study.seed}")
    if study.name:
        where = f" in {study.storage}" if study.storage else ""
        lines.append(f"study {study.name}{where}: {study.trials} trials of {study.sampler}")
    return lines + list(answer.notes)


def _other(candidate: Candidate) -> str:
    """Settings worth a column only where they are not plain."""
    plan = candidate.plan
    told: list[str] = [] if plan.precision == "bf16" else [plan.precision]
    if plan.moe.dispatcher != "alltoall" and plan.parallel.ep > 1:
        told.append(plan.moe.dispatcher)
    if plan.moe.top_k is not None:
        told.append(f"top-k {plan.moe.top_k}")
    if plan.overlap.ep:
        told.append("overlap ep")
    if plan.overlap.tp:
        told.append("overlap tp")
    if plan.optimizer.sharding != 1:
        told.append(f"ZeRO {plan.optimizer.sharding}")
    if plan.optimizer.offload_fraction:
        told.append(f"offload {plan.optimizer.offload_fraction:g}")
    if plan.parallel.cp > 1 and plan.parallel.cp_comm != "p2p":
        told.append(f"cp {plan.parallel.cp_comm}")
    return ", ".join(told) or "-"
