"""The sizing calculator as tables."""

from __future__ import annotations

from rich.console import Console

from moeplan.answers.sizing import SizingDocument
from moeplan.report.tables import count, gib, heading, share, table


def show_sizing(document: SizingDocument, console: Console) -> None:
    """The parts of one configuration, and the comparison where several were asked."""
    result = document.result
    memory = result.memory
    heading(
        console,
        f"{result.experts} experts of {count(result.expert_parameters)}, {count(result.shared_parameters)} shared: "
        f"{count(result.parameters)} parameters, {count(result.active_parameters)} active; {result.dtype}, "
        f"{result.optimizer}, batch {result.batch_size:,}, active ratio {result.active_ratio:g}",
    )
    listing = table(("part", "GiB", "share"))
    for name, value in memory:
        if name != "total_gib":
            listing.add_row(name.removesuffix("_gib"), gib(value), share(value, memory.total_gib))
    listing.add_section()
    listing.add_row("total", gib(memory.total_gib), "")
    console.print(listing)
    console.print(
        f"parameters {result.parameters_gb:,.1f} GB = {memory.parameters_gib:,.1f} GiB; {result.tokens_per_expert:g} "
        f"tokens per expert, {result.activation_bytes_per_expert:,.0f} bytes of activations per expert"
    )
    if result.gpus_needed is not None:
        console.print(f"at least {result.gpus_needed} GPUs to hold it, spread evenly")
    if len(document.results) > 1:
        compared = table(
            ("batch", "active ratio", "tokens/expert", "activations GiB", "buffers GiB", "total GiB"),
            left=0,
        )
        for other in document.results:
            compared.add_row(
                f"{other.batch_size:,}",
                f"{other.active_ratio:g}",
                f"{other.tokens_per_expert:g}",
                f"{other.memory.activations_gib:,.4f}",
                gib(other.memory.buffers_gib),
                gib(other.memory.total_gib),
            )
        console.print(compared)
    for note in document.notes:
        console.print(f"note: {note}", style="dim")
