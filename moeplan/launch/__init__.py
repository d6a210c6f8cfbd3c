"""Launch files: a plan in the words of the framework that will run it.

>>> from moeplan import launch
>>> launch.write(plan, ["megatron"], "run", estimate=moeplan.estimate(plan))

One module per framework turns a plan into text. A plan that a framework cannot run is refused with the reason;
:func:`adapt` finds the nearest plan that it can.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from moeplan.errors import PlanError, nearest
from moeplan.launch.refusal import Refusal
from moeplan.plan import Plan

if TYPE_CHECKING:
    from moeplan.answers.documents import Estimate

    Predict = Callable[[Plan], Estimate]

__all__ = ["TARGETS", "Refusal", "adapt", "as_run", "refusals", "render", "target_names", "write"]

# Target -> (its module, the framework whose legality rules hold; None: the plan's own).
_TARGETS: dict[str, tuple[str, str | None]] = {
    "megatron": ("megatron", "megatron"),
    "megatron-bridge": ("megatron_bridge", "megatron"),
    "deepspeed": ("deepspeed", "deepspeed"),
    "torchtitan": ("torchtitan", "fsdp2"),
    "accelerate": ("accelerate", None),
}
TARGETS: tuple[str, ...] = tuple(_TARGETS)


def target_names(text: str) -> list[str]:
    """Launch targets of a comma-separated list, as a user writes them.

    Raises:
        PlanError: It names none, or one that is not known.
    """
    names = [word.strip() for word in text.split(",") if word.strip()]
    if not names:
        raise PlanError("--to", "names no target", f"choose from {', '.join(TARGETS)}")
    for name in names:
        if name not in TARGETS:
            raise PlanError(
                "--to", f"there is no target {name!r}", nearest(name, TARGETS, f"one of {', '.join(TARGETS)}")
            )
    return names


def render(
    plan: Plan,
    target: str,
    estimate: Estimate | None = None,
    command: str | None = None,
    notes: tuple[str, ...] = (),
    predict: Predict | None = None,
) -> dict[str, str]:
    """The launch files of a plan for one target: file name -> text.

    Args:
        plan: What to run.
        target: One of :data:`TARGETS`.
        estimate: What moeplan predicts of the plan, for the heading.
        command: The command that asked, for the heading.
        notes: Further lines of the heading.
        predict: Estimates the plan that the framework will really run, where that is not quite ``plan`` (see
            :func:`as_run`); :func:`moeplan.estimate` by default.

    Raises:
        PlanError: The target is not known, or its framework cannot run the plan.
    """
    found = refusals(plan, target)
    if found:
        raise _refused(plan, target, found)
    if estimate is not None:
        estimate = _as_run(plan, target, estimate, predict)
    files: dict[str, str] = _module(target).render(plan, estimate, command, notes)
    return files


def as_run(plan: Plan, target: str) -> Plan:
    """The plan as the target's framework will really run it: the same but where its words fall short, at a cost."""
    module = _module(target)
    runs: Plan = module.as_run(plan) if hasattr(module, "as_run") else plan
    return runs


def _as_run(plan: Plan, target: str, estimate: Estimate, predict: Predict | None) -> Estimate:
    """The estimate of what will really run."""
    runs = as_run(plan, target)
    if runs == plan:
        return estimate
    return (predict or _estimate())(runs)


def _estimate() -> Predict:
    from moeplan.api import estimate

    return estimate


def refusals(plan: Plan, target: str) -> list[Refusal]:
    """Why a target's framework cannot run a plan; empty where it can.

    Raises:
        PlanError: The target, the model or the GPU is not known.
    """
    from moeplan.search.legality import check

    module = _module(target)
    found: list[Refusal] = list(module.refusals(plan))
    framework = _TARGETS[target][1] or plan.framework
    row = plan.row() | {"framework": framework}
    for violation in check(plan.architecture(), plan.gpu().machine(plan.hardware.gpus_per_node), row):
        found.append(Refusal(violation.reason, violation.remedy, columns=violation.columns))
    return found


def adapt(plan: Plan, target: str) -> tuple[Plan, list[str]]:
    """The nearest plan that the target's framework can run, and what was changed (one line per key).

    Raises:
        PlanError: The target is not known, or no change of the plan helps (the framework cannot build the model).
    """
    from moeplan.launch.adaptation import adapted

    _module(target)  # an unknown target is told before anything else
    framework = _TARGETS[target][1]
    changes: list[str] = []
    if framework is not None and plan.framework != framework:
        changes.append(f"framework: {plan.framework} -> {framework} (predictions follow the framework that runs)")
        plan = plan.with_values({"framework": framework})
    runs, further = adapted(plan, target, lambda candidate: refusals(candidate, target))
    return runs, changes + further


def write(
    plan: Plan,
    targets: str | Iterable[str],
    directory: str | os.PathLike[str],
    *,
    estimate: Estimate | None = None,
    overwrite: bool = False,
    adapt: bool = False,
    command: str | None = None,
    predict: Predict | None = None,
) -> list[Path]:
    """Write the launch files of a plan for several targets: all of them or none.

    Args:
        plan: What to run.
        targets: Some of :data:`TARGETS`, or one.
        directory: Folder to write to, made if need be.
        estimate: What moeplan predicts of ``plan``; an adapted plan is estimated anew.
        overwrite: Replace files that are there.
        adapt: Write the nearest plan that a target can run where it cannot run this one.
        command: The command that asked, for the heading.
        predict: Estimates a plan that differs from ``plan``; :func:`moeplan.estimate` by default.

    Returns:
        The files written.

    Raises:
        PlanError: A target is not known or refuses the plan, a file is already there, or cannot be written.
    """
    from moeplan.launch.files import write_together

    files: dict[str, str] = {}
    for target in dict.fromkeys([targets] if isinstance(targets, str) else targets):
        runs, predicted = plan, estimate
        notes: tuple[str, ...] = ()
        if adapt:
            runs, changes = _adapt(plan, target)
            notes = tuple(f"adapted: {change}" for change in changes)
            if changes and estimate is not None:
                predicted = (predict or _estimate())(runs)
        files |= render(runs, target, predicted, command, notes, predict)
    return write_together(directory, files, overwrite)


_adapt = adapt  # `write` has an argument of that name


def _module(target: str) -> ModuleType:
    if target not in _TARGETS:
        raise PlanError(
            f"--to {target}", "is no launch target", nearest(target, TARGETS, f"one of {', '.join(TARGETS)}")
        )
    return import_module(f"moeplan.launch.{_TARGETS[target][0]}")


def _refused(plan: Plan, target: str, found: list[Refusal]) -> PlanError:
    """What stands in the way, with the nearest plan that runs where there is one."""
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    remedy = found[0].remedy
    try:
        runs, _ = adapt(plan, target)
    except PlanError:
        return PlanError(f"--to {target}", found[0].reason + more, remedy)
    from moeplan.frameworks.carried import dotted

    before = dotted(plan)
    changed = ", ".join(f"{key}: {value}" for key, value in dotted(runs).items() if value != before[key])
    return PlanError(f"--to {target}", found[0].reason + more, f"the nearest plan that runs has {changed} (--adapt)")
