"""What every launch file says first: what it is, what is predicted of it, and how it was made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moeplan import __version__
from moeplan.plan import Plan

if TYPE_CHECKING:
    from moeplan.answers.documents import Estimate


def heading(plan: Plan, what: str, estimate: Estimate | None, command: str | None, notes: tuple[str, ...]) -> list[str]:
    """The heading, one plain line per entry.

    Args:
        plan: What the file runs.
        what: The file in a few words, e.g. ``Megatron-LM launch script``.
        estimate: What moeplan predicts of the plan; None: the heading says that nothing was predicted.
        command: The command that made the file; None where it was made from Python.
        notes: What the reader must know about this framework and this plan.
    """
    parallel, batch = plan.parallel, plan.batch
    model = plan.model if isinstance(plan.model, str) else plan.architecture().name
    gpu = plan.hardware.gpu if isinstance(plan.hardware.gpu, str) else plan.gpu().machine().name
    lines = [
        f"{what}, written by moeplan {__version__}",
        f"model: {model}; hardware: {plan.hardware.gpus} x {gpu}, {plan.gpus_per_node} per node",
        f"plan: tp={parallel.tp} pp={parallel.pp} vpp={parallel.vpp} cp={parallel.cp} ep={parallel.ep} "
        f"etp={parallel.etp} dp={plan.dp} edp={plan.edp}; micro batch {batch.micro_batch_size}, global batch "
        f"{batch.global_batch_size}, sequence {batch.sequence_length}; {plan.precision}; {plan.optimizer.name} with "
        f"sharding {plan.optimizer.sharding}; recompute {plan.recompute.granularity}",
        *_prediction(plan, estimate),
        f"made by: {command or 'moeplan.launch (from Python)'}",
    ]
    return lines + [f"note: {note}" for note in notes]


def _prediction(plan: Plan, estimate: Estimate | None) -> list[str]:
    if estimate is None:
        return ["predicted: nothing (run 'moeplan estimate' on the plan)"]
    memory, time = estimate.memory, estimate.time
    shown = f"step time {time.step_s:.3g} s"
    if estimate.uncertainty is not None:
        shown += f" (range {estimate.uncertainty.step_s.low:.3g} to {estimate.uncertainty.step_s.high:.3g} s)"
    return [
        f"predicted: peak memory {memory.peak_reserved_gib:.1f} GiB reserved, {memory.peak_allocated_gib:.1f} GiB "
        f"allocated of {memory.usable_gib:.1f} GiB usable ({'fits' if estimate.fits else 'DOES NOT FIT'})",
        f"predicted: {shown}, {estimate.throughput.tokens_per_s:,.0f} tokens/s",
        f"This is an estimate, not a measurement; memory and time follow {plan.framework}'s accounting.",
    ]
