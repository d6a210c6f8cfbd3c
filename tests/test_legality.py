"""Legality: every rule refuses what the framework refuses, allows what was published, and its remedies hold."""

from __future__ import annotations

import re
from typing import Any

import pytest
from support.search_cases import deepseek, dense, h100, mixtral

from moeplan.search.legality import check, warnings
from moeplan.search.rules import RULES

_MODELS = {"mixtral": mixtral(), "deepseek": deepseek(), "dense": dense()}


def broken(model: str, machine: Any = None, **row: Any) -> dict[str, Any]:
    """Violations by rule name."""
    return {violation.rule: violation for violation in check(_MODELS[model], machine or h100(), row)}


# Each case breaks exactly the rule named: what Megatron-LM's parser, process groups or first forward pass refuse (its
# arguments.py, parallel_state.py, transformer_config.py, schedules.py), and likewise torchtitan and DeepSpeed.
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("attention-degrees-divide-gpus", "mixtral", {"gpus": 8, "pp": 8, "cp": 2}),
    ("expert-degrees-divide-gpus", "mixtral", {"gpus": 24, "ep": 8, "pp": 1, "etp": 2, "global_batch_size": 24}),
    ("gpus-fill-nodes", "mixtral", {"gpus": 12, "global_batch_size": 12}),
    ("heads-divide-by-tp", "dense", {"gpus": 64, "tp": 64, "sequence_length": 8192}),
    ("kv-heads-match-tp", "dense", {"gpus": 24, "tp": 3, "sequence_length": 6144}),
    ("widths-divide-by-tp", "mixtral", {"gpus": 24, "tp": 3, "sequence_length": 6144}),
    ("expert-width-divides-by-etp", "mixtral", {"gpus": 24, "etp": 3, "global_batch_size": 24}),
    ("moe-with-tp-needs-sp", "mixtral", {"tp": 2, "sp": False}),
    ("sp-needs-tp", "mixtral", {"sp": True}),
    ("cp-a2a-heads", "mixtral", {"gpus": 16, "cp": 16, "cp_comm": "a2a"}),
    ("tp-overlap-needs-sp", "dense", {"tp": 2, "sp": False, "overlap_tp": True}),
    ("batch-divides", "mixtral", {"global_batch_size": 12}),
    ("sequence-divides-by-cp", "mixtral", {"cp": 8, "sequence_length": 4104}),
    ("sequence-divides-by-tp", "mixtral", {"tp": 8, "sequence_length": 4100}),
    ("sequence-within-positions", "mixtral", {"sequence_length": 65536}),
    ("expert-parallelism-needs-experts", "dense", {"ep": 2}),
    ("experts-divide-by-ep", "mixtral", {"gpus": 16, "ep": 16, "global_batch_size": 16}),
    ("top-k-within-experts", "mixtral", {"top_k": 9}),
    ("deepep-needs-ranks", "mixtral", {"dispatcher": "deepep"}),
    ("capacity-not-with-deepep", "mixtral", {"ep": 8, "dispatcher": "deepep", "capacity_factor": 1.0}),
    ("ep-overlap-allowed", "mixtral", {"overlap_ep": True}),
    ("ep-overlap-allowed", "mixtral", {"overlap_ep": True, "ep": 8, "recompute": "full"}),
    ("ep-overlap-allowed", "mixtral", {"overlap_ep": True, "ep": 4, "pp": 2, "gpus": 8}),
    ("layers-split-evenly", "mixtral", {"pp": 3, "gpus": 24, "global_batch_size": 24}),
    ("layers-split-evenly", "deepseek", {"pp": 2}),
    ("layout-describes-model", "deepseek", {"pp": 2, "pipeline_layout": "Et*30|t*30mL"}),
    ("layout-matches-vpp", "deepseek", {"pp": 2, "vpp": 2, "pipeline_layout": "Et*30|t*31mL"}),
    ("mtp-in-last-virtual-stage", "deepseek", {"pp": 2, "vpp": 2, "pipeline_layout": "Et*60|tm||L"}),
    ("vpp-needs-pp", "mixtral", {"vpp": 2}),
    ("interleaving-fills-pipeline", "mixtral", {"pp": 4, "vpp": 2, "global_batch_size": 12}),
    ("schedule-exists", "mixtral", {"pp": 2, "schedule": "zero_bubble"}),
    ("dualpipe-fills-both-ways", "mixtral", {"pp": 2, "schedule": "dualpipe", "framework": "fsdp2", "sharding": 3}),
    ("recompute-modules-exist", "mixtral", {"recompute": "selective", "recompute_modules": ("mla_up_proj",)}),
    ("recompute-modules-exist", "dense", {"recompute": "selective", "recompute_modules": ("moe",)}),
    ("recompute-modules-exist", "mixtral", {"recompute": "selective", "recompute_modules": ("shared_experts",)}),
    ("recompute-modules-need-selective", "mixtral", {"recompute_modules": ("core_attn",)}),
    ("recompute-layers-need-full", "mixtral", {"recompute_layers": 2}),
    ("graphs-without-full-recompute", "mixtral", {"recompute": "full", "cuda_graphs": True}),
    ("offload-modules-allowed", "mixtral", {"offload_modules": ("attn_proj",)}),
    ("precision-runs-on-gpu", "mixtral", {"precision": "mxfp8"}),
    ("light-state-needs-sharded-adam", "mixtral", {"state_dtype": "bf16", "sharding": 0}),
    ("gradients-no-narrower-than-parameters", "mixtral", {"gradient_dtype": "bf16", "precision": "fp32"}),
    ("param-gather-overlap-needs-grad-overlap", "mixtral", {"overlap_grad_reduce": False}),
    ("fsdp-shards-everything", "mixtral", {"framework": "fsdp2", "sharding": 1}),
    ("torchtitan-expert-mesh", "mixtral", {"framework": "fsdp2", "sharding": 3, "cp": 4, "ep": 2}),
    ("torchtitan-etp-follows-tp", "mixtral", {"framework": "fsdp2", "sharding": 3, "tp": 2, "etp": 2}),
    ("fsdp-has-no-fp16", "mixtral", {"framework": "fsdp2", "sharding": 3, "precision": "fp16"}),
    ("fsdp-offloads-whole", "mixtral", {"framework": "fsdp2", "sharding": 3, "offload_fraction": 0.5}),
    ("dispatcher-exists", "mixtral", {"framework": "deepspeed", "ep": 8, "dispatcher": "allgather"}),
    ("context-parallelism-exists", "mixtral", {"framework": "deepspeed", "cp": 2}),
    ("deepspeed-pipeline-sharding", "mixtral", {"framework": "deepspeed", "pp": 2, "sharding": 2}),
    ("deepspeed-has-no-virtual-stages", "mixtral", {"framework": "deepspeed", "pp": 2, "vpp": 2}),
    ("deepspeed-experts-sharding", "mixtral", {"framework": "deepspeed", "ep": 8, "sharding": 3}),
    ("deepspeed-tensor-sharding", "mixtral", {"framework": "deepspeed", "tp": 2, "sharding": 3}),
    ("deepspeed-etp", "mixtral", {"framework": "deepspeed", "tp": 4, "etp": 2}),
]


@pytest.mark.parametrize(("name", "model", "row"), CASES)
def test_rule_refuses_with_reason_and_remedy(name: str, model: str, row: dict[str, Any]) -> None:
    found = broken(model, **row)
    assert name in found
    assert found[name].reason
    assert found[name].remedy
    assert "\n" not in found[name].reason + found[name].remedy


def test_every_rule_has_a_case() -> None:
    by_other_tests = {"expert-bias-needs-whole-experts", "dispatcher-runs-on-gpu"}
    assert {rule.name for rule in RULES} == {name for name, _, _ in CASES} | by_other_tests
    assert all(rule.source for rule in RULES)


def test_rules_read_only_the_columns_they_declare() -> None:
    from moeplan.estimator.columns import DEFAULTS
    from moeplan.estimator.table import Table
    from moeplan.search.facts import facts

    known = facts(_MODELS["deepseek"], h100())
    for rule in RULES:
        assert rule.columns <= DEFAULTS.keys(), rule.name
        assert set(rule.vary) <= rule.columns, rule.name
        # A table without the other columns raises KeyError if the rule reads more than it says.
        rule.find(known, _view(Table.of_rows([{name: DEFAULTS[name] for name in rule.columns}])))


def _view(table: Any) -> Any:
    from moeplan.search.rules import View

    return View(table)


@pytest.mark.parametrize(
    "row",
    [
        # DeepSeek-V3 technical report, section 3.2 (PP16, EP64), with Megatron-Bridge's layout for PP16 VPP2.
        {"gpus": 2048, "pp": 16, "vpp": 2, "ep": 64, "pipeline_layout": "Et*3|(tt|)*29m|L", "global_batch_size": 16384},
        # Megatron-Bridge's DeepSeek-V3 recipe for H100: TP2 PP8 VPP4 EP64.
        {
            "gpus": 1024,
            "tp": 2,
            "pp": 8,
            "vpp": 4,
            "ep": 64,
            "pipeline_layout": "Et|(tt|)*30mL",
            "global_batch_size": 8192,
        },
        {"gpus": 256, "ep": 64, "dispatcher": "deepep", "global_batch_size": 2048, "precision": "fp8"},
    ],
)
def test_published_deepseek_recipes_are_legal(row: dict[str, Any]) -> None:
    assert broken("deepseek", **row) == {}


def test_published_mixtral_recipe_is_legal() -> None:
    # Megatron-LM megatron/core/transformer/moe/README.md: Mixtral 8x7B with TP1 PP4 EP8 on 64 GPUs and upward.
    assert broken("mixtral", gpus=64, pp=4, vpp=8, ep=8, global_batch_size=256) == {}


def test_gpu_limits_dispatchers_and_precisions() -> None:
    ep8 = {"ep": 8, "dispatcher": "deepep"}
    assert "dispatcher-runs-on-gpu" in broken("mixtral", h100(compute_capability=89), **ep8)
    assert "dispatcher-runs-on-gpu" in broken("mixtral", h100(nvlink_domain=1), **ep8)
    assert broken("mixtral", **ep8) == {}
    volta = h100(name="v100", generation="volta", compute_capability=70, peak_tflops={"fp16": 125.0, "fp32": 15.7})
    refused = broken("mixtral", volta)["precision-runs-on-gpu"]
    assert "bf16" in refused.reason
    assert set(re.findall(r"\w+", refused.remedy.partition(":")[2])) == {"fp16", "fp32"}
    blackwell = h100(compute_capability=100, peak_tflops={"bf16": 2250.0, "fp8": 4500.0, "mxfp8": 4500.0})
    assert broken("mixtral", blackwell, precision="mxfp8") == {}


def test_remedies_list_values_that_obey_the_rule() -> None:
    remedy = broken("mixtral", gpus=16, ep=16, global_batch_size=16)["experts-divide-by-ep"].remedy
    assert remedy == "legal ep here: 1, 2, 4, 8"
    split = broken("deepseek", pp=2)["layers-split-evenly"].remedy
    # 61 layers divide over 1 and 61, 63 over 1, 3, 7, 9, 21 and 63.
    assert "1, 3, 7, 9, 21, 61, 63" in split


@pytest.mark.parametrize(("pp", "vpp"), [(2, 1), (8, 4), (16, 1), (16, 2)])
def test_an_uneven_split_is_offered_a_layout_that_is_legal(pp: int, vpp: int) -> None:
    row = {"gpus": 16, "pp": pp, "vpp": vpp, "global_batch_size": 1024}
    remedy = broken("deepseek", **row)["layers-split-evenly"].remedy
    layout = re.search(r"'(.*)'", remedy)
    assert layout is not None
    assert broken("deepseek", **row, pipeline_layout=layout.group(1)) == {}


def test_tp_beyond_nvlink_is_legal_but_told() -> None:
    row = {"gpus": 16, "tp": 16, "global_batch_size": 16}
    assert broken("deepseek", **row) == {}
    assert any("tp=16" in text for text in warnings(_MODELS["deepseek"], h100(), row))
    assert warnings(_MODELS["deepseek"], h100(), {"gpus": 16, "tp": 8}) == []


def test_expert_bias_keeps_experts_whole() -> None:
    from dataclasses import replace

    from moeplan.model.architecture import Layer
    from moeplan.operators.moe import MoE

    model = _MODELS["mixtral"]
    biased = Layer(
        tuple(
            replace(operator, expert_bias=True) if isinstance(operator, MoE) else operator
            for operator in model.layers[0].operators
        )
    )
    model = replace(model, layers=(biased,) * 32)
    rules = {violation.rule for violation in check(model, h100(), {"etp": 2})}
    assert rules == {"expert-bias-needs-whole-experts"}
