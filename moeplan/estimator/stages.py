"""The pipeline's structure: what each stage holds and how many of its activations are alive at its peak.

Layers fall into *parts* (see :func:`parts`); everything that a stage costs is a sum over parts of a count times the
cost of one. The structure depends on few columns, so it is worked out once per distinct pipeline and gathered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeplan.errors import PlanError
from moeplan.estimator.in_flight import live_chunks, off_mixtures, undominated
from moeplan.estimator.layout import Chunk, even_chunks, layout_chunks
from moeplan.estimator.table import Codes, Table
from moeplan.model.architecture import Architecture, Layer
from moeplan.operators.base import Array

_COLUMNS = (
    "pp",
    "vpp",
    "pipeline_layout",
    "schedule",
    "mtp_layers",
    "overlap_ep",
    "_block_layers",
    "_live_micro_batches",
)


def parts(architecture: Architecture) -> tuple[Layer, ...]:
    """The building blocks of every stage: each kind of decoder layer, multi-token prediction, embedding, head.

    The order is fixed: decoder kinds first, then the multi-token-prediction layer where the model has one, then the
    embedding, and last the final norm with the head and the loss.
    """
    mtp = (architecture.mtp_layer,) if architecture.mtp_layer is not None else ()
    return (
        *architecture.kinds,
        *mtp,
        Layer((architecture.embedding,)),
        Layer((architecture.final_norm, architecture.head)),
    )


def micro_batches(table: Table) -> Array:
    """Micro batches per step and data-parallel rank, of shape (rows,)."""
    data_parallel = table["gpus"] / (table["tp"] * table["pp"] * table["cp"])
    return table["global_batch_size"] / (table["micro_batch_size"] * data_parallel)


@dataclass(frozen=True)
class Structure:
    """Every distinct pipeline of a table, padded to the same number of *moments*.

    A moment is a stage together with one set of activations alive on it; stages of an interleaved pipeline may have
    several moments, none of which dominates another. Padding repeats the last moment, so that maxima are unchanged.

    Attributes:
        parts: What the last axis counts.
        table: What tells the pipelines apart, a row each: the columns of a pipeline, and in
            ``_block_layers`` the layers of each virtual stage under block recomputation.
        index: For each row of the table, its pipeline; shape (rows,).
        stage: Stage of each moment; shape (pipelines, moments).
        counts: Layers of each part that the stage holds; shape (pipelines, moments, parts).
        runs: Layers of each part that one micro batch runs on the stage: as ``counts``, but every depth of
            multi-token prediction runs the head and the loss once more; same shape.
        live: Layer activations alive at the moment, micro batches multiplied in; same shape.
        recomputed_runs: Of ``runs``, those under block recompute (the first N layers of each virtual stage).
        recomputed_live: Of ``live``, those under block recompute.
        embedding_copies: Embedding tables held beside the one that ``counts`` counts: by a tied head or by multi-token
            prediction on another stage than the embedding's; shape (pipelines, moments).
        chunk_layers: Decoder and multi-token-prediction layers of the stage's largest virtual stage; shape
            (pipelines, moments).
        moments: Valid moments of each pipeline, the rest is padding; shape (pipelines,).
    """

    parts: tuple[Layer, ...]
    table: Table
    index: Codes
    stage: NDArray[np.int64]
    counts: Array
    runs: Array
    live: Array
    recomputed_runs: Array
    recomputed_live: Array
    embedding_copies: Array
    chunk_layers: Array
    moments: NDArray[np.int64]


def structure(architecture: Architecture, table: Table, all_stages: bool = False) -> Structure:
    """Work out the pipelines of a table.

    Args:
        architecture: The model.
        table: Candidates, with the columns of ``columns.DEFAULTS``.
        all_stages: Keep every stage; otherwise a stage whose counts and live activations are all at most another's is
            left out, since it can bind neither memory nor time.

    Raises:
        PlanError: A candidate's layers do not split over its pipeline.
    """
    derived = {
        "_live_micro_batches": table.derived(_LIVE_COLUMNS, _live_micro_batches),
        "_block_layers": table.derived(_BLOCK_COLUMNS, _block_layers),
    }
    distinct, index = table.with_columns(derived).distinct(_COLUMNS)
    pipelines = [_remembered(architecture, distinct.row(row), all_stages) for row in range(distinct.rows)]
    moments = np.array([len(pipeline.stage) for pipeline in pipelines], np.int64)
    width = int(np.max(moments)) if pipelines else 0
    gather = [np.minimum(np.arange(width), len(pipeline.stage) - 1) for pipeline in pipelines]

    def stack(name: str) -> Array:
        return np.stack([getattr(pipeline, name)[pick] for pipeline, pick in zip(pipelines, gather, strict=True)])

    return Structure(
        parts=parts(architecture),
        table=distinct,
        index=index,
        stage=stack("stage").astype(np.int64),
        counts=stack("counts"),
        runs=stack("runs"),
        live=stack("live"),
        recomputed_runs=stack("recomputed_runs"),
        recomputed_live=stack("recomputed_live"),
        embedding_copies=stack("embedding_copies"),
        chunk_layers=stack("chunk_layers"),
        moments=moments,
    )


@dataclass(frozen=True)
class _Pipeline:
    stage: Array  # (moments,)
    counts: Array  # (moments, parts)
    runs: Array  # (moments, parts)
    live: Array  # (moments, parts)
    recomputed_runs: Array  # (moments, parts)
    recomputed_live: Array  # (moments, parts)
    embedding_copies: Array  # (moments,)
    chunk_layers: Array  # (moments,)

    def take(self, pick: NDArray[np.int64]) -> _Pipeline:
        return _Pipeline(*(getattr(self, name)[pick] for name in self.__dataclass_fields__))

    def bounds(self) -> Array:
        """Everything that a stage's cost grows with; shape (moments, features)."""
        return np.concatenate(
            [
                self.counts,
                self.runs,
                self.runs - self.recomputed_runs,
                self.live,
                self.live - self.recomputed_live,
                self.embedding_copies[:, None],
                self.chunk_layers[:, None],
            ],
            axis=1,
        )


_LIVE_COLUMNS = (
    "gpus",
    "tp",
    "pp",
    "cp",
    "vpp",
    "global_batch_size",
    "micro_batch_size",
    "schedule",
    "pipeline_layout",
)
_BLOCK_COLUMNS = ("recompute", "recompute_method", "recompute_layers")


def _live_micro_batches(table: Table) -> list[int]:
    """Micro batches, capped where more of them keep no more activations alive (so that few pipelines are distinct)."""
    pp, vpp = table["pp"], table["vpp"]
    # An interleaved schedule reaches its steady state within warm-up and one period: fewer than 4 pp micro batches.
    enough = np.where(vpp > 1, 4 * pp, np.where(table.equals("schedule", "dualpipe"), 2 * pp, pp))
    # A layout may have virtual stages that vpp does not tell.
    enough = np.where(~table.equals("pipeline_layout", None), 4 * pp, enough)
    capped = np.maximum(np.minimum(np.floor(micro_batches(table)), enough), 1)
    return [int(count) for count in capped]


def _block_layers(table: Table) -> list[int | None]:
    """Layers of each virtual stage under block recomputation, None under any other or none."""
    found = []
    for row in map(table.row, range(table.rows)):
        block = row["recompute"] == "full" and row["recompute_method"] != "uniform"
        found.append(row["recompute_layers"] if block else None)
    return found


def _remembered(architecture: Architecture, row: dict[str, Any], all_stages: bool) -> _Pipeline:
    """A pipeline, worked out once per model: the chunks of a search meet the same ones again and again."""
    key = ("pipeline", all_stages, *row.values())
    memo = architecture.memo
    if key not in memo:
        memo[key] = _pipeline(architecture, row, all_stages)
    found: _Pipeline = memo[key]
    return found


def _pipeline(architecture: Architecture, row: dict[str, Any], all_stages: bool) -> _Pipeline:
    pp = int(row["pp"])
    mtp = trained_mtp_layers(architecture, row["mtp_layers"])
    chunks = split(architecture, pp, int(row["vpp"]), row["pipeline_layout"], mtp)
    block = row["_block_layers"]
    weights = _chunk_counts(architecture, chunks)
    runs = weights.copy()
    runs[:, -1] *= 1 + mtp
    redone = np.zeros_like(weights) if block is None else _chunk_counts(architecture, chunks, int(block))
    counted = (weights, runs, redone)
    moments = [_Moment(pp, stage, row) for stage in range(pp)]
    if not all_stages and row["schedule"] != "dualpipe":
        # A stage that holds what the one before it holds keeps at most as many micro batches alive.
        holds = [weights[stage::pp].tobytes() + redone[stage::pp].tobytes() for stage in range(pp)]
        moments = [m for m in moments if not m.stage or holds[m.stage] != holds[m.stage - 1]]
    found = [_stage(architecture, chunks, counted, moment) for moment in moments]
    joined = _Pipeline(
        *(np.concatenate([getattr(item, name) for item in found]) for name in _Pipeline.__dataclass_fields__)
    )
    return joined if all_stages else _undominated(joined)


@dataclass(frozen=True)
class _Moment:
    """Which stage of which schedule."""

    pp: int
    stage: int
    row: dict[str, Any]

    def chunks(self, total: int) -> list[int]:
        """The virtual stages that live on this stage."""
        own = list(range(self.stage, total, self.pp))
        if self.row["schedule"] == "dualpipe":
            # Each rank also holds its mirror stage and runs half of the micro batches in either direction.
            own += list(range(self.pp - 1 - self.stage, total, self.pp))
        return own

    def live(self, virtual: int) -> Array:
        """Micro batches alive per virtual stage of :meth:`chunks`; shape (moments, chunks)."""
        total = int(self.row["_live_micro_batches"])
        if self.row["schedule"] == "dualpipe":
            # Twice the parameters and PP + 1 activations (DeepSeek's DualPipe, README table).
            half = max(total // 2, 1)
            return np.array([[min(self.pp - self.stage, half), min(self.stage + 1, half)]], float)
        return live_chunks(self.pp, self.stage, virtual, total, bool(self.row["overlap_ep"]))


def _stage(
    architecture: Architecture, chunks: list[Chunk], counted: tuple[Array, Array, Array], moment: _Moment
) -> _Pipeline:
    """One stage's moments, none dominating another. ``counted`` is weights, runs and recomputed runs per chunk."""
    own = moment.chunks(len(chunks))
    held = [chunks[position] for position in own]
    weights, runs, redone = (counts[own] for counts in counted)
    live = moment.live(len(chunks) // moment.pp)
    needs_embedding = any((architecture.head.tied and chunk.head) or chunk.mtp for chunk in held)
    saved, redone_saved = live @ runs, live @ redone
    if len(live) > 1:
        # The moments of one stage differ in live activations only, whose bytes add up: one that lies below a mixture of
        # two others can never be the largest.
        bounds = np.concatenate([saved, saved - redone_saved], axis=1)
        kept = undominated(bounds)
        kept = kept[off_mixtures(bounds[kept])]
        saved, redone_saved = saved[kept], redone_saved[kept]
    moments = len(saved)
    return _Pipeline(
        stage=np.full(moments, float(moment.stage)),
        counts=weights.sum(axis=0)[None].repeat(moments, axis=0),
        runs=runs.sum(axis=0)[None].repeat(moments, axis=0),
        live=saved,
        recomputed_runs=redone.sum(axis=0)[None].repeat(moments, axis=0),
        recomputed_live=redone_saved,
        embedding_copies=np.full(moments, float(needs_embedding and not any(chunk.embedding for chunk in held))),
        chunk_layers=np.full(moments, float(max(chunk.layers + chunk.mtp for chunk in held))),
    )


def trained_mtp_layers(architecture: Architecture, declared: int | None) -> int:
    """Multi-token-prediction layers that a candidate trains: its own choice, or the model's number."""
    if architecture.mtp_layer is None:
        return 0
    return architecture.mtp_layers if declared is None else int(declared)


def split(architecture: Architecture, pp: int, vpp: int, layout: str | None, mtp_layers: int) -> list[Chunk]:
    """The virtual stages of a plan, in order of execution.

    Raises:
        PlanError: The layers do not split that way; the message says what would.
    """
    layers = len(architecture.layers)
    if layout:
        return layout_chunks(layout, pp, layers, mtp_layers)
    chunks = even_chunks(pp, vpp, layers, mtp_layers)
    if chunks is None:
        dividing = sorted({d for d in range(1, layers + 3) if layers % d == 0 or (layers + 2) % d == 0})
        raise PlanError(
            "parallel.pp",
            f"{layers} layers do not split over pp*vpp = {pp * vpp} (nor do {layers + 2} with embedding and loss)",
            f"use pp*vpp from {', '.join(map(str, dividing))}, or give parallel.pipeline_layout",
        )
    return chunks


def _chunk_counts(architecture: Architecture, chunks: list[Chunk], only_first: int | None = None) -> Array:
    """Layers of each part in each virtual stage; with ``only_first``, only that many of its first decoder layers.

    Returns:
        Array of shape (virtual stages, parts).
    """
    kinds = len(architecture.kinds)
    has_mtp = int(architecture.mtp_layer is not None)
    counts = np.zeros((len(chunks), kinds + has_mtp + 2))
    for position, chunk in enumerate(chunks):
        layers = chunk.layers if only_first is None else min(only_first, chunk.layers)
        for kind in architecture.layer_kinds[chunk.first : chunk.first + layers]:
            counts[position, kind] += 1
        if only_first is None:
            if has_mtp:
                counts[position, kinds] = chunk.mtp
            counts[position, -2:] = chunk.embedding, chunk.head
    return counts


def _undominated(pipeline: _Pipeline) -> _Pipeline:
    return pipeline.take(undominated(pipeline.bounds()))
