"""Parameter counts against transformers' own classes and against megatron-core's ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moeplan.model import load_model
from moeplan.model.architecture import Architecture, Layer
from moeplan.operators.base import Shard

REFERENCE = Path(__file__).parent / "reference"
CASES = json.loads((REFERENCE / "parameters.json").read_text())["cases"]
RANKS = json.loads((REFERENCE / "parameters_per_rank.json").read_text())["cases"]
# The reference keeps two sorts apart that the report folds into one.
FOLDED = {"norms_in_attn": "norms", "shared_expert_gate": "shared_experts"}


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
@pytest.mark.parametrize("from_catalog", [True, False], ids=["catalog", "config"])
def test_counts_match_transformers(case: dict[str, Any], from_catalog: bool) -> None:
    architecture = load_model(case["id"] if from_catalog else case["config"])
    expected: dict[str, int] = {}
    for component, count in case["breakdown"].items():
        name = FOLDED.get(component, component)
        expected[name] = expected.get(name, 0) + count
    assert {name: count for name, count in architecture.components.items() if count} == expected
    assert architecture.total_parameters == case["total"]
    assert architecture.active_parameters() == case["active"]


def _rank(architecture: Architecture, parallel: dict[str, int], stage: int) -> tuple[int, int]:
    """All parameters and expert parameters on a rank of one pipeline stage, layers split evenly."""
    degree = {name: np.full(1, float(parallel.get(name, 1))) for name in ("tp", "cp", "ep", "etp")}
    shard = Shard(**degree, micro_batch_size=np.ones(1), sequence_length=np.ones(1), values={})
    pp = parallel.get("pp", 1)
    each = len(architecture.layers) // pp
    parts = list(architecture.layers[stage * each : (stage + 1) * each])
    if stage == 0:
        parts.append(Layer((architecture.embedding,)))
    if stage == pp - 1:
        parts.append(Layer((architecture.final_norm, architecture.head)))
    weights = [weight for part in parts for weight in part.weights(shard)]
    total = sum(float(weight.elements[0]) for weight in weights)
    return round(total), round(sum(float(weight.elements[0]) for weight in weights if weight.expert))


@pytest.mark.parametrize("case", RANKS, ids=[case["case"] for case in RANKS])
def test_ranks_match_megatron_core(case: dict[str, Any]) -> None:
    name = case["case"].split("|")[0].replace("llama3-8b", "llama-3-8b")
    architecture = load_model(name)
    for stage in case["stages"]:
        assert _rank(architecture, case["parallel"], stage["stage"]) == (stage["params"], stage["expert_params"])


@pytest.mark.parametrize(
    ("name", "checkpoint", "correction_biases"),
    [("deepseek-v3", 684_489_845_504, 256), ("glm-4.5-air", 110_468_824_832, 128)],
)
def test_hub_checkpoints_are_main_plus_prediction_layers(name: str, checkpoint: int, correction_biases: int) -> None:
    """The published checkpoints: our main and prediction layers, copies of embedding and head, and the bias buffers."""
    architecture = load_model(name)
    copies = architecture.components["embedding"] + architecture.components["lm_head"]
    moe_layers = sum(layer.moe is not None for layer in architecture.layers) + 1
    buffers = correction_biases * moe_layers
    assert architecture.total_parameters + architecture.mtp_parameters + copies + buffers == checkpoint
