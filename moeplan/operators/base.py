"""The questions that every operator answers, and the shard that they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]
Component: TypeAlias = Literal[
    "embedding",
    "lm_head",
    "attention",
    "dense_mlp",
    "router",
    "routed_experts",
    "shared_experts",
    "norms",
    "other",
]
"""The parts that parameters are reported by (contract, section 4)."""

COMPONENTS: tuple[Component, ...] = (
    "embedding",
    "lm_head",
    "attention",
    "dense_mlp",
    "router",
    "routed_experts",
    "shared_experts",
    "norms",
    "other",
)


@dataclass(frozen=True, slots=True)
class Shard:
    """How one micro batch of the model is cut over GPUs: one entry per candidate in every array.

    All arrays are float64 of shape (candidates,), or of shape (1,) where a value is the same for all. ``values`` holds
    further per-candidate columns by name (precision facts, recompute switches), see ``estimator/shard.py``.
    """

    tp: Array
    cp: Array
    ep: Array
    etp: Array
    micro_batch_size: Array
    sequence_length: Array
    values: Mapping[str, Array]

    @property
    def tokens(self) -> Array:
        """Tokens of one micro batch on one rank, after context parallelism."""
        return self.micro_batch_size * self.sequence_length / self.cp

    @property
    def sequence_tokens(self) -> Array:
        """Tokens of one micro batch on one rank where sequence parallelism has cut them over ``tp`` too."""
        return self.tokens / np.where(self.value("sp", 1.0) > 0, self.tp, 1.0)

    def value(self, name: str, default: float = 0.0) -> Array:
        """A further column, or ``default`` for all candidates where the shard does not hold it."""
        found = self.values.get(name)
        return np.full(1, default) if found is None else found


def unsharded(micro_batch_size: int = 1, sequence_length: int = 1) -> Shard:
    """Return the shard of a single GPU: the whole model, which is what parameter counts are made of."""
    one = np.ones(1)
    return Shard(one, one, one, one, one * micro_batch_size, one * sequence_length, {})


@dataclass(frozen=True, slots=True)
class Weight:
    """One parameter tensor as one rank holds it.

    Attributes:
        name: Dotted name inside the operator, e.g. ``linear_qkv``.
        component: Where parameter reports count it.
        rows: Local output features; shape (candidates,) or (1,).
        columns: Local input features; ones for vectors (norm scales, biases).
        copies: Local tensors of this shape (experts on the rank); shape (candidates,) or (1,).
        expert: Sharded over the expert grid (``etp``, ``ep``, expert data parallel) instead of the attention grid.
        gemm: A matrix that a GEMM reads, so Transformer Engine may keep a dummy weight gradient of its shape.
    """

    name: str
    component: Component
    rows: Array
    columns: Array
    copies: Array
    expert: bool = False
    gemm: bool = True

    @property
    def elements(self) -> Array:
        """Parameters held on the rank."""
        return self.rows * self.columns * self.copies


def matrix(name: str, component: Component, rows: Array | float, columns: Array | float) -> Weight:
    """A dense matrix of local shape (rows, columns) that a GEMM reads."""
    return Weight(
        name, component, np.atleast_1d(np.asarray(rows, float)), np.atleast_1d(np.asarray(columns, float)), np.ones(1)
    )


def vector(name: str, component: Component, elements: Array | float) -> Weight:
    """A dense vector (norm scale, bias, sinks) of ``elements`` local entries."""
    return Weight(
        name, component, np.atleast_1d(np.asarray(elements, float)), np.ones(1), np.ones(1), expert=False, gemm=False
    )
