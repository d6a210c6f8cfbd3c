"""All legal candidates of a search, never held at once: a body (layout, batch, pipeline) crossed with cheap knobs.

A candidate is a *body* row together with a *knob* row. Rules that read only body columns have already thinned the
bodies, rules that read only knobs the knobs; rules that read both become one table of allowed knobs per class::

    bodies   layout batch pipeline | class          allowed   knob 0  knob 1  knob 2
    0        tp 1   mbs 1 pp 4     | 0              class 0     x       x
    1        tp 1   mbs 2 pp 4     | 0              class 1     x               x
    2        tp 2   mbs 1 pp 4     | 1

so candidates 0 and 1 are body 0 with knobs 0 and 1, candidates 4 and 5 body 2 with knobs 0 and 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeplan.errors import PlanError
from moeplan.estimator.columns import DEFAULTS
from moeplan.estimator.machine import Machine
from moeplan.estimator.table import Column, Table
from moeplan.model.architecture import Architecture
from moeplan.operators.base import Array
from moeplan.search.facts import Facts, facts
from moeplan.search.layouts import DEGREES, divisors, layouts, legal_rows, small
from moeplan.search.pipelines import Pipeline, pipelines
from moeplan.search.rules import RULES, Rule
from moeplan.search.rules.base import Mask
from moeplan.search.space import Space

_BATCH = ("global_batch_size", "sequence_length", "micro_batch_size")
_PIPELINE = ("vpp", "mtp_layers", "pipeline_layout")
BODY = (*DEGREES, *_BATCH, *_PIPELINE)
_NONE = np.zeros(0, np.int64)
_RECOMPUTE = ("recompute", "recompute_modules", "recompute_method", "recompute_layers")

# Every trial of a study prices all knobs of a layout, and their legality is one table: a layout's worth of candidates
# must stay within a second and the table within memory.
_MOST_KNOBS = 8192

# Bodies are sorted by what layer formulas depend on, so that a chunk of them has few distinct layers to price.
_SHARED_FIRST = ("sequence_length", "micro_batch_size", "tp", "cp", "etp", "ep", "gpus", "pp", "mtp_layers", "vpp")


@dataclass(frozen=True)
class Candidates:
    """Every legal candidate of a search.

    Attributes:
        layouts: Distinct layouts, the columns of ``DEGREES``.
        bodies: The columns of ``BODY``.
        layout: For each body, its row in ``layouts``; shape (bodies,).
        knobs: Every other column.
        body_class: For each body, its row in ``allowed``; shape (bodies,).
        allowed: Knobs that a class of bodies may have; shape (classes, knobs).
        raw: Combinations of the choices before any rule.
    """

    layouts: Table
    bodies: Table
    layout: NDArray[Any]
    knobs: Table
    body_class: NDArray[Any]
    allowed: Mask
    raw: int

    @cached_property
    def first(self) -> NDArray[np.int64]:
        """Number of the first candidate of each body, and at the end their total; shape (bodies + 1,)."""
        counts = self.allowed.sum(axis=1)[self.body_class]
        return np.concatenate([[0], np.cumsum(counts)])

    def __len__(self) -> int:
        """Legal candidates."""
        return int(self.first[-1])

    def spans(self, size: int) -> list[tuple[int, int]]:
        """Ranges of bodies that have about ``size`` candidates each, in order."""
        cuts = np.searchsorted(self.first, np.arange(0, len(self), size), side="left")
        edges = [*dict.fromkeys(int(cut) for cut in cuts), self.bodies.rows]
        return [(start, stop) for start, stop in pairwise(edges) if stop > start]

    def of(self, bodies: NDArray[Any] | range) -> tuple[Table, NDArray[np.int64]]:
        """The candidates of some bodies.

        Returns:
            The table with every column of ``columns.DEFAULTS``, and the body of each row; shape (rows,).
        """
        chosen = np.arange(bodies.start, bodies.stop) if isinstance(bodies, range) else bodies
        which, knob = np.nonzero(self.allowed[self.body_class[chosen]])
        body = chosen[which]
        columns = {**self.bodies.take(chosen).through(which), **self.knobs.through(knob)}
        return Table(columns, int(body.size)), body

    def numbers(self, body: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers of some rows of :meth:`of` among all candidates; ``body`` is what that tells of every row."""
        own = body[rows]
        found: NDArray[np.int64] = self.first[own] + rows - np.searchsorted(body, own)
        return found

    def of_layout(self, layout: int) -> NDArray[np.int64]:
        """The bodies of one layout, ascending."""
        order, edges = self._by_layout
        return order[edges[layout] : edges[layout + 1]]

    @cached_property
    def _by_layout(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        order = np.argsort(self.layout, kind="stable")
        return order, np.searchsorted(self.layout[order], np.arange(self.layouts.rows + 1))


def candidates(
    architecture: Architecture,
    machine: Machine,
    base: Mapping[str, Any],
    space: Space,
    fill_pipeline: bool = False,
) -> Candidates:
    """Build every legal candidate of a search.

    Args:
        architecture: The model.
        machine: The GPU.
        base: The plan that the search starts from, as a row: it gives every column that the space leaves alone.
        space: What may be chosen.
        fill_pipeline: Let the global batch follow from each candidate instead: the smallest that keeps its pipeline
            full, ``micro_batch_size * dp * pp`` (for asking how large a batch fits).
    """
    known = facts(architecture, machine)
    chosen = {name: space.choices.get(name, (base.get(name, default),)) for name, default in DEFAULTS.items()}
    degrees = {name: space.choices[name] for name in DEGREES if name in space.choices}
    found = layouts(known, chosen["gpus"], degrees, max(chosen["sequence_length"]))
    knobs = _knobs(known, {name: values for name, values in chosen.items() if name not in BODY})
    fixed = {name: column for name, column in knobs.columns.items() if len(column.levels) == 1}
    cuts = _pipelines(architecture, space, chosen, found)
    bodies, layout = Table({}, 0), _NONE
    if found.rows and knobs.rows:
        bodies, layout = _bodies(architecture, known, found, cuts, chosen, fixed, fill_pipeline)
    raw = _raw(chosen, degrees, knobs)
    if not bodies.rows:
        return Candidates(found, bodies, _NONE, knobs, _NONE, np.zeros((0, knobs.rows), np.bool_), raw)
    body_class, allowed = _classes(known, bodies, knobs)
    alive: Mask = np.take(np.any(allowed, axis=1), body_class)
    # Layouts without a candidate go too: a study must not spend trials on them.
    used, layout = np.unique(layout[alive], return_inverse=True)
    return Candidates(found.take(used), bodies.take(alive), layout, knobs, body_class[alive], allowed, raw)


def _raw(chosen: Mapping[str, tuple[Any, ...]], degrees: Mapping[str, tuple[Any, ...]], knobs: Table) -> int:
    """Size of the product of all choices; a free degree counts its divisors."""
    world = max(chosen["gpus"])
    sizes = [len(degrees[name]) if name in degrees else len(divisors(world)) for name in DEGREES if name != "gpus"]
    sizes += [len(chosen[name]) for name in ("gpus", *_BATCH, "vpp", "mtp_layers")]
    return prod(sizes) * knobs.rows


def _pipelines(
    architecture: Architecture, space: Space, chosen: Mapping[str, tuple[Any, ...]], found: Table
) -> list[Pipeline]:
    degrees = found.columns["pp"].levels
    # A plan that brings its own layout keeps it unless the space asks otherwise.
    given = space.choices.get("pipeline_layout")
    if given is None and chosen["pipeline_layout"] != (None,):
        given = chosen["pipeline_layout"]
    return pipelines(architecture, degrees, chosen["vpp"], chosen["mtp_layers"], given)


def _bodies(
    architecture: Architecture,
    known: Facts,
    found: Table,
    cuts: Sequence[Pipeline],
    chosen: Mapping[str, tuple[Any, ...]],
    fixed: Mapping[str, Column],
    fill_pipeline: bool,
) -> tuple[Table, NDArray[Any]]:
    """Cross layouts with batches and pipelines, dropping what a rule refuses as soon as its columns are there."""

    def thin(table: Table) -> Table:
        constants = {name: Column.constant(column.levels[0], table.rows) for name, column in fixed.items()}
        kept = legal_rows(known, table.with_columns(constants))
        return Table({name: column for name, column in kept.columns.items() if name not in fixed}, kept.rows)

    numbered = found.with_columns({"_layout": Column(tuple(range(found.rows)), np.arange(found.rows))})
    table = _cross(
        numbered, [dict(zip(_BATCH, values, strict=True)) for values in product(*(chosen[n] for n in _BATCH))]
    )
    if fill_pipeline:
        full = table["micro_batch_size"] * table["gpus"] / (table["tp"] * table["cp"])
        levels, codes = np.unique(full, return_inverse=True)
        column = Column(tuple(levels.astype(int).tolist()), small(codes, len(levels)))
        table = table.with_columns({"global_batch_size": column})
    table = thin(table)
    parts = []
    by_pp: dict[int, list[dict[str, Any]]] = {}
    for cut in cuts:
        cell = {"vpp": cut.vpp, "mtp_layers": cut.mtp_layers, "pipeline_layout": cut.layout}
        by_pp.setdefault(cut.pp, []).append(cell)
    for pp, cells in by_pp.items():
        column = table.columns["pp"]
        parts.append(_cross(table.take(np.asarray(column.codes == column.levels.index(pp))), cells))
    joined = _sorted(thin(_stack(parts))) if parts else table.take(slice(0, 0))
    layout = np.asarray(joined.columns["_layout"].codes)
    return Table({name: joined.columns[name] for name in BODY if name in joined.columns}, joined.rows), layout


def _cross(table: Table, cells: Sequence[Mapping[str, Any]]) -> Table:
    """Every row of ``table`` with every cell, cells varying fastest."""
    count = len(cells)
    columns = {name: Column(column.levels, np.repeat(column.codes, count)) for name, column in table.columns.items()}
    for name in cells[0] if cells else ():
        column = Column.of([cell[name] for cell in cells])
        columns[name] = Column(column.levels, np.tile(small(column.codes, len(column.levels)), table.rows))
    return Table(columns, table.rows * count)


def _stack(parts: Sequence[Table]) -> Table:
    """Tables of the same columns one after the other; their levels are united."""
    columns = {}
    for name in parts[0].columns:
        levels = tuple(dict.fromkeys(level for part in parts for level in part.columns[name].levels))
        place = {level: index for index, level in enumerate(levels)}
        if all(part.columns[name].levels == levels for part in parts):
            codes = np.concatenate([part.columns[name].codes for part in parts])
        else:
            codes = np.concatenate(
                [
                    np.array([place[level] for level in part.columns[name].levels])[part.columns[name].codes]
                    for part in parts
                ]
            )
        columns[name] = Column(levels, small(codes, len(levels)))
    return Table(columns, sum(part.rows for part in parts))


def _sorted(table: Table) -> Table:
    """Rows in the order of ``_SHARED_FIRST``: the estimator evaluates each layer once per chunk of them."""
    ranks = []
    for name in _SHARED_FIRST:
        column = table.columns[name]
        values = np.array([level or 0 for level in column.levels])
        rank = np.argsort(np.argsort(values, kind="stable"), kind="stable")
        ranks.append(rank[column.codes])
    return table.take(np.lexsort(ranks[::-1]))


def _knobs(known: Facts, chosen: Mapping[str, tuple[Any, ...]]) -> Table:
    """Every legal combination of the columns that are no part of a body."""
    groups: list[list[dict[str, Any]]] = [_recomputes(chosen)]
    groups += [[{name: value} for value in values] for name, values in chosen.items() if name not in _RECOMPUTE]
    if (count := prod(map(len, groups))) > _MOST_KNOBS:
        widest = sorted((name for name in chosen if len(chosen[name]) > 1), key=lambda name: -len(chosen[name]))
        told = ", ".join(f"{name} ({len(chosen[name])})" for name in widest[:6])
        raise PlanError(
            "space",
            f"{count:,} combinations of the choices that are no degrees or batch sizes, of at most {_MOST_KNOBS:,}",
            f"hold some of {told}, or search in two steps",
        )
    rows = []
    for cells in product(*groups):
        row = {name: value for cell in cells for name, value in cell.items()}
        if not row["offload_modules"]:
            # Without modules to offload every fraction is the same plan.
            row["activation_offload_fraction"] = DEFAULTS["activation_offload_fraction"]
        rows.append(row)
    distinct = list({tuple(row.items()): row for row in rows}.values())
    return legal_rows(known, Table.of_rows(distinct))


def _recomputes(chosen: Mapping[str, tuple[Any, ...]]) -> list[dict[str, Any]]:
    """Ways to recompute, each once: modules belong to selective, method and layers to full."""
    found = []
    for granularity, modules, method, layers in product(*(chosen[name] for name in _RECOMPUTE)):
        cell: dict[str, Any] = {
            "recompute": granularity,
            "recompute_modules": (),
            "recompute_method": None,
            "recompute_layers": None,
        }
        if granularity == "selective":
            # Megatron-Core's default modules.
            cell["recompute_modules"] = tuple(modules) or ("core_attn",)
        elif granularity == "full":
            cell |= {"recompute_method": method, "recompute_layers": layers}
        if cell not in found:
            found.append(cell)
    return found


def _classes(known: Facts, bodies: Table, knobs: Table) -> tuple[NDArray[Any], Mask]:
    """Which knobs each body may have, worked out per distinct combination of the columns that matter to both."""
    mixed = [rule for rule in RULES if rule.columns & bodies.columns.keys() and rule.columns & knobs.columns.keys()]
    mixed = [rule for rule in mixed if not _settled(rule, bodies, knobs)]
    shared = {name for rule in mixed for name in rule.columns & bodies.columns.keys()} | {"cp", "ep", "tp", "etp"}
    classes, body_class = bodies.distinct(sorted(shared))
    allowed = _worthwhile(known, classes, knobs)
    for rule in mixed:
        left, left_index = classes.distinct(sorted(rule.columns & classes.columns.keys()))
        right, right_index = knobs.distinct(sorted(rule.columns & knobs.columns.keys()))
        a, b = np.divmod(np.arange(left.rows * right.rows), max(right.rows, 1))
        crossed = Table({**left.take(a).columns, **right.take(b).columns}, a.size)
        legal = ~rule.broken(known, crossed).reshape(left.rows, right.rows)
        allowed &= legal[left_index][:, right_index]
    return small(body_class, classes.rows), allowed


def _settled(rule: Rule, bodies: Table, knobs: Table) -> bool:
    """Whether the rule was applied to the bodies already, since every knob that it reads has one value."""
    reads = rule.columns & knobs.columns.keys()
    return all(len(knobs.columns[name].levels) == 1 for name in reads) and bool(rule.columns & bodies.columns.keys())


def _worthwhile(known: Facts, classes: Table, knobs: Table) -> Mask:
    """Drop knobs that change nothing: of several equal candidates the first is enough; shape (classes, knobs)."""
    allowed = np.ones((classes.rows, knobs.rows), np.bool_)
    alone: Array = classes["ep"] * classes["etp"] * classes["tp"]
    for name, moot, plain in (
        ("cp_comm", classes["cp"] == 1, "p2p"),
        ("dispatcher", (alone == 1) | (not known.is_moe), "alltoall"),
        ("overlap_tp", classes["tp"] == 1, False),
    ):
        column = knobs.columns[name]
        if plain in column.levels:
            other = column.codes != column.levels.index(plain)
            allowed &= ~(moot[:, None] & other[None, :])
    return allowed
