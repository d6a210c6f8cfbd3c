"""Saved activations against autograd's own saved-tensor hooks on megatron-core and transformers model code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moeplan.estimator.columns import DEFAULTS
from moeplan.estimator.memory.buffers import rotary_width
from moeplan.estimator.memory.layers import layer_memory
from moeplan.estimator.shard import shard_of
from moeplan.estimator.stages import parts
from moeplan.estimator.table import Table
from moeplan.model import load_model
from moeplan.model.architecture import Layer
from moeplan.operators.attention import Attention, LatentAttention
from moeplan.operators.base import Shard
from moeplan.operators.embedding import Embedding, Head
from moeplan.operators.mlp import DenseMLP
from moeplan.operators.moe import MoE
from moeplan.operators.norm import Norm

CASES = json.loads((Path(__file__).parent / "reference" / "activations.json").read_text(encoding="utf-8"))["cases"]
MEGATRON = [case for case in CASES if "case" in case]
TRANSFORMERS = [case for case in CASES if "case" not in case]


def megatron_options(case: Mapping[str, Any]) -> dict[str, Any]:
    """The candidate that a case's name describes."""
    options = dict(item.split("=") for item in case["case"].split("|")[1:])
    row = {
        **DEFAULTS,
        "micro_batch_size": case["batch"],
        "sequence_length": case["sequence_length"],
        "fused_cross_entropy": False,
        "sp": False if options.get("sp") == "False" else None,
        **{name: int(options.get(name, 1)) for name in ("tp", "ep", "etp")},
    }
    recompute = options.get("recompute", "none")
    if recompute.startswith("selective:"):
        return {**row, "recompute": "selective", "recompute_modules": (recompute.split(":")[1],)}
    return {**row, "recompute": recompute}


def megatron_layers(case: Mapping[str, Any]) -> list[Layer]:
    """The model of a case, layer by layer, with embedding and head."""
    config = case["config"]
    hidden, heads, kv_channels = config["hidden_size"], config["num_attention_heads"], config.get("kv_channels", 0)
    attention: Attention | LatentAttention
    if config.get("multi_latent_attention"):
        names = ("q_lora_rank", "kv_lora_rank", "qk_head_dim", "qk_pos_emb_head_dim", "v_head_dim")
        attention = LatentAttention(hidden, heads, *(config[name] for name in names))
    else:
        norm = "head" if config.get("qk_layernorm") else None
        attention = Attention(hidden, heads, config["num_query_groups"], kv_channels, kv_channels, qk_norm=norm)
    dense = DenseMLP(hidden, config["ffn_hidden_size"])
    experts = config.get("num_moe_experts")
    sparse = config.get("moe_layer_freq", [int(bool(experts))] * config["num_layers"])
    layers = []
    for is_sparse in sparse:
        block: DenseMLP | MoE = dense
        if is_sparse:
            shared = config.get("moe_shared_expert_intermediate_size")
            block = MoE(
                hidden,
                experts,
                config["moe_router_topk"],
                config["moe_ffn_hidden_size"],
                shared=DenseMLP(hidden, shared, component="shared_experts") if shared else None,
                score_function=config.get("moe_router_score_function", "softmax"),
            )
        layers.append(Layer((Norm(hidden), attention, Norm(hidden), block)))
    outside = [Layer((Embedding(case["vocab"], hidden),)), Layer((Norm(hidden), Head(case["vocab"], hidden)))]
    return [*layers, *outside]


def local_shard(case: Mapping[str, Any], row: Mapping[str, Any]) -> Shard:
    """The shard of a case: the measured code is Megatron-Core's own Python, without Transformer Engine's fusions.

    Under expert parallelism the measured rank received what its random router gave it; the rows that it saved for its
    first GEMMs tell how many those were.
    """
    shard = shard_of(Table.of_rows([dict(row)]))
    values = {**shard.values, "fused_norm": np.zeros(1), "fused_rope": np.zeros(1)}
    config, saved = case["config"], case["saved_bytes_by_component"]
    rows = sum(
        size for name, size in saved.items() if name.startswith("mlp.experts") and name.endswith("linear_fc2")
    ) / (2 * config.get("moe_ffn_hidden_size", 1) / row["etp"])
    if config.get("num_moe_experts") and rows:
        sparse = sum(config.get("moe_layer_freq", [1] * config["num_layers"]))
        balanced = float(shard.sequence_tokens[0]) * config["moe_router_topk"] * row["etp"] * sparse
        values["load_imbalance"] = np.full(1, rows / balanced)
    return replace(shard, values=values)


@pytest.mark.parametrize("case", MEGATRON, ids=lambda case: str(case["case"]))
def test_megatron_saves_what_its_hooks_saw(case: Mapping[str, Any]) -> None:
    row = megatron_options(case)
    shard = local_shard(case, row)
    hidden = case["config"]["hidden_size"]
    full = row["recompute"] == "full"
    found = 0.0
    for layer in megatron_layers(case):
        memory = layer_memory(layer, shard, hidden)
        found += float((memory.kept_full if full else memory.kept)[0])
    if full and not case["config"].get("multi_latent_attention"):
        # The checkpoint keeps the rotary frequencies, in fp32, once for all layers; latent attention makes its own.
        found += 4 * case["sequence_length"] * case["config"]["kv_channels"]
    if row["recompute_modules"] == ("core_attn",):
        found += 8  # one 64-bit scalar of the checkpoint
    assert found == case["saved_bytes"]


def transformers_remainder(case: Mapping[str, Any]) -> tuple[float, float]:
    """What transformers saves beside the account, explained: (least, most) bytes."""
    config, tokens = case["config"], case["batch"] * case["sequence_length"]
    scalars = 64.0  # step counters and the like: a dozen bytes
    layers = config["num_hidden_layers"]
    if "loss_and_top" not in case["saved_bytes_by_component"]:
        # No labels were given: no loss, so neither log-probabilities nor the tables that it shares a module with.
        loss = 4.0 * tokens * config["vocab_size"] + 8.0 * tokens
        return -loss - scalars, -loss + scalars
    experts = config.get("num_local_experts") or config.get("num_experts") or 0
    dense_layers = len(config.get("mlp_only_layers") or [])
    least = 0.0
    if config["model_type"] == "qwen3_moe" and not case["checkpointing"]:
        # Qwen3's router casts its weights to 16 bits: two bytes less per choice than Mixtral's.
        least -= 2.0 * tokens * config["num_experts_per_tok"] * (layers - dense_layers)
    if config.get("output_router_logits"):
        # The load-balancing loss keeps probabilities over all layers' tokens, in 16 bits, and its expert shares.
        least += 2.0 * tokens * experts * (layers - dense_layers)
    return least - scalars, least + scalars + 4.0 * experts


@pytest.mark.parametrize(
    "case",
    TRANSFORMERS,
    ids=lambda case: f"{case['model']}-{case['batch']}x{case['sequence_length']}-{case['checkpointing']}",
)
def test_transformers_saves_what_its_hooks_saw(case: Mapping[str, Any]) -> None:
    architecture = load_model(case["config"])
    row = {
        **DEFAULTS,
        "framework": "fsdp2",
        "micro_batch_size": case["batch"],
        "sequence_length": case["sequence_length"],
        "recompute": "full" if case["checkpointing"] else "none",
    }
    shard = shard_of(Table.of_rows([row]))
    found = 0.0
    for layer in (*architecture.layers, *parts(architecture)[-2:]):
        memory = layer_memory(layer, shard, architecture.hidden)
        found += float((memory.kept_full if case["checkpointing"] else memory.kept)[0])
    if not case["checkpointing"]:
        # Cosines and sines in 16 bits, once per model.
        found += 4 * case["sequence_length"] * rotary_width(parts(architecture))
    least, most = transformers_remainder(case)
    assert least <= case["saved_bytes"] - found <= most
