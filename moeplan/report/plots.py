"""Plots of a search as SVG text; matplotlib is an optional extra and imported here only."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from moeplan.answers.documents import SearchDocument
from moeplan.report.estimate import degrees

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TERMS = ("parameters", "gradients", "optimizer", "activations", "buffers", "overhead")


def pareto_plot(answer: SearchDocument) -> str:
    """Memory needed against tokens/s: the Pareto front, the best plans, what the GPU holds."""
    figure, axes = _figure(8, 5)
    for candidates, label, style in (
        (answer.pareto, "Pareto front", {"marker": "o", "linestyle": "-"}),
        (answer.top, "best of each layout", {"marker": "x", "linestyle": ""}),
    ):
        memory = [one.estimate.memory.usable_gib - one.estimate.memory.headroom_gib for one in candidates]
        speed = [one.estimate.throughput.tokens_per_s for one in candidates]
        axes.plot(memory, speed, label=label, **style)
    if answer.best is not None:
        axes.axvline(answer.best.estimate.memory.usable_gib, color="gray", linestyle="--", label="usable")
    axes.set_xlabel("memory needed on the fullest GPU, GiB")
    axes.set_ylabel("tokens/s")
    axes.set_ylim(bottom=0)
    axes.legend()
    axes.grid(alpha=0.3)
    return _svg(figure)


def memory_plot(answer: SearchDocument) -> str:
    """What fills the fullest stage of each of the best plans."""
    figure, axes = _figure(10, 5)
    fullest = [
        max(one.estimate.memory.stages, key=lambda stage: stage.peak_reserved_gib + stage.overhead_gib)
        for one in answer.top
    ]
    places = range(len(fullest))
    bottom = [0.0] * len(fullest)
    for term in _TERMS:
        heights = [getattr(stage, f"{term}_gib") for stage in fullest]
        axes.bar(places, heights, bottom=bottom, label=term)
        bottom = [below + height for below, height in zip(bottom, heights, strict=True)]
    # The allocator holds more than is in use: what it reserves on top.
    axes.bar(
        places,
        [stage.peak_reserved_gib - stage.peak_allocated_gib for stage in fullest],
        bottom=bottom,
        label="reserved, not in use",
        color="lightgray",
    )
    if answer.best is not None:
        axes.axhline(answer.best.estimate.memory.usable_gib, color="gray", linestyle="--", label="usable")
    axes.set_xticks(list(places), [degrees(one.plan).replace(", ", "\n") for one in answer.top], fontsize=7)
    axes.set_ylabel("GiB on the fullest stage")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return _svg(figure)


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    """A figure that no window system knows of."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _svg(figure: Figure) -> str:
    """The figure as SVG: the same bytes for the same answer."""
    import matplotlib

    text = io.StringIO()
    # Neither the date nor random identifiers: the same search writes the same file.
    with matplotlib.rc_context({"svg.hashsalt": "moeplan", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
