"""The document of ``moeplan model``: parameters by component."""

from __future__ import annotations

from typing import Any

from moeplan.model.architecture import Architecture


def describe(architecture: Architecture) -> dict[str, Any]:
    """Parameters of a model: total, active per token, by component, and multi-token prediction apart.

    Returns:
        A document of plain values: counts are integers.
    """
    experts, top_k = architecture.routing or (0, 0)
    return {
        "schema_version": 1,
        "model": architecture.name,
        "family": architecture.family,
        "total": architecture.total_parameters,
        "active": architecture.active_parameters(),
        "components": dict(architecture.components),
        "mtp": architecture.mtp_parameters,
        "layers": len(architecture.layers),
        "hidden_size": architecture.hidden,
        "vocabulary": architecture.embedding.vocabulary,
        "experts": experts,
        "top_k": int(top_k) if top_k == int(top_k) else top_k,
        "mtp_layers": architecture.mtp_layers,
        "max_sequence_length": architecture.max_sequence_length,
    }
