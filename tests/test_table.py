"""The candidate table against plain Python."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moeplan.estimator.table import Column, Table

_VALUES = st.one_of(st.none(), st.integers(0, 3), st.sampled_from(["alltoall", "deepep", ("moe", "mlp")]))
_ROWS = st.lists(st.fixed_dictionaries({"a": _VALUES, "b": _VALUES, "c": st.integers(0, 200)}), min_size=1, max_size=60)


@given(_ROWS)
def test_rows_come_back_as_they_went_in(rows: list[dict[str, object]]) -> None:
    table = Table.of_rows(rows)
    assert [table.row(index) for index in range(table.rows)] == rows


@given(_ROWS, st.lists(st.sampled_from("abc"), unique=True))
def test_distinct_is_what_a_set_would_say(rows: list[dict[str, object]], names: list[str]) -> None:
    table = Table.of_rows(rows)
    distinct, index = table.distinct(names)
    found = [tuple(distinct.row(position).values()) for position in range(distinct.rows)]
    assert len(found) == len(set(found))
    assert [found[position] for position in index] == [tuple(row[name] for name in names) for row in rows]


@given(st.lists(st.integers(0, 999), min_size=1, max_size=50))
def test_a_lookup_and_a_sort_agree(codes: list[int]) -> None:
    # Ten columns of a thousand levels cannot be looked up and must be sorted.
    levels = tuple(range(1000))
    table = Table({str(c): Column(levels, np.roll(np.array(codes), c)) for c in range(10)}, len(codes))
    distinct, index = table.distinct(table.columns)
    assert [distinct.row(position) for position in index] == [table.row(row) for row in range(table.rows)]


@given(_ROWS, st.integers(1, 7))
def test_chunks_are_the_table_again(rows: list[dict[str, object]], size: int) -> None:
    table = Table.of_rows(rows)
    assert [chunk.row(i) for chunk in table.chunks(size) for i in range(chunk.rows)] == rows


def test_numbers_turn_none_into_nan() -> None:
    table = Table.of_rows([{"x": None}, {"x": 3}, {"x": True}])
    np.testing.assert_array_equal(table["x"], [np.nan, 3.0, 1.0])


def test_true_and_one_share_a_level_only_as_python_says() -> None:
    table = Table.of_rows([{"x": 1}, {"x": 2}, {"x": 1}])
    assert table.columns["x"].levels == (1, 2)


@given(_ROWS, st.lists(_VALUES, max_size=3))
def test_equals_is_what_a_loop_would_say(rows: list[dict[str, object]], values: list[object]) -> None:
    assert Table.of_rows(rows).equals("a", *values).tolist() == [row["a"] in values for row in rows]


_SOURCES = st.lists(st.fixed_dictionaries({"a": _VALUES, "b": _VALUES}), min_size=1, max_size=9)
_KNOBS = st.lists(st.fixed_dictionaries({"c": st.integers(0, 9), "d": _VALUES}), min_size=1, max_size=9)


@st.composite
def crossed(draw: st.DrawFn) -> tuple[Table, list[dict[str, object]]]:
    """A table made of the rows of two others, and its rows as plain mappings."""
    left, right = draw(_SOURCES), draw(_KNOBS)
    pairs = st.tuples(st.integers(0, len(left) - 1), st.integers(0, len(right) - 1))
    chosen = draw(st.lists(pairs, min_size=1, max_size=40))
    first, second = (np.array(index) for index in zip(*chosen, strict=True))
    columns = {**Table.of_rows(left).through(first), **Table.of_rows(right).through(second)}
    return Table(columns, len(chosen)), [{**left[a], **right[b]} for a, b in chosen]


@given(crossed(), st.lists(st.sampled_from("abcd"), unique=True, min_size=1), st.data())
def test_rows_made_of_two_tables_are_rows_like_any(
    case: tuple[Table, list[dict[str, object]]], names: list[str], data: st.DataObject
) -> None:
    table, rows = case
    assert [table.row(index) for index in range(table.rows)] == rows
    picked = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1))
    for taken, expected in ((table, rows), (table.take(np.array(picked)), [rows[index] for index in picked])):
        distinct, index = taken.distinct(names)
        found = [tuple(distinct.row(position).values()) for position in range(distinct.rows)]
        assert len(found) == len(set(found))
        assert [found[position] for position in index] == [tuple(row[name] for name in names) for row in expected]
        joined = taken.derived(names, lambda few: [str(few.row(position)) for position in range(few.rows)])
        told = [joined.levels[code] for code in joined.codes]
        assert told == [str({name: row[name] for name in names}) for row in expected]


def test_rows_that_differ_in_many_columns_are_told_apart() -> None:
    # 40 values in each of 20 columns: their combinations are more than 64 bits can number.
    rows = [{f"c{column}": (7 * row + column) % 40 for column in range(20)} for row in range(40)]
    table = Table.of_rows([*rows, *rows[::-1]])
    distinct, index = table.distinct(list(rows[0]))
    assert distinct.rows == 40
    assert [distinct.row(int(place)) for place in index] == [*rows, *rows[::-1]]
