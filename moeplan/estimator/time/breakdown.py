"""Where the step of one candidate goes: operators, groups, walls, and how far it is from the speed of light."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from moeplan.estimator.machine import Machine
from moeplan.estimator.stages import Structure, micro_batches, structure
from moeplan.estimator.table import Table
from moeplan.estimator.time.items import Pricer, group_limit
from moeplan.estimator.time.layers import LayerTime, layer_times
from moeplan.estimator.time.step import step_terms
from moeplan.model.architecture import Architecture
from moeplan.operators.work import AttentionCore, Gemm

WALLS = ("arithmetic", "HBM", "NVLink", "PCIe", "network", "bubble", "latency")


@dataclass(frozen=True)
class Detail:
    """One candidate's step, in seconds; ``operators``, ``recompute_s``, ``communication``, ``bubble_s`` and
    ``optimizer_s`` add up to the step.

    Attributes:
        operators: Kernels of the slowest stage by operator, the largest first.
        recompute_s: Forward kernels (and communication) that backward runs again.
        communication: Exposed communication by group: tp, cp, ep, etp, pp, dp, and host for offloaded activations.
        bubble_s: Pipeline idle time.
        optimizer_s: The optimizer step.
        walls: Seconds by what limits them.
        wall: The largest of ``walls``.
        speed_of_light_s: The candidate's GEMMs and attention at the dense peak, nothing else.
    """

    operators: dict[str, float]
    recompute_s: float
    communication: dict[str, float]
    bubble_s: float
    optimizer_s: float
    walls: dict[str, float]
    wall: str
    speed_of_light_s: float


def detail(
    architecture: Architecture,
    machine: Machine,
    row: Mapping[str, Any],
    factors: Mapping[str, float] | None = None,
) -> Detail:
    """Take the step of one candidate apart: the code path of ``step_time`` on a table of one row."""
    given = factors or {}
    table = Table.of_rows([row])
    stages = structure(architecture, table, all_stages=True)
    terms = step_terms(architecture, machine, table, stages, given)
    times, _, distinct = layer_times(stages.parts, machine, table, given, group_limit(architecture), named=True)
    m = float(micro_batches(table)[0]) * (0.5 if row["schedule"] == "dualpipe" else 1.0)
    runs = stages.runs[stages.index[0], terms.stage[0]] * m
    operators = _weighted(times, runs, "operators")
    communication = _weighted(times, runs, "groups")
    # The exchange of the first and last micro batches, which have no other to hide behind.
    unpaired = float(terms.inside[0]) - sum(communication.values())
    communication["ep"] = communication.get("ep", 0.0) + unpaired
    communication["pp"] = float(terms.neighbours[0])
    communication["dp"] = float(terms.once[0])
    recompute = float(terms.compute[0]) - sum(operators.values())
    pricer = Pricer.of(machine, given, distinct)
    arithmetic, light = _arithmetic(pricer, stages, runs)
    walls = _walls(pricer, row, operators, arithmetic, communication)
    walls["HBM"] += float(terms.optimizer[0])
    walls["bubble"] = float(terms.bubble[0])
    share = recompute / max(sum(operators.values()), 1e-30)
    for name in ("arithmetic", "HBM", "latency"):
        # What is replayed is limited by the same things as what ran first.
        walls[name] += share * walls[name] if name != "HBM" else share * (walls[name] - float(terms.optimizer[0]))
    return Detail(
        operators=dict(sorted(operators.items(), key=lambda item: -item[1])),
        recompute_s=max(recompute, 0.0),
        communication={name: value for name, value in communication.items() if value > 0},
        bubble_s=float(terms.bubble[0]),
        optimizer_s=float(terms.optimizer[0]),
        walls=walls,
        wall=max(walls, key=lambda name: walls[name]),
        speed_of_light_s=light,
    )


def _weighted(times: list[LayerTime], runs: Any, name: str) -> dict[str, float]:
    """Seconds by name over the layers that a stage runs in one step."""
    found: dict[str, float] = {}
    for time, count in zip(times, runs, strict=True):
        for key, seconds in getattr(time, name).items():
            value = float(np.broadcast_to(seconds, (1,))[0]) * float(count)
            if value:
                found[key] = found.get(key, 0.0) + value
    return found


def _arithmetic(pricer: Pricer, stages: Structure, runs: Any) -> tuple[set[str], float]:
    """Names of operators that arithmetic limits, and the seconds of all GEMMs and attention at the dense peak."""
    limited: set[str] = set()
    light = 0.0
    kernels = pricer.kernels
    name = str(pricer.table.row(0)["precision"])
    for part, count in zip(stages.parts, runs, strict=True):
        for operator in part.operators:
            for item in operator.work(pricer.shard):
                if isinstance(item, AttentionCore):
                    flops = 7 * item.sequences * item.heads * item.queries * item.keys * (item.qk_dim + item.v_dim)
                    light += float(np.max(flops)) * float(count) / kernels.peak("bf16")
                    limited.add(item.name)
                elif isinstance(item, Gemm):
                    peak = kernels.peak(name if item.quantized else "bf16")
                    flops = 6 * item.tokens * item.outputs * item.inputs * item.groups
                    light += float(np.max(flops)) * float(count) / peak
                    # A GEMM leaves the memory wall where its FLOPs per weight byte exceed the machine's balance.
                    if float(np.max(item.tokens)) > peak / (kernels.memory_rate("gemm")):
                        limited.add(item.name)
    return limited, light


def _walls(
    pricer: Pricer,
    row: Mapping[str, Any],
    operators: Mapping[str, float],
    arithmetic: set[str],
    communication: Mapping[str, float],
) -> dict[str, float]:
    walls = dict.fromkeys(WALLS, 0.0)
    for name, seconds in operators.items():
        if name in ("host", "experts.wait"):
            walls["latency"] += seconds
        else:
            walls["arithmetic" if name in arithmetic else "HBM"] += seconds
    domain = pricer.links.domain
    inside = "NVLink" if pricer.machine.nvlink_gb_per_s > 0 else "PCIe"
    stride = {"tp": 1, "cp": row["tp"], "etp": 1, "ep": row["etp"]}
    for group, seconds in communication.items():
        if group == "host":
            walls["PCIe"] += seconds
            continue
        reach = stride[group] * row[group] if group in stride else row["gpus"]
        walls[inside if reach <= domain else "network"] += seconds
    return walls
