"""An estimate as tables: what was assumed, memory stage by stage, time term by term, and where it all goes."""

from __future__ import annotations

from rich.console import Console

from moeplan.answers.documents import Breakdown, Estimate
from moeplan.plan import Plan
from moeplan.report.tables import count, gib, heading, money, seconds, share, table

# Stages beside each other in the breakdown.
_MOST_COLUMNS = 8

_MEMORY = ("parameters", "gradients", "optimizer", "activations", "buffers", "overhead")


def show_estimate(estimate: Estimate, console: Console) -> None:
    """The whole estimate."""
    plan = estimate.plan
    heading(console, f"{model_name(plan)} on {plan.hardware.gpus} x {plan.gpu().name}: {degrees(plan)}")
    console.print(settings_line(plan), highlight=False, markup=False)
    console.print()
    memory = estimate.memory
    if estimate.fits:
        console.print(f"fits, with {gib(memory.headroom_gib)} GiB to spare", style="green", highlight=False)
    else:
        console.print(f"does not fit: {gib(-memory.headroom_gib)} GiB too much", style="bold red", highlight=False)
    console.print(f"limit: {estimate.limit}", highlight=False, markup=False)
    show_memory(estimate, console)
    show_time(estimate, console)
    if estimate.breakdown is not None:
        show_breakdown(estimate.breakdown, estimate, console)
    if estimate.savings:
        show_savings(estimate, console)
    for line in estimate.assumptions:
        console.print(f"assumed: {line}", style="dim", highlight=False, markup=False)
    for line in estimate.warnings:
        console.print(f"warning: {line}", style="yellow", highlight=False, markup=False)


def show_memory(estimate: Estimate, console: Console) -> None:
    """Memory per stage in GiB."""
    listing = table(("stage", *_MEMORY[:-1], "allocated", "reserved", "overhead", "needed", "usable"))
    for stage in estimate.memory.stages:
        listing.add_row(
            str(stage.stage),
            *(gib(getattr(stage, f"{name}_gib")) for name in _MEMORY[:-1]),
            gib(stage.peak_allocated_gib),
            gib(stage.peak_reserved_gib),
            gib(stage.overhead_gib),
            gib(stage.peak_reserved_gib + stage.overhead_gib),
            gib(estimate.memory.usable_gib),
        )
    heading(console, "Memory of the fullest rank of each stage, GiB")
    console.print(listing)


def show_time(estimate: Estimate, console: Console) -> None:
    """Time terms, throughput and cost."""
    time, speed, cost, parameters = estimate.time, estimate.throughput, estimate.cost, estimate.parameters
    listing = table(("time", "per step", "share"))
    for name, label in (
        ("compute_s", "compute"),
        ("exposed_communication_s", "exposed communication"),
        ("bubble_s", "pipeline bubble"),
        ("optimizer_s", "optimizer"),
    ):
        value = getattr(time, name)
        listing.add_row(label, seconds(value), share(value, time.step_s))
    listing.add_section()
    listing.add_row("step", seconds(time.step_s), "")
    heading(console, "Time")
    console.print(listing)
    span = ""
    if estimate.uncertainty is not None:
        bounds = estimate.uncertainty.tokens_per_s
        span = f" ({bounds.low:,.0f} to {bounds.high:,.0f})"
    console.print(
        f"{speed.tokens_per_s:,.0f} tokens/s{span}, {speed.tokens_per_s_per_gpu:,.0f} per GPU; "
        f"{speed.model_tflops_per_gpu:,.0f} model TFLOPS per GPU, MFU {100 * speed.mfu:.1f} %; "
        f"{'calibrated' if estimate.calibrated else 'not calibrated'}",
        highlight=False,
    )
    console.print(
        f"{count(parameters.total)} parameters, {count(parameters.active)} active, {count(parameters.per_gpu)} on the "
        f"fullest GPU; {money(cost.usd_per_hour)} per hour, {money(cost.usd_per_billion_tokens)} per billion tokens, "
        f"{cost.days_per_trillion_tokens:,.1f} days per trillion tokens",
        highlight=False,
    )


def show_breakdown(breakdown: Breakdown, estimate: Estimate, console: Console) -> None:
    """Where memory and time go."""
    _show_memory_breakdown(breakdown, estimate, console)
    for title, parts in (("Compute", breakdown.compute), ("Exposed communication", breakdown.communication)):
        if parts:
            heading(console, f"{title}, seconds per step")
            listing = table(("part", "time", "share of step"))
            for part in parts:
                listing.add_row(part.name, seconds(part.value), share(part.value, estimate.time.step_s))
            console.print(listing)
    walls = ", ".join(
        f"{part.name} {share(part.value, estimate.time.step_s)}" for part in breakdown.walls if part.value > 0
    )
    light = breakdown.speed_of_light_s
    console.print(
        f"recomputation {seconds(breakdown.recompute_s)}; what limits: {walls}; the wall: {breakdown.wall}",
        highlight=False,
    )
    console.print(
        f"speed of light (matrix products at the dense peak) {seconds(light)}: this step takes "
        f"{estimate.time.step_s / light:.2f} times that",
        highlight=False,
    )


def _show_memory_breakdown(breakdown: Breakdown, estimate: Estimate, console: Console) -> None:
    """Operators by stage: all stages, or the fullest, the first and the last where there are many."""
    fullest = max(estimate.memory.stages, key=lambda stage: stage.peak_reserved_gib + stage.overhead_gib).stage
    shown = breakdown.stages
    if len(shown) > _MOST_COLUMNS:
        shown = tuple(stage for stage in shown if stage.stage in (0, fullest, len(breakdown.stages) - 1))
    by_stage = [{part.name: part.value for part in stage.parts} for stage in shown]
    order = {part.name: None for stage in shown if stage.stage == fullest for part in stage.parts}
    order |= {name: None for parts in by_stage for name in parts}
    heading(console, "Memory by operator at the peak of each stage, GiB")
    listing = table(("operator", *(f"stage {stage.stage}" for stage in shown)))
    for name in order:
        listing.add_row(name, *(gib(parts[name]) if name in parts else "-" for parts in by_stage))
    listing.add_section()
    listing.add_row("allocated", *(gib(sum(parts.values())) for parts in by_stage))
    listing.add_row("the peak is at", *(stage.holds for stage in shown))
    beyond = [{part.name: part.value for part in stage.outside} for stage in shown]
    for name in {name: None for parts in beyond for name in parts}:
        listing.add_row(name, *(gib(parts[name]) if name in parts else "-" for parts in beyond))
    console.print(listing)
    if len(shown) < len(breakdown.stages):
        console.print(f"stage {fullest} is the fullest; --json tells all {len(breakdown.stages)}", style="dim")


def show_savings(estimate: Estimate, console: Console) -> None:
    """What the next changes are worth."""
    heading(console, "What the next change is worth")
    listing = table(("change", "memory GiB", "step time"))
    for saving in estimate.savings:
        listing.add_row(saving.change, f"{saving.memory_gib:+.2f}", f"{100 * saving.step_time:+.1f} %")
    console.print(listing)


def model_name(plan: Plan) -> str:
    """The model as the user called it."""
    return plan.model if isinstance(plan.model, str) else plan.architecture().name


def degrees(plan: Plan, experts_derived: bool = True) -> str:
    """The parallel degrees above 1: ``tp 2, pp 4, dp 8, ep 8, edp 2`` (the last, which follows, on request only)."""
    parallel = plan.parallel
    told = {"tp": parallel.tp, "pp": parallel.pp, "vpp": parallel.vpp, "cp": parallel.cp, "dp": plan.dp}
    if plan.architecture().routing is not None:
        told |= {"ep": parallel.ep, "etp": parallel.etp}
        told |= {"edp": plan.edp} if experts_derived else {}
    return ", ".join(f"{name} {degree}" for name, degree in told.items() if degree > 1) or "one GPU"


def recompute(plan: Plan) -> str:
    """What is recomputed, in a few words."""
    chosen = plan.recompute
    if chosen.granularity == "selective":
        return "+".join(chosen.modules)
    if chosen.granularity == "full" and chosen.layers is not None:
        return f"full, {chosen.layers} layers"
    return chosen.granularity


def settings_line(plan: Plan) -> str:
    """Batch, precision, recompute and sharding on one line."""
    told = [
        f"batch {plan.global_batch_size} sequences of {plan.batch.sequence_length} ({plan.tokens_per_step:,} tokens), "
        f"micro batch {plan.batch.micro_batch_size}, {plan.micro_batches} micro batches",
        plan.precision,
        f"recompute {recompute(plan)}",
        f"{plan.optimizer.name}, ZeRO {plan.optimizer.sharding}",
        plan.framework,
    ]
    if plan.architecture().routing is not None:
        told.append(f"dispatch {plan.moe.dispatcher}")
    return "; ".join(told)
