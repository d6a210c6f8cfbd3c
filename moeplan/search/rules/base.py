"""How a legality rule is written: a named function over columns, with a reason and a remedy for one row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from moeplan.estimator.table import Table
from moeplan.operators.base import Array
from moeplan.search.facts import Facts

Mask: TypeAlias = NDArray[np.bool_]
Row: TypeAlias = Mapping[str, Any]


class View:
    """A table as the rules read it: numbers, comparisons evaluated once per level, and the derived degrees."""

    def __init__(self, table: Table) -> None:
        self.table = table

    def __getitem__(self, name: str) -> Array:
        """The numbers of a column; ``None`` is NaN, which every comparison but ``!=`` answers with False."""
        return self.table[name]

    def test(self, name: str, predicate: Callable[[Any], bool]) -> Mask:
        """Rows whose value of column ``name`` satisfies ``predicate`` (called once per distinct value)."""
        column = self.table.columns[name]
        return column.spread(np.array([bool(predicate(level)) for level in column.levels], np.bool_))

    def equals(self, name: str, *values: Any) -> Mask:
        """Rows whose value of column ``name`` is one of ``values``."""
        return self.table.equals(name, *values)

    def value(self, name: str, function: Callable[[Any], float]) -> Array:
        """A number per row worked out once per distinct value of column ``name``."""
        column = self.table.columns[name]
        return column.spread(np.array([float(function(level)) for level in column.levels]))

    @property
    def dp(self) -> Array:
        """Data-parallel degree of attention ranks (fractional where the degrees do not divide)."""
        return self["gpus"] / (self["tp"] * self["pp"] * self["cp"])

    @property
    def edp(self) -> Array:
        """Data-parallel degree of expert ranks (fractional where the degrees do not divide)."""
        return self["gpus"] / (self["pp"] * self["ep"] * self["etp"])

    @property
    def micro_batches(self) -> Array:
        """Micro batches per step (fractional where the batch does not divide)."""
        return self["global_batch_size"] / (self["micro_batch_size"] * self.dp)

    @property
    def sequence_parallel(self) -> Mask:
        """Sequence parallelism in effect: asked for, or left open with tp > 1."""
        asked = self.test("sp", lambda level: level is True)
        return asked | (self.equals("sp", None) & (self["tp"] > 1))


@dataclass(frozen=True)
class Finding:
    """What a rule says about a table.

    Attributes:
        broken: Rows that break the rule.
        reason: Why a broken row is refused; called with one row only.
        remedy: What would be legal; called with one row only. None: the legal values of the rule's ``vary`` columns.
    """

    broken: Mask
    reason: Callable[[Row], str]
    remedy: Callable[[Row], str] | None = None


@dataclass(frozen=True)
class Rule:
    """A named legality rule.

    Attributes:
        name: Stable name, as violations report it.
        columns: Every column that the rule reads.
        vary: Columns that a user would change to obey it, the most likely first.
        source: Where the framework (or the hardware's documentation) says so.
        find: The rule itself.
    """

    name: str
    columns: frozenset[str]
    vary: tuple[str, ...]
    source: str
    find: Callable[[Facts, View], Finding]

    def broken(self, facts: Facts, table: Table) -> Mask:
        """Rows of ``table`` that break the rule, evaluated on its distinct combinations only; shape (rows,)."""
        distinct, index = table.distinct(sorted(self.columns))
        with np.errstate(divide="ignore", invalid="ignore"):
            broken = np.broadcast_to(self.find(facts, View(distinct)).broken, (distinct.rows,))
        return np.take(broken, index)


RULES: list[Rule] = []


def rule(
    columns: str, vary: str, source: str
) -> Callable[[Callable[[Facts, View], Finding]], Callable[[Facts, View], Finding]]:
    """Register a rule. ``columns`` and ``vary`` are names separated by spaces."""

    def register(find: Callable[[Facts, View], Finding]) -> Callable[[Facts, View], Finding]:
        RULES.append(
            Rule(find.__name__.replace("_", "-"), frozenset(columns.split()), tuple(vary.split()), source, find)
        )
        return find

    return register


def undivided(sizes: tuple[int, ...], degree: Array) -> Mask:
    """Rows whose ``degree`` does not divide every one of ``sizes``."""
    mask = np.zeros(degree.shape, np.bool_)
    for size in sizes:
        mask |= size % degree != 0
    return mask


def listed(values: tuple[int, ...]) -> str:
    """Numbers for a message: ``64`` or ``32 and 64``."""
    return " and ".join(str(value) for value in values)
