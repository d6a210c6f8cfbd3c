"""Every legal way to lay a model over GPUs, built from divisors: tp*cp*dp = etp*ep*edp = gpus/pp."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeplan.estimator.table import Column, Table
from moeplan.search.facts import Facts
from moeplan.search.rules import RULES

DEGREES = ("gpus", "tp", "pp", "cp", "ep", "etp")


def divisors(number: int) -> list[int]:
    """The divisors of a positive integer, ascending."""
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)})


# Context parallelism exists for sequences whose activations do not fit; Llama 3 was trained at 8,192 tokens per rank
# (arXiv:2407.21783, table 4). Below a quarter of that the all-gathers of keys and values only cost.
_TOKENS_PER_CONTEXT_RANK = 2048


def layouts(
    facts: Facts, gpus_choices: Sequence[int], choices: Mapping[str, tuple[Any, ...]], longest_sequence: int = 4096
) -> Table:
    """Enumerate the layouts that the choices leave and no rule about degrees refuses.

    The two grids of folded expert parallelism are built from the divisors of ``gpus / pp`` apart and then crossed, so
    that every row multiplies to the world by construction.

    Args:
        facts: Model and machine.
        gpus_choices: Numbers of GPUs.
        choices: Choices by column for tp, pp, cp, ep and etp; an absent tp or etp takes the divisors inside the NVLink
            domain (tensor parallelism across it is legal, but every layer would wait for the network), an absent cp
            those that leave 2,048 tokens to each rank, any other absent degree every divisor.
        longest_sequence: Tokens of the longest sequence that is asked about.

    Returns:
        A table with the columns of :data:`DEGREES`, sorted by them.
    """
    blocks = []
    if "cp" not in choices:
        choices = {**choices, "cp": tuple(range(1, max(longest_sequence // _TOKENS_PER_CONTEXT_RANK, 1) + 1))}
    for gpus in sorted(set(gpus_choices)):
        for pp in _allowed("pp", gpus, choices, facts):
            ranks = gpus // pp
            attention = _pairs(ranks, _allowed("tp", ranks, choices, facts), _allowed("cp", ranks, choices, facts))
            experts = _pairs(ranks, _allowed("ep", ranks, choices, facts), _allowed("etp", ranks, choices, facts))
            left, right = np.meshgrid(np.arange(len(attention)), np.arange(len(experts)), indexing="ij")
            tp_cp, ep_etp = attention[left.ravel()], experts[right.ravel()]
            fixed = np.tile((gpus, pp), (len(tp_cp), 1))
            blocks.append(np.stack([fixed[:, 0], tp_cp[:, 0], fixed[:, 1], tp_cp[:, 1], *ep_etp.T], axis=1))
    rows = np.concatenate(blocks) if blocks else np.empty((0, len(DEGREES)), np.int64)
    rows = rows[np.lexsort(rows.T[::-1])]
    return legal_rows(facts, Table(dict(zip(DEGREES, map(_encode, rows.T), strict=True)), len(rows)))


def legal_rows(facts: Facts, table: Table) -> Table:
    """The rows of ``table`` that no rule refuses whose columns the table has."""
    keep = np.ones(table.rows, np.bool_)
    for rule in RULES:
        if table.rows and rule.columns <= table.columns.keys():
            keep &= ~rule.broken(facts, table)
    return table if keep.all() else table.take(keep)


def _allowed(name: str, ranks: int, choices: Mapping[str, tuple[Any, ...]], facts: Facts) -> list[int]:
    """Divisors of ``ranks`` that the choices and the model leave for a degree."""
    found = divisors(ranks)
    if name in choices:
        wanted = set(choices[name])
        return [degree for degree in found if degree in wanted]
    if name in ("ep", "etp") and not facts.is_moe:
        return [1]
    if name in ("tp", "etp"):
        # The widest island of fast links; a machine without any keeps tensor parallelism on one GPU.
        return [degree for degree in found if degree <= max(facts.machine.nvlink_domain, 1)]
    return found


def _pairs(ranks: int, first: Sequence[int], second: Sequence[int]) -> NDArray[np.int64]:
    """Pairs whose product divides ``ranks``; shape (pairs, 2)."""
    pairs = [(a, b) for a in first for b in second if ranks % (a * b) == 0]
    return np.array(pairs, np.int64).reshape(-1, 2)


def _encode(values: NDArray[np.int64]) -> Column:
    levels, codes = np.unique(values, return_inverse=True)
    return Column(tuple(int(level) for level in levels), small(codes, len(levels)))


def small(codes: NDArray[Any], levels: int) -> NDArray[Any]:
    """Codes in the narrowest unsigned type: a candidate costs its bytes in every pass over a column."""
    return codes.astype(np.uint8 if levels <= 1 << 8 else np.uint16 if levels <= 1 << 16 else np.uint32)
