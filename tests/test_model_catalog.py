"""The catalog: totals as published, names as people write them, and the time that loading takes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moeplan.model import describe, load_model, load_model_config, model_names
from moeplan.model.flops import model_flops_per_token
from moeplan.operators.mixer import Mixer

REFERENCE = Path(__file__).parent / "reference"
HUB = json.loads((REFERENCE / "hub_parameters.json").read_text())["cases"]
CASES = json.loads((REFERENCE / "parameters.json").read_text())["cases"]


@pytest.mark.parametrize("case", HUB, ids=[case["model"] for case in HUB])
def test_totals_are_those_of_the_hub(case: dict[str, Any]) -> None:
    architecture = load_model(case["model"])
    total = architecture.total_parameters + case.get("router_bias_buffers", 0)
    if case.get("prediction_layers"):
        total += architecture.mtp_parameters
    if case.get("embedding_and_head_copies"):
        total += architecture.components["embedding"] + architecture.components["lm_head"]
    assert total == case["hub"]


def test_every_shipped_model_loads_and_describes_itself() -> None:
    assert len(model_names()) >= 40
    for name in model_names():
        document = describe(load_model(name))
        assert document["model"] == name
        assert document["total"] == sum(document["components"].values())
        assert 0 < document["active"] <= document["total"]
        assert json.loads(json.dumps(document)) == document


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_hub_form_and_saved_form_are_one_architecture(case: dict[str, Any]) -> None:
    """Our file is as the hub has it, the reference as transformers 5 saves it: the same layers either way."""
    ours, saved = load_model(case["id"]), load_model(case["config"])
    assert ours.embedding == saved.embedding
    assert ours.components == saved.components
    assert ours.active_parameters() == saved.active_parameters()


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("llama3-8b", "llama-3-8b"),
        ("Qwen/Qwen3-30B-A3B", "qwen3-30b-a3b"),
        ("QWEN3_30B_A3B", "qwen3-30b-a3b"),
        ("Qwen/Qwen3-235B-A22B-Instruct-2507", "qwen3-235b-a22b"),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "mixtral-8x7b"),
        ("meta-llama/Meta-Llama-3-70B", "llama-3-70b"),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", "llama-4-scout-text"),
        ("deepseek-ai/DeepSeek-V3-Base", "deepseek-v3"),
        ("moonshotai/Kimi-K2-Instruct-0905", "kimi-k2"),
        ("openai/gpt-oss-120b", "gpt-oss-120b"),
        ("glm45", "glm-4.5"),
        ("dots1", "dots.llm1"),
    ],
)
def test_names_are_found_as_people_write_them(written: str, meant: str) -> None:
    assert load_model(written).name == meant


def test_loading_is_quick() -> None:
    """The whole of reading a model is a small part of a command's time; the best of several, for a busy machine."""

    def once() -> float:
        start = time.perf_counter()
        load_model("deepseek-v3")
        return time.perf_counter() - start

    assert min(once() for _ in range(10)) < 0.020


# Megatron-LM's own count per token (training.py, num_floating_point_operations), recomputed from its formula and held
# against the TFLOP/s and tokens/s that Megatron-Bridge publishes: GFLOP per token at the sequence length of those runs.
MEGATRON_GFLOP = [
    ("qwen3-30b-a3b", 4096, None, 23.01),
    ("qwen3-235b-a22b", 4096, None, 148.03),
    ("deepseek-v3", 4096, 1, 259.99),
    ("deepseek-v3", 4096, 0, 249.81),
    ("kimi-k2", 4096, 0, 204.48),
    ("llama-3-8b", 8192, None, 51.47),
    ("llama-3-70b", 8192, None, 449.2),
    ("llama-3.1-405b", 8192, None, 2524.0),
    ("gpt-oss-120b", 4096, None, 32.63),
]


@pytest.mark.parametrize(("name", "length", "depths", "gflop"), MEGATRON_GFLOP)
def test_model_flops_are_megatrons(name: str, length: int, depths: int | None, gflop: float) -> None:
    found = model_flops_per_token(load_model(name), length, mtp_layers=depths) / 1e9
    np.testing.assert_allclose(found, gflop, rtol=0.002)


@pytest.mark.parametrize("name", model_names())
def test_a_lone_token_costs_six_flops_per_weight_that_it_meets(name: str) -> None:
    """Without attention to others, training is 6 FLOPs per matrix entry (Kaplan et al. 2020, section 2.1).

    Embedding rows are looked up, norms and the router are left out by the convention; recurrences add a little.
    """
    architecture = load_model(name)
    counts = architecture.components
    met = architecture.active_parameters() - counts["norms"] - counts["router"]
    met -= 0 if architecture.head.tied else counts["embedding"]
    recurrent = any(isinstance(operator, Mixer) for layer in architecture.kinds for operator in layer.operators)
    ratio = model_flops_per_token(architecture, 1, mtp_layers=0) / (6 * met)
    assert 0.998 < ratio < (1.04 if recurrent else 1.002)


def test_flops_follow_top_k() -> None:
    """One more expert per token costs three passes over its three matrices in each MoE layer."""
    architecture = load_model("mixtral-8x7b")
    more = model_flops_per_token(architecture, 4096, top_k=3) - model_flops_per_token(architecture, 4096)
    np.testing.assert_allclose(more, 6 * 3 * 4096 * 14336 * 32, rtol=1e-12)


def test_raw_configurations_are_whole() -> None:
    config = load_model_config("deepseek-v3")
    assert config["rope_scaling"]["type"] == "yarn"
    assert load_model("deepseek-v3").details.rope_scaling == config["rope_scaling"]
    assert load_model("deepseek-v3").details.router_groups == 8
    assert load_model("llama-3.1-8b").details.rotary_base == 500_000.0
    assert load_model("glm-4.5-air").details.rotary_percent == 0.5
