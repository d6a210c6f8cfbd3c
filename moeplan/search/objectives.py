"""What a search maximizes: throughput, batch, memory or cost, each with a second criterion among equals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moeplan.errors import PlanError, nearest
from moeplan.estimator.machine import Machine
from moeplan.estimator.table import Table
from moeplan.operators.base import Array

if TYPE_CHECKING:
    from moeplan.estimator.price import Prices

GIB = float(1 << 30)
_SECONDS_PER_HOUR = 3600.0
_BILLION = 1e9


@dataclass(frozen=True)
class Objective:
    """What makes one candidate better than another.

    Attributes:
        name: As the user asks for it.
        unit: Of the value that reports show.
        smaller_is_better: Whether that value is minimized.
        measure: The reported value of each row, in ``unit``; shape (rows,).
        among_equals: What decides between rows of equal value, larger is better; shape (rows,).
        fills_pipeline: The global batch follows from each candidate (``micro_batch_size * dp * pp``).
    """

    name: str
    unit: str
    smaller_is_better: bool
    measure: Callable[[Machine, Table, Prices], Array]
    among_equals: Callable[[Table, Prices], Array]
    fills_pipeline: bool = False

    def score(self, machine: Machine, table: Table, prices: Prices) -> Array:
        """The value of each row so that larger is better; shape (rows,)."""
        value = self.measure(machine, table, prices)
        return -value if self.smaller_is_better else value

    def value(self, score: float) -> float:
        """The reported value of a score."""
        return -score if self.smaller_is_better else score


def usd_per_billion_tokens(machine: Machine, table: Table, prices: Prices) -> Array:
    """Rent of all GPUs for as long as a billion tokens take; NaN where the GPU has no price."""
    return table["gpus"] * machine.usd_per_hour / _SECONDS_PER_HOUR / prices.tokens_per_s * _BILLION


def _throughput(machine: Machine, table: Table, prices: Prices) -> Array:
    return prices.tokens_per_s


def _speed(table: Table, prices: Prices) -> Array:
    return prices.tokens_per_s


def _room(table: Table, prices: Prices) -> Array:
    return prices.headroom_bytes


OBJECTIVES: Mapping[str, Objective] = {
    "throughput": Objective("throughput", "tokens/s", False, _throughput, _room),
    "batch": Objective(
        "batch", "sequences", False, lambda machine, table, prices: table["global_batch_size"], _speed, True
    ),
    "memory": Objective("memory", "GiB", True, lambda machine, table, prices: prices.device_bytes / GIB, _speed),
    "cost": Objective("cost", "usd per billion tokens", True, usd_per_billion_tokens, _room),
}


def objective(name: str, machine: Machine) -> Objective:
    """The objective of a name.

    Raises:
        PlanError: There is none of that name, or it needs a price that the GPU does not have.
    """
    if name not in OBJECTIVES:
        raise PlanError("objective", f"there is no objective {name!r}", nearest(name, OBJECTIVES, "see --help"))
    if name == "cost" and not np.isfinite(machine.usd_per_hour):
        raise PlanError("objective", f"cost needs a price, which {machine.name} has not", "use throughput")
    return OBJECTIVES[name]
