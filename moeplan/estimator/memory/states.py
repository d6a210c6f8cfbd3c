"""Parameters, gradients and optimizer states that one rank holds, and Transformer Engine's dummy weight gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from moeplan.estimator.precision import GRADIENT_BYTES, OPTIMIZER_MOMENTS, STATE_BYTES, precision, weight_copies
from moeplan.estimator.shard import cut_of, of_levels
from moeplan.estimator.stages import Structure
from moeplan.estimator.table import Table
from moeplan.model.architecture import Layer
from moeplan.operators.base import Array, Shard, Weight
from moeplan.operators.embedding import Head, padded_vocabulary

STATE_COLUMNS: tuple[str, ...] = (
    "framework",
    "precision",
    "optimizer",
    "sharding",
    "state_dtype",
    "gradient_dtype",
    "offload_fraction",
)


@dataclass(frozen=True)
class Elements:
    """Parameter elements on a rank, per part of the structure; arrays of shape (candidates, parts).

    Attributes:
        dense: On the attention grid.
        expert: On the expert grid.
        dense_gemm: Of ``dense``, matrices that low-precision GEMMs read.
        dense_other: Of ``dense``, embedding, head and vectors, which Muon leaves to Adam.
        largest: The largest layer's weight, all local experts of a grouped one together.
    """

    dense: Array
    expert: Array
    dense_gemm: Array
    dense_other: Array
    largest: Array


def elements(parts: Sequence[Layer], shard: Shard) -> Elements:
    """Count every part's parameters on one rank."""
    dense, expert, gemm, other, largest = [], [], [], [], []
    zero = np.zeros_like(shard.tp)
    for part in parts:
        weights = part.weights(shard)
        dense.append(sum((w.elements for w in weights if not w.expert), zero))
        expert.append(sum((w.elements for w in weights if w.expert), zero))
        gemm.append(sum((w.elements for w in weights if not w.expert and quantized(w)), zero))
        other.append(sum((w.elements for w in weights if not w.gemm or w.component == "lm_head"), zero))
        # A grouped linear makes the gradients of all its experts at once.
        sizes = [w.elements + zero for w in weights]
        largest.append(np.max(sizes, axis=0) if sizes else zero)
    return Elements(*(np.stack(columns, axis=1) for columns in (dense, expert, gemm, other, largest)))


def quantized(weight: Weight) -> bool:
    """Whether low-precision training quantises a weight: routers, gates, embedding and head stay in 16 bits."""
    return weight.gemm and weight.component not in ("router", "embedding", "lm_head") and "gate" not in weight.name


@dataclass(frozen=True)
class StateBytes:
    """Bytes per parameter element that a rank holds, by what the element is; arrays of shape (rows,).

    ``whole`` figures count for every element, ``shared`` ones are divided by the data-parallel group of the element;
    ``other`` ones are what embedding, head and vectors have beyond the rest (Adam's second moment under Muon).
    """

    parameter_whole: Array
    parameter_shared: Array
    copies: Array
    gradient_whole: Array
    gradient_shared: Array
    optimizer_whole: Array
    optimizer_shared: Array
    other_whole: Array
    other_shared: Array


def state_bytes(table: Table, compute_capability: int = 0) -> StateBytes:
    """Bytes per element under each candidate's precision, optimizer and sharding.

    Megatron-Core and DeepSpeed: 16-bit parameters, a gradient buffer in ``gradient_dtype``, an fp32 master copy and the
    moments (18 bytes with fp32 gradients; 16 with 16-bit ones, Rajbhandari et al. 2020). PyTorch FSDP2 under a mixed
    precision policy: fp32 parameters that are their own master, fp32 gradients, and 16-bit copies only while gathered.

    Args:
        table: Rows with :data:`STATE_COLUMNS`.
        compute_capability: The GPU's, times ten.
    """
    stage = table["sharding"]
    native = of_levels(table, "precision", lambda name: precision(name).parameter)
    full = native >= 4.0
    fsdp = of_levels(table, "framework", lambda name: float(name == "fsdp2")) > 0
    parameter = np.where(fsdp, 4.0, native)
    gradient = np.where(
        fsdp | full, 4.0, of_levels(table, "gradient_dtype", lambda name: GRADIENT_BYTES.get(name, 4.0))
    )
    moment = of_levels(table, "state_dtype", lambda name: STATE_BYTES.get(name, 4.0))
    count = of_levels(table, "optimizer", lambda name: OPTIMIZER_MOMENTS.get(name, 2.0))
    # A precision-aware optimizer keeps of the master only the 16 bits that the bf16 parameter lacks
    # (Megatron-LM optimizer_config.py, store_param_remainders).
    remainder = of_levels(table, "precision", lambda name: float(name != "fp16")) > 0
    master = np.where(fsdp | full, 0.0, np.where((moment < 4.0) & remainder, 2.0, 4.0))
    resident = 1.0 - table["offload_fraction"]
    states = (master + count * moment) * resident
    muon = of_levels(table, "optimizer", lambda name: float(name == "muon"))
    second = muon * moment * resident
    # FSDP2 keeps the gathered 16-bit copy between forward and backward unless it reshards (stage 3).
    kept = np.where(fsdp & (stage < 3) & ~full, 2.0, 0.0)
    copies = of_levels(table, "precision", lambda name: weight_copies(name, compute_capability))
    megatron = of_levels(table, "framework", lambda name: float(name == "megatron")) > 0
    shard_parameters = np.where(fsdp, stage >= 2, stage >= 3)
    shard_gradients, shard_states = stage >= 2, stage >= 1
    return StateBytes(
        parameter_whole=np.where(shard_parameters, kept, parameter),
        parameter_shared=np.where(shard_parameters, parameter, 0.0),
        # Fully sharded parameters are quantised when they are gathered, a unit at a time.
        copies=np.where(megatron & (stage < 3), copies, 0.0),
        gradient_whole=np.where(shard_gradients, 0.0, gradient),
        gradient_shared=np.where(shard_gradients, gradient, 0.0),
        optimizer_whole=np.where(shard_states, 0.0, states),
        optimizer_shared=np.where(shard_states, states, 0.0),
        other_whole=np.where(shard_states, 0.0, second),
        other_shared=np.where(shard_states, second, 0.0),
    )


def dummy_gradients(table: Table, parts: Sequence[Layer], present: NDArray[np.bool_]) -> Array:
    """Transformer Engine's dummy weight gradients, in bytes.

    With fused gradient accumulation the weight gradient goes straight into the main buffer, and autograd is handed a
    cached tensor instead: one per distinct weight shape in the process (``get_dummy_wgrad`` in Transformer Engine
    ``pytorch/module/base.py``; grouped linears since 2.10; for the head Megatron-Core's ``tensor_parallel/layers.py``).

    Args:
        table: Rows with :data:`CUT_COLUMNS` and ``fused_gradient_accumulation``.
        parts: The structure's parts.
        present: Which parts a rank holds, one row per kind of stage; shape (stages, parts).

    Returns:
        Shape (rows, stages).
    """
    shard = cut_of(table)
    shapes = [(index, *shape) for index, part in enumerate(parts) for shape in _linear_shapes(part, shard)]
    part_of = [index for index, _, _ in shapes]
    rows = np.stack([np.broadcast_to(count, table.rows) for _, count, _ in shapes])
    columns = np.stack([np.broadcast_to(count, table.rows) for _, _, count in shapes])
    total = np.zeros((present.shape[0], table.rows))
    for position, here in enumerate(present.T[part_of]):
        # Earlier shapes that are the same, on stages that hold them, have made this one's tensor already.
        same = (rows[:position] == rows[position]) & (columns[:position] == columns[position])
        made = present.T[part_of[:position]].T.astype(np.float64) @ same > 0
        total += (here[:, None] & ~made) * (rows[position] * columns[position])
    megatron = of_levels(table, "framework", lambda name: float(name == "megatron"))
    found: Array = total * (shard.value("parameter_bytes") * megatron * table["fused_gradient_accumulation"])
    return found.T


def _linear_shapes(part: Layer, shard: Shard) -> list[tuple[Array, Array]]:
    """The weight shapes of a part's linear layers; a tied head is the embedding's shape."""
    shapes = [
        (weight.rows, weight.columns)
        for weight in part.weights(shard)
        if quantized(weight) or (weight.gemm and weight.component == "lm_head")
    ]
    for operator in part.operators:
        if isinstance(operator, Head) and operator.tied:
            rows = padded_vocabulary(operator.vocabulary, shard) / shard.tp
            shapes.append((rows, np.full(1, float(operator.hidden))))
    return shapes


def data_parallel(table: Table) -> tuple[Array, Array]:
    """Ranks that share dense states (``dp * cp``) and expert states (expert data parallel), of shape (rows,)."""
    per_stage = table["gpus"] / table["pp"]
    return per_stage / table["tp"], per_stage / (table["ep"] * table["etp"])


class Held:
    """Parameter elements per moment, see :class:`Elements`; arrays of shape (rows, moments), counted where asked for.

    Args:
        table: Rows with :data:`CUT_COLUMNS` and ``_pipeline``, the row of the structure.
        structure: The pipelines.
    """

    def __init__(self, table: Table, structure: Structure) -> None:
        self._elements = elements(structure.parts, cut_of(table))
        self._pipeline = table["_pipeline"].astype(np.int64)
        self._counts = structure.counts[self._pipeline]
        # The head's copy of a tied embedding, or multi-token prediction's, where the embedding lives on another stage.
        embedding = self._elements.dense[:, len(structure.parts) - 2]
        self._copies = structure.embedding_copies[self._pipeline] * embedding[:, None]

    def _held(self, per_part: Array) -> Array:
        total: Array = np.einsum("rmp,rp->rm", self._counts, per_part)
        return total

    @cached_property
    def dense(self) -> Array:
        """On the attention grid."""
        return self._held(self._elements.dense) + self._copies

    @cached_property
    def expert(self) -> Array:
        """On the expert grid."""
        return self._held(self._elements.expert)

    @cached_property
    def gemm(self) -> Array:
        """Of ``dense``, matrices that low-precision GEMMs read."""
        return self._held(self._elements.dense_gemm)

    @cached_property
    def other(self) -> Array:
        """Of ``dense``, embedding, head and vectors."""
        return self._held(self._elements.dense_other) + self._copies

    @cached_property
    def largest(self) -> Array:
        """The largest layer's weight."""
        found: Array = ((self._counts > 0) * self._elements.largest[:, None, :]).max(axis=2)
        return found
