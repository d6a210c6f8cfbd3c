"""Pipeline stages, interleaving, layouts and schedules."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from moeplan.errors import PlanError
from moeplan.estimator.layout import even_chunks, layout_chunks, parse_layout
from moeplan.operators.base import Array
from moeplan.search.facts import Facts
from moeplan.search.pipelines import Costs, balanced_layout
from moeplan.search.rules.base import Finding, Mask, Row, View, rule

_LAYOUT_SOURCE = "Megatron-Core pipeline_parallel_layer_layout.py"


def virtual_stages(layout: str) -> int:
    """Stages that a layout string names, 0 when it cannot be read (another rule says so)."""
    try:
        return len(parse_layout(layout))
    except PlanError:
        return 0


def chunks_per_rank(view: View) -> Array:
    """Virtual stages per pipeline rank: what a layout names where there is one, else ``vpp``."""
    stages = view.value("pipeline_layout", lambda layout: virtual_stages(layout) if layout else 0)
    return np.where(stages > 0, stages / view["pp"], view["vpp"])


def trained_mtp(facts: Facts, declared: int | None) -> int:
    """Multi-token-prediction layers that a row trains."""
    return facts.mtp_layers if declared is None else declared


def _layout_problem(facts: Facts, row: Row) -> PlanError | None:
    try:
        layout_chunks(row["pipeline_layout"], int(row["pp"]), facts.layers, trained_mtp(facts, row["mtp_layers"]))
    except PlanError as error:
        return error
    return None


def _every_row(view: View, broken: Callable[[Row], bool]) -> Mask:
    """Evaluate a Python predicate row by row; the view holds distinct combinations only, a few hundred."""
    return np.array([broken(view.table.row(index)) for index in range(view.table.rows)], np.bool_)


def _offered_layout(facts: Facts, row: Row) -> str:
    """A layout for the stages that were asked for, every layer and the loss taken as equally dear."""
    mtp = trained_mtp(facts, row["mtp_layers"])
    costs = Costs((1.0,) * facts.layers, embedding=0.0, mtp=2.0, head=1.0)
    layout = balanced_layout(costs, int(row["pp"]), int(row["vpp"]), mtp)
    return "give parallel.pipeline_layout" + (f", such as {layout!r}" if layout else "")


@rule(
    "pp vpp pipeline_layout",
    "pp vpp",
    "Megatron-LM arguments.py, transformer_block.py: num_layers (+ embedding + loss) % (pp * vpp) == 0",
)
def layers_split_evenly(facts: Facts, view: View) -> Finding:
    """Without a layout, num_layers or num_layers + 2 (embedding and loss counted) divides by pp*vpp."""
    stages = view["pp"] * view["vpp"]
    uneven = (facts.layers % stages != 0) & ((facts.layers + 2) % stages != 0)

    def remedy(row: Row) -> str:
        legal = [n for n in range(1, facts.layers + 3) if even_chunks(n, 1, facts.layers, 0) is not None]
        return f"use pp*vpp from {', '.join(map(str, legal))}, or {_offered_layout(facts, row)}"

    return Finding(
        view.equals("pipeline_layout", None) & uneven,
        lambda row: (
            f"neither {facts.layers} layers nor {facts.layers + 2} (embedding and loss counted) divide over "
            f"pp*vpp = {row['pp'] * row['vpp']}"
        ),
        remedy,
    )


@rule("pp pipeline_layout mtp_layers", "pipeline_layout", _LAYOUT_SOURCE)
def layout_describes_model(facts: Facts, view: View) -> Finding:
    """A layout holds one E, every layer, every MTP layer and one L, in stages that pp divides."""
    return Finding(
        _every_row(view, lambda row: row["pipeline_layout"] is not None and _layout_problem(facts, row) is not None),
        lambda row: str(getattr(_layout_problem(facts, row), "problem", "")),
        lambda row: str(getattr(_layout_problem(facts, row), "remedy", "")) or "see Megatron's pipeline layout strings",
    )


@rule("pp vpp pipeline_layout", "vpp", f"{_LAYOUT_SOURCE}: vpp = stages / pp; arguments.py: vpp or a layout, not both")
def layout_matches_vpp(facts: Facts, view: View) -> Finding:
    """vpp beside a layout repeats what the layout says (or is left at 1)."""
    chunks = chunks_per_rank(view)
    return Finding(
        ~view.equals("pipeline_layout", None) & (view["vpp"] != 1) & (chunks != view["vpp"]),
        lambda row: (
            f"the layout names {virtual_stages(row['pipeline_layout'])} stages for pp={row['pp']}, not vpp={row['vpp']}"
        ),
        lambda row: f"use vpp={virtual_stages(row['pipeline_layout']) // row['pp']}, or leave it out",
    )


@rule("pp pipeline_layout mtp_layers", "pipeline_layout", f"{_LAYOUT_SOURCE}: validate_layer_layout")
def mtp_in_last_virtual_stage(facts: Facts, view: View) -> Finding:
    """A layout's MTP layers lie in the last virtual stage of their rank, after every decoder layer."""

    def misplaced(row: Row) -> bool:
        if row["pipeline_layout"] is None or not virtual_stages(row["pipeline_layout"]):
            return False
        stages = parse_layout(row["pipeline_layout"])
        everything = "".join(stages)
        virtual = len(stages) // row["pp"]
        place = next((index for index, stage in enumerate(stages) if "m" in stage), None)
        if place is None:
            return False
        return place // row["pp"] != virtual - 1 or everything.find("m") < everything.rfind("t")

    return Finding(
        _every_row(view, misplaced),
        lambda row: "multi-token prediction must lie in the last virtual stage of its rank, after every decoder layer",
        lambda row: "move every m behind the last t, into one of the last pp stages",
    )


@rule("pp vpp pipeline_layout", "vpp pp", "Megatron-Core parallel_state.py: virtual pipeline needs pp > 1")
def vpp_needs_pp(facts: Facts, view: View) -> Finding:
    """Interleaving needs a pipeline."""
    return Finding(
        (chunks_per_rank(view) > 1) & (view["pp"] == 1),
        lambda row: "virtual pipeline stages without pipeline parallelism have nothing to interleave",
        lambda row: "use vpp=1, or pp of 2 or more",
    )


@rule(
    "gpus tp pp cp vpp pipeline_layout micro_batch_size global_batch_size",
    "global_batch_size micro_batch_size vpp",
    "Megatron-Core schedules.py: interleaving needs micro_batches >= pp, and a remainder of 0 or at least pp",
)
def interleaving_fills_pipeline(facts: Facts, view: View) -> Finding:
    """Interleaving deals micro batches in groups of pp."""
    count = view.micro_batches
    return Finding(
        (chunks_per_rank(view) > 1) & ((count < view["pp"]) | (count % view["pp"] != 0)),
        lambda row: (
            f"interleaved stages need a multiple of pp={row['pp']} micro batches, this batch has "
            f"{row['global_batch_size'] * row['tp'] * row['pp'] * row['cp'] / row['micro_batch_size'] / row['gpus']:g}"
        ),
    )


@rule("framework schedule", "schedule", "Megatron-Core schedules.py and DeepSpeed pipe/schedule.py: 1F1B only")
def schedule_exists(facts: Facts, view: View) -> Finding:
    """Zero-bubble and DualPipe schedules live in torch.distributed.pipelining, not in Megatron-Core or DeepSpeed."""
    return Finding(
        ~view.equals("schedule", "1f1b") & view.equals("framework", "megatron", "deepspeed"),
        lambda row: f"{row['framework']} has no {row['schedule']} schedule",
        lambda row: "use schedule: 1f1b, or framework: fsdp2",
    )


@rule(
    "schedule gpus tp pp cp vpp pipeline_layout micro_batch_size global_batch_size",
    "global_batch_size micro_batch_size pp",
    "deepseek-ai/DualPipe dualpipe.py: pp even, micro batches even and >= 2 * pp",
)
def dualpipe_fills_both_ways(facts: Facts, view: View) -> Finding:
    """DualPipe feeds an even pipeline from both ends."""
    count = view.micro_batches
    short = (view["pp"] % 2 != 0) | (count % 2 != 0) | (count < 2 * view["pp"]) | (chunks_per_rank(view) != 1)
    return Finding(
        view.equals("schedule", "dualpipe") & short,
        lambda row: "DualPipe needs an even pp, vpp=1 and an even number of at least 2*pp micro batches",
    )
