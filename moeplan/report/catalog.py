"""The catalog as tables: one model, all models, all GPUs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from moeplan.hardware import GPU
from moeplan.report.tables import count, heading, share, table


def show_model(document: Mapping[str, Any], console: Console) -> None:
    """Parameters of one model by component."""
    total = document["total"]
    heading(console, f"{document['model']} ({document['family']})")
    listing = table(("component", "parameters", "share"))
    for name, parameters in document["components"].items():
        if parameters:
            listing.add_row(name.replace("_", " "), f"{parameters:,}", share(parameters, total))
    listing.add_section()
    listing.add_row("total", f"{total:,}", "")
    listing.add_row("active per token", f"{document['active']:,}", share(document["active"], total))
    if document["mtp"]:
        listing.add_row("multi-token prediction, apart", f"{document['mtp']:,}", "")
    console.print(listing)
    facts = [f"{document['layers']} layers", f"hidden size {document['hidden_size']:,}"]
    if document["vocabulary"]:
        facts.append(f"vocabulary {document['vocabulary']:,}")
    if document["experts"]:
        facts.append(f"{document['top_k']} of {document['experts']} experts per token")
    console.print(", ".join(facts))


def show_models(documents: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Every model of the catalog."""
    listing = table(("name", "family", "parameters", "active", "layers", "experts", "top k"), left=2)
    for document in documents:
        listing.add_row(
            document["name"],
            document["family"],
            count(document["total"]),
            count(document["active"]),
            str(document["layers"]),
            str(document["experts"] or "-"),
            str(document["top_k"] or "-"),
        )
    console.print(listing)


def show_gpus(gpus: Sequence[GPU], console: Console) -> None:
    """Every GPU of the catalog."""
    heading(console, "GPUs (dense peaks; links per GPU and direction)")
    listing = table(
        ("name", "generation", "usable GiB", "bf16 TFLOPS", "fp8 TFLOPS", "HBM GB/s", "link GB/s", "domain", "NIC GB/s",
         "USD/h"),
        left=2,
    )  # fmt: skip
    for gpu in gpus:
        peaks, price = gpu.dense_peak_tflops, gpu.usd_per_hour
        listing.add_row(
            gpu.name,
            gpu.generation,
            f"{gpu.usable_gib:.2f}",
            _figure(peaks.bf16 or peaks.fp16),
            _figure(peaks.fp8),
            f"{gpu.hbm_gb_per_s:,.0f}",
            _figure(gpu.nvlink_gb_per_s),
            str(gpu.nvlink_domain),
            f"{gpu.nic_gb_per_s:g}",
            f"{price.low:g}-{price.high:g}" if price is not None else "-",
        )
    console.print(listing)


def _figure(value: float | None) -> str:
    return f"{value:,.4g}" if value else "-"
