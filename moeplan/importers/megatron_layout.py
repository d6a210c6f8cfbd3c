"""Megatron-LM's ways of cutting a model into pipeline stages, as a plan's ``vpp`` and ``pipeline_layout``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moeplan.errors import PlanError
from moeplan.importers.megatron_flags import Flags


def pipeline(flags: Flags, pp: int, layers: int, mtp: int) -> dict[str, Any]:
    """``vpp``, and ``pipeline_layout`` where the split is not the even one.

    Raises:
        PlanError: The split does not fit, in words close to Megatron's own.
    """
    layout = flags.text("pipeline-model-parallel-layout")
    first = flags.integer("decoder-first-pipeline-num-layers")
    last = flags.integer("decoder-last-pipeline-num-layers")
    embedding = flags.has("account-for-embedding-in-pipeline-split")
    loss = flags.has("account-for-loss-in-pipeline-split")
    per_chunk = flags.integer("num-layers-per-virtual-pipeline-stage")
    virtual = flags.integer("num-virtual-stages-per-pipeline-rank")
    if sum(value is not None for value in (layout, per_chunk, virtual)) > 1:
        raise PlanError(
            flags.where,
            "more than one of --pipeline-model-parallel-layout, --num-layers-per-virtual-pipeline-stage and "
            "--num-virtual-stages-per-pipeline-rank is given",
            "keep one",
        )
    if layout is not None:
        return _given_layout(flags, layout, pp)
    counted = layers + embedding + loss
    if per_chunk is not None:
        if per_chunk < 1 or counted % pp or (counted // pp) % per_chunk:
            raise PlanError(
                flags.where,
                f"--num-layers-per-virtual-pipeline-stage {per_chunk} does not divide {counted} layers on {pp} stages",
                "change one of them",
            )
        virtual = counted // pp // per_chunk
    vpp = virtual or 1
    if vpp < 1 or vpp > layers:
        raise PlanError(flags.where, f"--num-virtual-stages-per-pipeline-rank is {vpp}", "give a whole number above 0")
    found: dict[str, Any] = {"vpp": vpp} if vpp > 1 else {}
    if pp == 1:
        return found
    if first is not None or last is not None:
        counts = _uneven(flags, pp, vpp, layers, first, last)
    else:
        if counted % (pp * vpp):
            raise PlanError(
                flags.where,
                f"{counted} layers do not divide over {pp} stages of {vpp} chunks",
                "change pp, or a layout",
            )
        counts = [counted // (pp * vpp)] * (pp * vpp)
        counts[0] -= embedding
        counts[-1] -= loss
    if counts != _even_counts(pp, vpp, layers):
        found["pipeline_layout"] = layout_string(counts, mtp)
    return found


def layout_string(counts: Sequence[int], mtp: int) -> str:
    """Megatron's layout string for decoder layers per virtual stage, prediction layers with the loss."""
    stages = [f"t*{count}" if count > 2 else "t" * count for count in counts]
    stages[0] = f"E{stages[0]}"
    stages[-1] = f"{stages[-1]}{'m' * mtp}L"
    return "|".join(stages)


def _even_counts(pp: int, vpp: int, layers: int) -> list[int] | None:
    """What a plan without a layout means: even over the layers, else with embedding and loss counted."""
    from moeplan.estimator.layout import even_chunks

    chunks = even_chunks(pp, vpp, layers, 0)
    return None if chunks is None else [chunk.layers for chunk in chunks]


def _uneven(flags: Flags, pp: int, vpp: int, layers: int, first: int | None, last: int | None) -> list[int]:
    """First and last stage as given, the rest even (transformer_config.py, num_layers_in_first_pipeline_stage)."""
    middle_stages = pp - (first is not None) - (last is not None)
    middle = layers - (first or 0) - (last or 0)
    parts = [value for value in (first, last) if value is not None]
    if middle < 0 or (middle_stages and middle % middle_stages) or (not middle_stages and middle):
        raise PlanError(
            flags.where,
            f"{middle} layers do not divide over the {middle_stages} stages between first and last",
            "fix it",
        )
    each = middle // middle_stages if middle_stages else 0
    if any(value % vpp for value in [*parts, each]):
        raise PlanError(flags.where, f"first, last and middle stages must divide into {vpp} chunks", "change vpp")
    stage = [each] * pp
    if first is not None:
        stage[0] = first
    if last is not None:
        stage[-1] = last
    # Chunk c of stage r is virtual stage c * pp + r.
    return [stage[rank] // vpp for _ in range(vpp) for rank in range(pp)]


def _given_layout(flags: Flags, layout: str, pp: int) -> dict[str, Any]:
    from moeplan.estimator.layout import parse_layout

    text = layout.replace("\\", "").strip("'\"")
    try:
        stages = len(parse_layout(text))
    except PlanError as error:
        raise PlanError(f"{flags.where}: --pipeline-model-parallel-layout", error.problem, error.remedy) from None
    if stages % pp:
        raise PlanError(flags.where, f"the layout {text!r} has {stages} stages, which pp={pp} does not divide")
    found: dict[str, Any] = {"pipeline_layout": text}
    if stages > pp:
        found["vpp"] = stages // pp
    return found
