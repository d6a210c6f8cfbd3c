"""The candidate table: every column as few levels and many codes, so that formulas run on distinct values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

_ZERO = b"\0"
Codes = NDArray[np.int64]
_Value = TypeVar("_Value", bound=np.generic)

# A lookup array of up to this many entries, or this many per row, costs less than sorting the rows (measured).
_LOOKUP_FLOOR = 1 << 16
_LOOKUP_PER_ROW = 16
# Numbers that tell rows apart must fit 64 bits.
_LARGEST = 1 << 62


@dataclass(frozen=True, slots=True)
class Column:
    """One column: ``levels[codes[i]]`` is the value of row ``i``.

    A column may be another table's, seen through the rows that the rows here were made of: a search's candidates are
    bodies crossed with knobs, and what depends on one of the two is worked out over its few rows.

    Attributes:
        levels: The distinct values, any hashable Python objects.
        stored: Integers into ``levels``: of shape (rows,), or of the other table's.
        origin: For each row, its row of the other table, shape (rows,); None where ``stored`` is by row. Columns that
            come from the same table share the array.
    """

    levels: tuple[Any, ...]
    stored: NDArray[np.integer[Any]]
    origin: Codes | None = None

    @classmethod
    def constant(cls, value: Any, rows: int) -> Column:
        """A column of one value (its codes are a broadcast view and take no memory)."""
        return cls((value,), np.ndarray((rows,), np.uint8, _ZERO, strides=(0,)))

    @classmethod
    def of(cls, values: Sequence[Any]) -> Column:
        """Encode plain values, in order of first appearance."""
        index: dict[Any, int] = {}
        codes = np.fromiter((index.setdefault(value, len(index)) for value in values), np.int32, len(values))
        return cls(tuple(index), codes)

    @property
    def codes(self) -> NDArray[np.integer[Any]]:
        """Integers of shape (rows,) into ``levels``."""
        return self.stored if self.origin is None else np.take(self.stored, self.origin)

    def code(self, row: int) -> int:
        """The code of one row."""
        return int(self.stored[row if self.origin is None else self.origin[row]])

    def compact(self) -> Column:
        """This column without the levels that nothing stored has."""
        used = np.flatnonzero(np.bincount(self.stored, minlength=len(self.levels)))
        if used.size == len(self.levels):
            return self
        renumbered = np.zeros(len(self.levels), np.int64)
        renumbered[used] = np.arange(used.size)
        return Column(tuple(self.levels[code] for code in used), renumbered[self.stored], self.origin)

    def spread(self, values: NDArray[_Value]) -> NDArray[_Value]:
        """A value per level told for every row; shape (rows,)."""
        found: NDArray[_Value] = np.take(values, self.stored)
        return found if self.origin is None else np.take(found, self.origin)

    def numbers(self) -> NDArray[np.float64]:
        """The values as float64, of shape (rows,); ``None`` becomes NaN."""
        return self.spread(np.array([np.nan if level is None else float(level) for level in self.levels], np.float64))


@dataclass(frozen=True, slots=True)
class _Digit:
    """One digit of the number that tells rows apart: a column, or all columns that come from one other table.

    Attributes:
        size: Values that the digit has.
        codes: Value of each row; shape (rows,).
        columns: Columns by value of the digit.
    """

    size: int
    codes: NDArray[np.integer[Any]]
    columns: Mapping[str, Column]

    @classmethod
    def of(cls, columns: Mapping[str, Column]) -> _Digit:
        """Columns of one origin, or a single one that is by row."""
        first = next(iter(columns.values()))
        if first.origin is None:
            levels = first.levels
            return cls(len(levels), first.stored, {name: Column(levels, np.arange(len(levels))) for name in columns})
        stored = {name: Column(column.levels, column.stored) for name, column in columns.items()}
        distinct, codes = Table(stored, first.stored.size).distinct(stored)
        return cls(distinct.rows, np.take(codes, first.origin), distinct.columns)

    def told(self, values: Codes) -> dict[str, Column]:
        """The columns at some values of the digit."""
        return {name: Column(column.levels, column.codes[values]) for name, column in self.columns.items()}


def _digits(columns: Mapping[str, Column], rows: int) -> list[_Digit]:
    """The digits that tell rows apart by some columns of more than one level."""
    if math.prod(len(column.levels) for column in columns.values()) > max(_LOOKUP_FLOOR, rows):
        # Levels that no row uses only make the lookup larger.
        columns = {name: column.compact() for name, column in columns.items()}
    groups: dict[Any, dict[str, Column]] = {}
    for name, column in columns.items():
        groups.setdefault(name if column.origin is None else id(column.origin), {})[name] = column
    return [_Digit.of(group) for group in groups.values()]


def _present(code: Codes, size: int) -> tuple[Codes, Codes]:
    """The distinct values of codes below ``size``, ascending, and the place of each code among them."""
    if size > max(_LOOKUP_FLOOR, _LOOKUP_PER_ROW * code.size):
        return np.unique(code, return_inverse=True)
    lookup = np.zeros(size, np.int64)
    lookup[code] = 1
    present = np.flatnonzero(lookup)
    lookup[present] = np.arange(present.size)
    return present, np.take(lookup, code)


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
        return column.spread(np.array([level in values for level in column.levels], np.bool_))

    def with_columns(self, columns: Mapping[str, Column]) -> Table:
        """This table with columns added or replaced."""
        return Table({**self.columns, **columns}, self.rows)

    def through(self, origin: Codes) -> dict[str, Column]:
        """The columns of a table whose row ``i`` is made of this one's row ``origin[i]``."""
        return {
            name: Column.constant(column.levels[0], origin.size)
            if len(column.levels) == 1
            else Column(column.levels, column.codes, origin)
            for name, column in self.columns.items()
        }

    def take(self, index: NDArray[Any] | slice) -> Table:
        """The rows at ``index`` (integers, booleans or a slice)."""
        rows = np.empty(self.rows, np.bool_)[index].shape[0]
        # Columns that come from the same table go on sharing their origin.
        origins: dict[int, Codes] = {}

        def chosen(column: Column) -> Column:
            if len(column.levels) == 1:
                return Column.constant(column.levels[0], rows)
            if column.origin is None:
                return Column(column.levels, column.stored[index])
            if id(column.origin) not in origins:
                origins[id(column.origin)] = column.origin[index]
            return Column(column.levels, column.stored, origins[id(column.origin)])

        return Table({name: chosen(column) for name, column in self.columns.items()}, rows)

    def row(self, index: int) -> dict[str, Any]:
        """One candidate as plain values."""
        return {name: column.levels[column.code(index)] for name, column in self.columns.items()}

    def chunks(self, size: int) -> Iterator[Table]:
        """Successive tables of at most ``size`` rows."""
        for start in range(0, self.rows, size):
            yield self.take(slice(start, start + size))

    def derived(self, names: Sequence[str], values: Callable[[Table], Sequence[Any]]) -> Column:
        """A column that follows from others: ``values`` is called with their distinct rows and tells one for each."""
        varying = [self.columns[name] for name in names if len(self.columns[name].levels) > 1]
        origin = varying[0].origin if varying else None
        source = self
        if origin is not None and all(column.origin is origin for column in varying):
            rows = varying[0].stored.size
            stored = {
                name: Column(column.levels, column.stored)
                if column.origin is origin
                else Column.constant(column.levels[0], rows)
                for name, column in ((name, self.columns[name]) for name in names)
            }
            source = Table(stored, rows)
        else:
            origin = None
        distinct, index = source.distinct(names)
        column = Column.of(values(distinct))
        return Column(column.levels, column.stored[index], origin)

    def _joined(self, digits: Sequence[_Digit]) -> _Digit:
        """Several digits as one, which has no more values than the table has rows."""
        rows, codes = self.distinct([name for digit in digits for name in digit.columns])
        return _Digit(rows.rows, codes, rows.columns)

    def distinct(self, names: Iterable[str]) -> tuple[Table, Codes]:
        """Return the distinct rows over ``names`` and, for every row of this table, the index of its distinct row.

        A mixed-radix code per row replaces sorting: with L values of all the digits together the cost is one pass over
        the rows per digit plus one over the codes.
        """
        chosen = {name: self.columns[name] for name in names}
        digits = _digits({name: column for name, column in chosen.items() if len(column.levels) > 1}, self.rows)
        digits = [digit for digit in digits if digit.size > 1]
        if math.prod(digit.size for digit in digits) > _LARGEST:
            half = len(digits) // 2
            digits = [self._joined(digits[:half]), self._joined(digits[half:])]
        code, size = np.zeros(self.rows, np.int64), 1
        for digit in digits:
            code *= digit.size
            code += digit.codes
            size *= digit.size
        present, inverse = _present(code, size)
        columns: dict[str, Column] = {}
        remainder = present
        for digit in reversed(digits):
            remainder, values = np.divmod(remainder, digit.size)
            columns |= digit.told(values)
        for name, column in chosen.items():
            if name not in columns:
                columns[name] = Column.constant(column.levels[column.code(0) if self.rows else 0], present.size)
        return Table({name: columns[name] for name in chosen}, int(present.size)), inverse
