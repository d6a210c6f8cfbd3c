"""The candidate table: every column as few levels and many codes, so that formulas run on distinct values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int64]

# A lookup array of up to this many entries, or this many per row, costs less than sorting the rows (measured).
_LOOKUP_FLOOR = 1 << 16
_LOOKUP_PER_ROW = 16


@dataclass(frozen=True, slots=True)
class Column:
    """One column: ``levels[codes[i]]`` is the value of row ``i``.

    Attributes:
        levels: The distinct values, any hashable Python objects.
        codes: Integers of shape (rows,) into ``levels``.
    """

    levels: tuple[Any, ...]
    codes: NDArray[np.integer[Any]]

    @classmethod
    def constant(cls, value: Any, rows: int) -> Column:
        """A column of one value (its codes are a broadcast view and take no memory)."""
        return cls((value,), np.broadcast_to(np.uint8(0), (rows,)))

    @classmethod
    def of(cls, values: Sequence[Any]) -> Column:
        """Encode plain values, in order of first appearance."""
        index: dict[Any, int] = {}
        codes = np.fromiter((index.setdefault(value, len(index)) for value in values), np.int32, len(values))
        return cls(tuple(index), codes)

    def compact(self) -> Column:
        """This column without the levels that no row has."""
        used = np.flatnonzero(np.bincount(self.codes, minlength=len(self.levels)))
        if used.size == len(self.levels):
            return self
        renumbered = np.zeros(len(self.levels), np.int64)
        renumbered[used] = np.arange(used.size)
        return Column(tuple(self.levels[code] for code in used), renumbered[self.codes])

    def numbers(self) -> NDArray[np.float64]:
        """The values as float64, of shape (rows,); ``None`` becomes NaN."""
        levels = np.array([np.nan if level is None else float(level) for level in self.levels], np.float64)
        return np.take(levels, self.codes)


def _combinations(columns: Mapping[str, Column]) -> int:
    return math.prod(len(column.levels) for column in columns.values())


@dataclass(frozen=True, slots=True)
class Table:
    """Candidates by column. Immutable; every operation returns a new table that shares what it can."""

    columns: Mapping[str, Column]
    rows: int

    @classmethod
    def of_rows(cls, rows: Sequence[Mapping[str, Any]]) -> Table:
        """Build a table from one mapping per candidate; all must have the same keys."""
        names = list(rows[0]) if rows else []
        return cls({name: Column.of([row[name] for row in rows]) for name in names}, len(rows))

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        """The numbers of a column, of shape (rows,)."""
        return self.columns[name].numbers()

    def equals(self, name: str, *values: Any) -> NDArray[np.bool_]:
        """Rows whose value of a column is one of ``values``, compared once per level; shape (rows,)."""
        column = self.columns[name]
        return np.take(np.array([level in values for level in column.levels], np.bool_), column.codes)

    def with_columns(self, columns: Mapping[str, Column]) -> Table:
        """This table with columns added or replaced."""
        return Table({**self.columns, **columns}, self.rows)

    def take(self, index: NDArray[Any] | slice) -> Table:
        """The rows at ``index`` (integers, booleans or a slice)."""
        rows = np.empty(self.rows, np.bool_)[index].shape[0]
        columns = {
            name: Column.constant(column.levels[0], rows)
            if len(column.levels) == 1
            else Column(column.levels, column.codes[index])
            for name, column in self.columns.items()
        }
        return Table(columns, rows)

    def row(self, index: int) -> dict[str, Any]:
        """One candidate as plain values."""
        return {name: column.levels[int(column.codes[index])] for name, column in self.columns.items()}

    def chunks(self, size: int) -> Iterator[Table]:
        """Successive tables of at most ``size`` rows."""
        for start in range(0, self.rows, size):
            yield self.take(slice(start, start + size))

    def distinct(self, names: Iterable[str]) -> tuple[Table, Codes]:
        """Return the distinct rows over ``names`` and, for every row of this table, the index of its distinct row.

        A mixed-radix code per row replaces sorting: with L levels in all the columns together the cost is one pass
        over the rows plus one over the codes.
        """
        chosen = {name: self.columns[name] for name in names}
        varying = {name: column for name, column in chosen.items() if len(column.levels) > 1}
        if _combinations(varying) > max(_LOOKUP_FLOOR, self.rows):
            # Levels that no row uses only make the lookup larger.
            varying = {name: column.compact() for name, column in varying.items()}
            chosen |= varying
            varying = {name: column for name, column in varying.items() if len(column.levels) > 1}
        if not varying:
            single = {name: Column(column.levels, column.codes[:1]) for name, column in chosen.items()}
            return Table(single, min(self.rows, 1)), np.zeros(self.rows, np.int64)
        code = np.zeros(self.rows, np.int64)
        for column in varying.values():
            code *= len(column.levels)
            code += column.codes
        size = _combinations(varying)
        if size <= max(_LOOKUP_FLOOR, _LOOKUP_PER_ROW * self.rows):
            lookup = np.zeros(size, np.int64)
            lookup[code] = 1
            present = np.flatnonzero(lookup)
            lookup[present] = np.arange(present.size)
            inverse = lookup[code]
        else:
            present, inverse = np.unique(code, return_inverse=True)
        columns: dict[str, Column] = {}
        remainder = present.copy()
        for name in reversed(list(varying)):
            base = len(varying[name].levels)
            columns[name] = Column(varying[name].levels, remainder % base)
            remainder //= base
        for name, column in chosen.items():
            if name not in columns:
                columns[name] = Column.constant(column.levels[0], present.size)
        return Table({name: columns[name] for name in chosen}, int(present.size)), inverse
