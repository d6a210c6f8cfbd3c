"""Is a plan legal, and if not, why not and what would be?

Each rule is a named function in :mod:`moeplan.search.rules`. The same rules, over whole tables, build the candidates of
a search, so that whatever a search returns passes :func:`check`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moeplan.estimator.columns import DEFAULTS
from moeplan.estimator.machine import Machine
from moeplan.estimator.table import Table
from moeplan.model.architecture import Architecture
from moeplan.search.facts import Facts, facts
from moeplan.search.rules import RULES, Rule, View

# Values that a remedy tries for columns that hold names.
_NAMES: Mapping[str, Sequence[Any]] = {
    "precision": ("fp32", "tf32", "fp16", "bf16", "fp8", "mxfp8", "nvfp4"),
    "cp_comm": ("p2p", "a2a", "allgather"),
    "dispatcher": ("alltoall", "allgather", "deepep", "hybridep"),
    "schedule": ("1f1b", "zero_bubble", "dualpipe"),
    "sharding": (0, 1, 2, 3),
}
# A remedy lists no more values than a line can hold.
_MOST_LISTED = 12


@dataclass(frozen=True, slots=True)
class Violation:
    """One rule that a plan breaks.

    Attributes:
        rule: The rule's stable name.
        reason: Why the framework (or the hardware) refuses the plan.
        remedy: What would be legal.
        columns: The columns that could be changed, the most likely first.
        source: Where the framework says so.
    """

    rule: str
    reason: str
    remedy: str
    columns: tuple[str, ...]
    source: str


def check(architecture: Architecture, machine: Machine, row: Mapping[str, Any]) -> list[Violation]:
    """Every rule that one candidate breaks, in a fixed order; empty for a legal one.

    Args:
        architecture: The model.
        machine: The GPU.
        row: Values by column name; columns that are left out have their default.
    """
    known = facts(architecture, machine)
    whole = {**DEFAULTS, **row}
    table = Table.of_rows([whole])
    found = []
    for rule in RULES:
        with np.errstate(divide="ignore", invalid="ignore"):
            finding = rule.find(known, View(table))
        if not np.any(finding.broken):
            continue
        remedy = finding.remedy(whole) if finding.remedy is not None else _legal_values(rule, known, whole)
        found.append(Violation(rule.name, finding.reason(whole), remedy, rule.vary, rule.source))
    return found


def warnings(architecture: Architecture, machine: Machine, row: Mapping[str, Any]) -> list[str]:
    """What is legal but seldom meant: groups that leave the fast links."""
    whole = {**DEFAULTS, **row}
    domain = machine.nvlink_domain
    found = []
    for name in ("tp", "etp"):
        if whole[name] > max(domain, 1):
            found.append(
                f"{name}={whole[name]} reaches beyond the {domain} GPUs that NVLink connects: "
                "every layer waits for the network"
            )
    return found


def _legal_values(rule: Rule, known: Facts, row: Mapping[str, Any]) -> str:
    """For each column that the rule would vary, the values that obey it with the rest of the row held."""
    told = []
    for name in rule.vary:
        values = _domain(name, row)
        table = Table.of_rows([{**row, name: value} for value in values])
        legal = [value for value, broken in zip(values, rule.broken(known, table), strict=True) if not broken]
        if legal:
            shown = ", ".join(map(str, legal[:_MOST_LISTED])) + (", ..." if len(legal) > _MOST_LISTED else "")
            told.append(f"legal {name} here: {shown}")
    return "; ".join(told) if told else f"no single change of {', '.join(rule.vary)} is enough"


def _domain(name: str, row: Mapping[str, Any]) -> Sequence[Any]:
    """Values worth trying for a column."""
    if name in _NAMES:
        return _NAMES[name]
    if name == "vpp":
        return range(1, 17)
    if name == "micro_batch_size":
        return _divisors(int(row["global_batch_size"]))
    if name == "global_batch_size":
        passes = int(row["micro_batch_size"] * max(row["gpus"] // (row["tp"] * row["cp"]), 1))
        return [passes * factor for factor in range(1, 17)]
    if name == "sequence_length":
        return [1 << power for power in range(9, 21)]
    if name == "gpus":
        return [int(row["gpus_per_node"]) * factor for factor in range(1, 17)]
    return _divisors(int(row["gpus"]))


def _divisors(number: int) -> list[int]:
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)})
