"""From a plan to its estimate: one row priced with every stage kept, told in the units of the document."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moeplan.answers.breakdown import break_down
from moeplan.answers.changes import changes, savings
from moeplan.answers.documents import (
    Cost,
    Estimate,
    Memory,
    Parameters,
    Range,
    StageMemory,
    Throughput,
    Time,
    Uncertainty,
)
from moeplan.errors import PlanError
from moeplan.estimator.machine import Machine
from moeplan.estimator.price import DEFAULT_MARGIN_GIB, GIB, Explanation, explain_all
from moeplan.estimator.shard import shard_of
from moeplan.estimator.stages import trained_mtp_layers
from moeplan.estimator.table import Table
from moeplan.estimator.time import uncertainty
from moeplan.model.architecture import Architecture
from moeplan.plan import Plan
from moeplan.search import legality

if TYPE_CHECKING:
    from moeplan.calibration import Calibration

# Terms of a stage in the document, and the estimator's terms that each adds up.
_TERMS: Mapping[str, tuple[str, ...]] = {
    "parameters": ("parameters",),
    "gradients": ("gradients",),
    "optimizer": ("optimizer",),
    "activations": ("activations", "transient"),
    "buffers": ("buffers",),
    "overhead": ("overhead",),
}


class IllegalPlanError(PlanError):
    """A plan that the framework would refuse.

    Attributes:
        violations: Every rule that the plan breaks; the message tells the first and counts the rest.
    """

    def __init__(self, violations: Sequence[legality.Violation]) -> None:
        first = violations[0]
        rest = "; also: " + "; ".join(violation.reason for violation in violations[1:]) if violations[1:] else ""
        super().__init__(f"plan ({first.rule})", first.reason, first.remedy + rest)
        self.violations = tuple(violations)


def estimate_plan(
    plan: Plan,
    calibration: Calibration | None = None,
    margin_gib: float = DEFAULT_MARGIN_GIB,
    breakdown: bool = False,
) -> Estimate:
    """Estimate one plan.

    Args:
        plan: What to estimate.
        calibration: Factors fitted to measured runs.
        margin_gib: Memory to leave free.
        breakdown: Also tell where memory and time go, and what the next savings are worth.

    Raises:
        IllegalPlanError: The framework would refuse the plan.
        PlanError: The model or the GPU cannot be read.
    """
    architecture, machine, row = plan.architecture(), plan.gpu().machine(plan.hardware.gpus_per_node), plan.row()
    violations = legality.check(architecture, machine, row)
    if violations:
        raise IllegalPlanError(violations)
    return estimate_legal([plan], calibration, margin_gib, breakdown)[0]


def estimate_legal(
    plans: Sequence[Plan],
    calibration: Calibration | None = None,
    margin_gib: float = DEFAULT_MARGIN_GIB,
    breakdown: bool = False,
) -> list[Estimate]:
    """Estimate plans of one model on one kind of machine together; they are known to be legal (a search made them)."""
    if not (math.isfinite(margin_gib) and 0 <= margin_gib <= 1e6):
        raise PlanError("margin_gib", f"is {margin_gib}", "give a number of GiB from 0 on")
    if not plans:
        return []
    architecture, machine = plans[0].architecture(), plans[0].gpu().machine(plans[0].hardware.gpus_per_node)
    factors = calibration.known if calibration is not None else None
    explanations = explain_all(architecture, machine, [plan.row() for plan in plans], factors, margin_gib)
    question = _Question(architecture, machine, calibration, margin_gib)
    found = [_told(question, plan, explanation) for plan, explanation in zip(plans, explanations, strict=True)]
    if not breakdown:
        return found
    return [
        estimate.model_copy(
            update={
                "breakdown": break_down(architecture, machine, estimate.plan.row(), explanation, factors),
                "savings": savings(changes(architecture, machine, estimate.plan.row(), factors, margin_gib)),
            }
        )
        for estimate, explanation in zip(found, explanations, strict=True)
    ]


@dataclass(frozen=True)
class _Question:
    architecture: Architecture
    machine: Machine
    calibration: Calibration | None
    margin_gib: float


def _told(question: _Question, plan: Plan, explanation: Explanation) -> Estimate:
    architecture, machine, margin_gib = question.architecture, question.machine, question.margin_gib
    calibration, row = question.calibration, plan.row()
    return Estimate(
        plan=plan,
        fits=bool(explanation.prices.fits[0]),
        limit=_limit(explanation, machine, margin_gib),
        memory=_memory(explanation, machine, margin_gib),
        time=_time(explanation),
        throughput=_throughput(explanation, plan),
        parameters=parameters(architecture, plan, row, explanation),
        cost=cost(machine, plan.hardware.gpus, float(explanation.prices.tokens_per_s[0])),
        calibrated=calibration is not None,
        uncertainty=_uncertainty(explanation, machine, plan, calibration),
        assumptions=_assumptions(architecture, machine, plan, margin_gib),
        warnings=(
            *legality.warnings(architecture, machine, row),
            *(calibration.doubts(plan) if calibration is not None else ()),
        ),
    )


def stages(explanation: Explanation) -> list[StageMemory]:
    """Every stage at the moment that needs the most."""
    memory, structure = explanation.memory, explanation.structure
    needed = memory.peak_reserved[0] + memory.overhead[0]
    told = []
    for stage in sorted(set(structure.stage[0].tolist())):
        moments = np.flatnonzero(structure.stage[0] == stage)
        moment = moments[np.argmax(needed[moments])]
        terms = {
            f"{name}_gib": sum(float(getattr(memory, part)[0, moment]) for part in parts) / GIB
            for name, parts in _TERMS.items()
        }
        told.append(
            StageMemory(
                stage=int(stage),
                peak_allocated_gib=float(memory.peak_allocated[0, moment]) / GIB,
                peak_reserved_gib=float(memory.peak_reserved[0, moment]) / GIB,
                **terms,
            )
        )
    return told


def _memory(explanation: Explanation, machine: Machine, margin_gib: float) -> Memory:
    prices = explanation.prices
    return Memory(
        peak_allocated_gib=float(prices.peak_allocated_bytes[0]) / GIB,
        peak_reserved_gib=float(prices.peak_reserved_bytes[0]) / GIB,
        usable_gib=machine.usable_gib - margin_gib,
        headroom_gib=float(prices.headroom_bytes[0]) / GIB,
        margin_gib=margin_gib,
        stages=tuple(stages(explanation)),
    )


def _limit(explanation: Explanation, machine: Machine, margin_gib: float) -> str:
    """Which stage and which term of it binds."""
    binding = int(explanation.prices.stage[0])
    stage = next(stage for stage in stages(explanation) if stage.stage == binding)
    terms = {name: float(getattr(stage, f"{name}_gib")) for name in _TERMS}
    largest = max(terms, key=lambda name: terms[name])
    needed = stage.peak_reserved_gib + stage.overhead_gib
    return (
        f"stage {binding}: {largest} ({terms[largest]:.1f} of {needed:.1f} GiB needed; "
        f"{machine.usable_gib - margin_gib:.1f} GiB usable)"
    )


def _time(explanation: Explanation) -> Time:
    """The four terms, and the step as exactly their sum."""
    prices = explanation.prices
    terms = {
        name: float(getattr(prices, name)[0])
        for name in ("compute_s", "exposed_communication_s", "bubble_s", "optimizer_s")
    }
    return Time(step_s=float(prices.step_s[0]), **terms)


def _throughput(explanation: Explanation, plan: Plan) -> Throughput:
    prices = explanation.prices
    tokens_per_s = float(prices.tokens_per_s[0])
    return Throughput(
        tokens_per_s=tokens_per_s,
        tokens_per_s_per_gpu=tokens_per_s / plan.hardware.gpus,
        model_tflops_per_gpu=float(prices.model_tflops_per_gpu[0]),
        mfu=float(prices.mfu[0]),
    )


def parameters(architecture: Architecture, plan: Plan, row: Mapping[str, Any], explanation: Explanation) -> Parameters:
    """Parameter counts: of the model, that a token meets, and on the fullest rank."""
    structure = explanation.structure
    shard = shard_of(Table.of_rows([row]))
    per_part = np.array([sum(float(weight.elements[0]) for weight in part.weights(shard)) for part in structure.parts])
    embedding = sum(float(weight.elements[0]) for weight in architecture.embedding.weights(shard))
    held = structure.counts[0] @ per_part + structure.embedding_copies[0] * embedding
    trained = trained_mtp_layers(architecture, plan.mtp_layers)
    depth = architecture.mtp_parameters // architecture.mtp_layers if architecture.mtp_layers else 0
    return Parameters(
        total=architecture.total_parameters,
        active=architecture.active_parameters(plan.moe.top_k),
        per_gpu=round(float(held.max())),
        mtp=trained * depth,
    )


def cost(machine: Machine, gpus: int, tokens_per_s: float) -> Cost:
    """Rental cost at the middle of the catalog's price range, and time to train on 10^12 tokens."""
    per_hour = gpus * machine.usd_per_hour
    priced = math.isfinite(per_hour)
    return Cost(
        usd_per_hour=per_hour if priced else None,
        usd_per_billion_tokens=per_hour / 3600 / tokens_per_s * 1e9 if priced else None,
        days_per_trillion_tokens=1e12 / tokens_per_s / 86400,
    )


def _uncertainty(
    explanation: Explanation, machine: Machine, plan: Plan, calibration: Calibration | None
) -> Uncertainty:
    """The range of the step time and the throughput, from errors on runs that the model had not seen."""
    low, high = uncertainty(machine, plan.precision, plan.framework, calibration is not None)
    source = f"cross-validated error on measured runs of {machine.generation} GPUs"
    expected = calibration.expected_error() if calibration is not None else None
    if expected is not None:
        # The user's own runs, each predicted by a fit on the others, say more than anybody else's.
        low, high = 1.0 / (1.0 + expected), 1.0 + expected
        source = "leave-one-out error on the runs of the calibration"
    step_s = float(explanation.prices.step_s[0])
    tokens_per_s = float(explanation.prices.tokens_per_s[0])
    return Uncertainty(
        relative=high - 1.0,
        step_s=Range(low=step_s / high, high=step_s / low),
        tokens_per_s=Range(low=tokens_per_s * low, high=tokens_per_s * high),
        source=source,
    )


def _assumptions(architecture: Architecture, machine: Machine, plan: Plan, margin_gib: float) -> tuple[str, ...]:
    """The rules in force, and the keys that the plan left to their defaults."""
    told = [
        f"memory accounting of {plan.framework}; {machine.usable_gib:g} GiB per GPU as the driver reports it, "
        f"less a margin of {margin_gib:g} GiB"
    ]
    if architecture.routing is not None:
        experts, own = architecture.routing
        top_k = plan.moe.top_k or own
        told.append(
            f"{top_k:g} of {experts} experts per token (active ratio {top_k / experts:.4g}); the fullest "
            f"expert-parallel rank gets {plan.moe.load_imbalance:g} times the mean load"
        )
    if math.isfinite(machine.usd_per_hour):
        told.append(f"{machine.usd_per_hour:g} USD per GPU hour, the middle of the catalog's range")
    left = defaults_in_effect(plan)
    if left:
        shown = ", ".join(f"{key} {json.dumps(value)}" for key, value in left.items())
        told.append(f"defaults in effect: {shown}")
    return tuple(told)


def defaults_in_effect(plan: Plan) -> dict[str, Any]:
    """Keys that the plan's author left out, with the values that they have."""
    document = plan.to_mapping()
    left: dict[str, Any] = {}
    for name in type(plan).model_fields:
        section = getattr(plan, name)
        inner = getattr(type(section), "model_fields", None)
        if inner is None:
            if name not in plan.model_fields_set:
                left[name] = document[name]
            continue
        for key in inner:
            if name not in plan.model_fields_set or key not in section.model_fields_set:
                value = document[name][key]
                left[f"{name}.{key}"] = plan.gpus_per_node if key == "gpus_per_node" else value
    return left
