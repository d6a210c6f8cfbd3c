"""The largest batch per strategy, and strategies side by side, as tables."""

from __future__ import annotations

from rich.console import Console

from moeplan.answers.strategies import ComparisonDocument, MaxBatchDocument
from moeplan.report.estimate import degrees, recompute
from moeplan.report.tables import gib, heading, money, seconds, table


def show_max_batch(answer: MaxBatchDocument, console: Console) -> None:
    """The largest batch, per strategy and over all."""
    columns = ("strategy", "layout", "recompute", "what binds", "micro batch", "sequences", "tokens", "tokens/s")
    listing = table(columns, left=4)
    for largest in answer.strategies:
        plan, estimate = largest.plan, largest.estimate
        listing.add_row(
            largest.strategy,
            degrees(plan) if plan is not None else "-",
            recompute(plan) if plan is not None else "-",
            largest.binds,
            str(largest.micro_batch_size) if largest.fits else "-",
            f"{largest.global_batch_size:,}" if largest.fits else "-",
            f"{largest.tokens:,}" if largest.fits else "-",
            f"{estimate.throughput.tokens_per_s:,.0f}" if largest.fits and estimate is not None else "-",
        )
    heading(console, "Largest batch of one pass through a full pipeline (micro batch * dp * pp)")
    console.print(listing)
    if answer.best is None:
        console.print("nothing fits, not even one sequence per GPU", style="bold red")
    else:
        console.print(
            f"largest of all: {answer.best.global_batch_size:,} sequences, {answer.best.tokens:,} tokens; "
            "gradient accumulation multiplies it without needing more memory",
            highlight=False,
        )


def show_comparison(answer: ComparisonDocument, console: Console) -> None:
    """Strategies side by side, each at its best."""
    columns = ("strategy", "layout", "recompute", "mb", "GiB", "fits", "step", "tokens/s", "$/B tokens", "relative")
    listing = table(columns, left=3)
    speeds = {
        one.strategy: one.estimate.throughput.tokens_per_s
        for one in answer.strategies
        if one.fits and one.estimate is not None
    }
    fastest = max(speeds.values(), default=0.0)
    for one in answer.strategies:
        if one.plan is None or one.estimate is None:
            listing.add_row(one.strategy, one.reason, *["-"] * 8)
            continue
        memory = one.estimate.memory
        listing.add_row(
            one.strategy,
            degrees(one.plan),
            recompute(one.plan),
            str(one.plan.batch.micro_batch_size),
            f"{memory.usable_gib - memory.headroom_gib:.1f}",
            "yes" if one.fits else f"{gib(one.overflow_gib)} GiB over",
            seconds(one.estimate.time.step_s),
            f"{one.estimate.throughput.tokens_per_s:,.0f}",
            money(one.estimate.cost.usd_per_billion_tokens),
            f"{speeds[one.strategy] / fastest:.2f}" if one.strategy in speeds else "-",
        )
    heading(console, "Strategies, each at its best")
    console.print(listing)
    if answer.best is None:
        console.print("none of them fits", style="bold red")
    else:
        console.print(f"fastest: {answer.best}", highlight=False)
