"""Where memory and time of one plan go: the estimator's own terms, operator by operator."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from moeplan.answers.documents import Breakdown, Part, StageBreakdown
from moeplan.estimator.machine import Machine
from moeplan.estimator.memory.detail import detail as memory_detail
from moeplan.estimator.price import GIB, Explanation
from moeplan.estimator.time import detail as time_detail
from moeplan.model.architecture import Architecture


def break_down(
    architecture: Architecture,
    machine: Machine,
    row: Mapping[str, Any],
    explanation: Explanation,
    factors: Mapping[str, float] | None,
) -> Breakdown:
    """Take the peak of every stage and the step of the slowest one apart."""
    time = time_detail(architecture, machine, row, factors)
    stages = memory_detail(architecture, machine, row, explanation.structure, factors or {})
    return Breakdown(
        stages=tuple(
            StageBreakdown(
                stage=stage.stage,
                holds=stage.holds,
                parts=tuple(Part(name=name, value=size / GIB) for name, size in stage.parts),
                outside=tuple(Part(name=name, value=size / GIB) for name, size in stage.outside),
            )
            for stage in stages
        ),
        compute=_parts(time.operators.items()),
        recompute_s=time.recompute_s,
        communication=_parts(time.communication.items()),
        walls=_parts(time.walls.items()),
        wall=time.wall,
        speed_of_light_s=time.speed_of_light_s,
    )


def _parts(values: Iterable[tuple[str, float]]) -> tuple[Part, ...]:
    return tuple(Part(name=name, value=value) for name, value in sorted(values, key=lambda item: -item[1]))
