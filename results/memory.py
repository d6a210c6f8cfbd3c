"""Writes ``memory.md``: every measured memory figure, the prediction, and the error (``python results/memory.py``)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from memory_cases import Fit, Integration, Saving, Stage, fits, integration, measured, savings

TARGET = Path(__file__).with_suffix(".md")


def main() -> None:
    """Price every case and write the tables."""
    lines = [
        "# Memory: predicted and measured",
        "",
        "Regenerate with `python results/memory.py`. No figure is fitted per case; the one fitted number of the memory "
        "model is the share that the allocator reserves beyond what is in use.",
        "",
        *_measured(measured()),
        *_integration(integration()),
        *_savings(savings()),
        *_fits(fits()),
    ]
    TARGET.write_text("\n".join(lines) + "\n", encoding="utf-8")


def percent(predicted: float, told: float) -> str:
    """Relative error with its sign."""
    return f"{100 * (predicted / told - 1):+.2f} %"


def _measured(stages: list[Stage]) -> Iterator[str]:
    errors = np.abs([stage.predicted_allocated / stage.allocated - 1 for stage in stages])
    reserved = np.abs([stage.predicted_reserved / stage.reserved - 1 for stage in stages])
    yield "## Megatron-Core on B200, stage by stage (`tests/reference/memory_measured.json`)"
    yield ""
    yield (
        f"Peak allocated: mean error {100 * errors.mean():.2f} %, worst {100 * errors.max():.2f} %. "
        f"Peak reserved: mean {100 * reserved.mean():.2f} %, worst {100 * reserved.max():.2f} %. "
        "The peer is SimuMax v1.2, which was tuned on these runs; it gives the fullest stage only."
    )
    yield ""
    yield "| run | stage | allocated GiB | predicted | error | peer | reserved GiB | predicted | error |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for s in stages:
        peer = "" if s.peer is None else percent(s.peer, s.allocated)
        yield (
            f"| {s.case} | {s.stage} | {s.allocated:.3f} | {s.predicted_allocated:.3f} | "
            f"{percent(s.predicted_allocated, s.allocated)} | {peer} | {s.reserved:.2f} | "
            f"{s.predicted_reserved:.2f} | {percent(s.predicted_reserved, s.reserved)} |"
        )
    yield ""
    yield (
        "One term is known by its size only: MoE layers with shared experts hold one more tensor of the layer's input "
        "under Transformer Engine (42 MB per layer in the DeepSeek-V2 run, 0.26 % of it). SimuMax's account counts it "
        "too; which line of the framework keeps it alive is not known, and Megatron-Core's own layers do not."
    )
    yield ""


def _integration(runs: list[Integration]) -> Iterator[str]:
    told = [run for run in runs if not run.left_out]
    static = np.abs([run.static[1] / run.static[0] - 1 for run in told])
    peak = np.abs([run.peak[1] / run.peak[0] - 1 for run in told])
    yield "## Megatron-LM's continuous integration on H100 (`tests/reference/memory_megatron_ci.json`)"
    yield ""
    yield (
        f"Read from the exact arguments by `moeplan import megatron`; last pipeline stage. {len(told)} of {len(runs)} "
        f"runs are expressible: after the step mean error {100 * static.mean():.1f} %, worst "
        f"{100 * static.max():.1f} %; peak mean {100 * peak.mean():.1f} %, worst {100 * peak.max():.1f} %."
    )
    yield ""
    yield "| run | after step GiB | predicted | error | peak GiB | predicted | error |"
    yield "|---|---|---|---|---|---|---|"
    for run in told:
        yield (
            f"| {run.case} | {run.static[0]:.3f} | {run.static[1]:.3f} | {percent(run.static[1], run.static[0])} | "
            f"{run.peak[0]:.3f} | {run.peak[1]:.3f} | {percent(run.peak[1], run.peak[0])} |"
        )
    yield ""
    yield "Left out, because the plan cannot express them (figures for the curious):"
    yield ""
    yield "| run | after step GiB | predicted | peak GiB | predicted | reason |"
    yield "|---|---|---|---|---|---|"
    for run in runs:
        if run.left_out:
            yield (
                f"| {run.case} | {run.static[0]:.3f} | {run.static[1]:.3f} | {run.peak[0]:.3f} | {run.peak[1]:.3f} | "
                f"{run.left_out} |"
            )
    yield ""


def _savings(measures: list[Saving]) -> Iterator[str]:
    yield "## Published savings: DeepSeek-V3 on 256 GPUs, PP4 VPP4 EP64 (arXiv:2603.07685, table 4)"
    yield ""
    yield "The report names neither stage nor layout, so the prediction is the range over the four stages."
    yield ""
    yield "| measure | published GB | predicted GB |"
    yield "|---|---|---|"
    for measure in measures:
        yield f"| {measure.measure} | {measure.published:.1f} | {measure.least:.1f} to {measure.most:.1f} |"
    yield ""


def _fits(runs: list[Fit]) -> Iterator[str]:
    refused = [run for run in runs if not run.fits]
    yield "## Published runs: does the estimator say that they fit?"
    yield ""
    yield (
        "`throughput_published.json`, `dense_a100.json`, `moe_a100_natural_routing.json` and `parallel_folding.json` "
        "(its micro batch is not published; 1 is assumed) in `tests/reference`."
    )
    yield ""
    yield f"All {len(runs)} ran; {len(runs) - len(refused)} are said to fit. The others, and the missing setting:"
    yield ""
    yield "| run | needed GiB | usable GiB | missing setting |"
    yield "|---|---|---|---|"
    for run in refused:
        yield f"| {run.case} | {run.needed:.1f} | {run.usable:.1f} | {run.missing} |"


if __name__ == "__main__":
    main()
