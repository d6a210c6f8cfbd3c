"""Pure strategies (data, tensor, expert, pipeline) beside the best mix of all, each at its best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from moeplan.errors import PlanError
from moeplan.search.engine import search
from moeplan.search.layouts import divisors
from moeplan.search.request import SearchRequest, Winner
from moeplan.search.space import Space

STRATEGIES = ("data", "tensor", "expert", "pipeline", "mix")
"""One way to spend the GPUs each, the rest going to data parallelism; ``mix`` combines all."""

_FREE = {"data": (), "tensor": ("tp",), "expert": ("ep",), "pipeline": ("pp",)}


@dataclass(frozen=True)
class Compared:
    """One strategy at its best.

    Attributes:
        strategy: One of :data:`STRATEGIES`.
        winner: The best candidate that fits, or the one closest to fitting, or None when the strategy is not legal.
        reason: Why there is no winner, in the words of the rule that forbids the strategy; empty otherwise.
    """

    strategy: str
    winner: Winner | None
    reason: str = ""


def strategy_space(strategy: str, space: Space, base: Mapping[str, Any], nvlink_domain: int) -> Space:
    """A space narrowed to one strategy: its own degree above 1, every other degree at 1.

    Experts may be cut too where attention is, so ``etp`` stays free with ``tensor``, which like any
    search of ours stays inside the NVLink domain unless the space says otherwise.
    """
    if strategy == "mix":
        return space
    world = max(space.choices.get("gpus", (base["gpus"],)))
    choices: dict[str, tuple[Any, ...]] = dict(space.choices)
    for name in ("tp", "pp", "cp", "ep", "etp"):
        if name in _FREE[strategy]:
            widest = nvlink_domain if name == "tp" else world
            allowed = space.choices.get(name, range(widest + 1))
            choices[name] = tuple(d for d in divisors(world) if d > 1 and d in allowed)
        elif not (name == "etp" and strategy == "tensor"):
            choices[name] = (1,)
    if strategy != "pipeline":
        choices["vpp"] = (1,)
    return replace(space, choices=choices)


def compare(request: SearchRequest) -> tuple[Compared, ...]:
    """The best candidate of every strategy, in the order of :data:`STRATEGIES`.

    Raises:
        PlanError: The request cannot be used.
    """
    found = []
    for strategy in STRATEGIES:
        space = strategy_space(strategy, request.space, request.base, request.machine.nvlink_domain)
        try:
            outcome = search(replace(request, space=space, storage=None, top=1))
        except PlanError as error:
            if error.where != "search":
                raise
            found.append(Compared(strategy, None, error.remedy))
            continue
        winner = outcome.best or (outcome.near_misses[0] if outcome.near_misses else None)
        found.append(Compared(strategy, winner))
    return tuple(found)
