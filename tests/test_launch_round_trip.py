"""Plan -> launch files -> plan: nothing is lost for any target, and an edited file is read as it was edited."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from support.launch_shell import started

from moeplan import PlanError, launch
from moeplan.frameworks import accelerate_keys, bridge_keys
from moeplan.frameworks.carried import Carried, carried_from, plan_from, read_carried
from moeplan.importers import read
from moeplan.plan import Plan, load_plan

MODELS = ("qwen3-30b-a3b", "deepseek-v3", "mixtral-8x7b", "llama-3-8b", "gpt-oss-120b", "glm-4.5-air", "dbrx")
DEGREES = st.sampled_from([1, 1, 2, 4, 8])


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Plans over every key, legal or not: what a target refuses is adapted before it is written."""
    granularity = draw(st.sampled_from(["none", "selective", "full"]))
    recompute: dict[str, Any] = {"granularity": granularity}
    if granularity == "selective":
        names = ["core_attn", "moe_act", "layernorm", "moe"]
        recompute["modules"] = draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    elif granularity == "full":
        recompute["method"] = draw(st.sampled_from([None, "uniform", "block"]))
        recompute["layers"] = draw(st.sampled_from([None, 1, 3]))
    return load_plan(
        {
            "model": draw(st.sampled_from(MODELS)),
            "hardware": {
                "gpu": draw(st.sampled_from(["h100", "a100-80gb", "b200", "h200"])),
                "gpus": draw(st.sampled_from([8, 32, 64, 128])),
                "gpus_per_node": draw(st.sampled_from([None, 8, 4])),
            },
            "batch": {
                "sequence_length": draw(st.sampled_from([1024, 2048])),
                "micro_batch_size": draw(st.sampled_from([1, 2])),
                "global_batch_size": draw(st.sampled_from([None, 256, 1024])),
            },
            "parallel": {
                "tp": draw(DEGREES),
                "pp": draw(st.sampled_from([1, 1, 2, 4])),
                "vpp": draw(st.sampled_from([1, 1, 2])),
                "cp": draw(st.sampled_from([1, 1, 2])),
                "ep": draw(DEGREES),
                "etp": draw(st.sampled_from([1, 1, 2])),
                "sp": draw(st.sampled_from([None, True])),
                "cp_comm": draw(st.sampled_from(["p2p", "a2a", "allgather"])),
            },
            "precision": draw(st.sampled_from(["bf16", "bf16", "fp16", "fp32", "tf32", "fp8", "mxfp8", "nvfp4"])),
            "optimizer": {
                "name": draw(st.sampled_from(["adam", "adam", "sgd"])),
                "sharding": draw(st.integers(0, 3)),
                "state_dtype": draw(st.sampled_from(["fp32", "fp32", "bf16", "fp8"])),
                "gradient_dtype": draw(st.sampled_from(["fp32", "bf16"])),
                "offload_fraction": draw(st.sampled_from([0.0, 0.0, 0.25, 1.0])),
            },
            "recompute": recompute,
            "activation_offload": {
                "modules": draw(st.sampled_from([[], [], ["qkv_linear"], ["core_attn", "attn_proj"]])),
                "fraction": draw(st.sampled_from([1.0, 0.5])),
            },
            "moe": {
                "top_k": draw(st.sampled_from([None, None, 2, 4])),
                "dispatcher": draw(st.sampled_from(["alltoall", "allgather", "deepep", "hybridep"])),
                "capacity_factor": draw(st.sampled_from([None, None, 1.25])),
                "load_imbalance": draw(st.sampled_from([1.0, 1.3])),
            },
            "mtp_layers": draw(st.sampled_from([None, 0, 1])),
            "kernels": {
                name: draw(st.booleans())
                for name in (
                    "fused_cross_entropy",
                    "fused_gradient_accumulation",
                    "flash_attention",
                    "cuda_graphs",
                    "dropout",
                )
            },
            "framework": draw(st.sampled_from(["megatron", "fsdp2", "deepspeed"])),
            "overlap": {name: draw(st.booleans()) for name in ("grad_reduce", "param_gather", "tp", "ep")},
        }
    )


def read_back(target: str, name: str, text: str, folder: Path) -> Plan:
    """The plan of a file, through the importer where there is one, else through the target's own words."""
    if target in ("megatron", "deepspeed", "torchtitan"):
        path = folder / name
        path.write_text(text)
        return read(target, path).plan
    carried = read_carried(text, name)
    assert carried is not None
    if target == "accelerate":
        return plan_from(carried.applied(accelerate_keys.plan_values(yaml.safe_load(text))))
    words, _ = started(text, folder, BRIDGE_PATH="/bridge", MASTER_ADDR="first")
    overrides = dict(word.split("=", 1) for word in words if "=" in word)
    return plan_from(carried.applied(bridge_keys.plan_values(overrides)))


READ = {
    "megatron": ("megatron.sh",),
    "megatron-bridge": ("megatron_bridge.sh",),
    "deepspeed": ("deepspeed.json",),
    "torchtitan": ("torchtitan.toml", "torchtitan_config.py"),
    "accelerate": ("accelerate.yaml",),
}


@pytest.mark.parametrize("target", launch.TARGETS)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much])
@given(asked=plans())
def test_round_trip(target: str, asked: Plan, tmp_path: Path) -> None:
    try:
        plan, _ = launch.adapt(asked, target)
    except PlanError:
        assume(False)
    files = launch.render(plan, target)
    present = [name for name in READ[target] if name in files]
    assert present
    for name in present:
        assert read_back(target, name, files[name], tmp_path) == plan, name


def test_inline_models_and_gpus_round_trip(tmp_path: Path) -> None:
    """A model and a GPU given as mappings come back as the same mappings."""
    from moeplan.model import load_model

    raw = json.loads(json.dumps(dict(load_model("qwen3-30b-a3b").details.raw)))
    plan = load_plan({"model": raw, "hardware": {"gpu": "h100", "gpus": 16}, "parallel": {"ep": 8}})
    text = launch.render(plan, "megatron")["megatron.sh"]
    assert read_back("megatron", "megatron.sh", text, tmp_path) == plan


def test_an_edited_script_is_read_as_edited(tmp_path: Path) -> None:
    """What a flag says wins over what the file carries: an open key whose value was changed stays changed."""
    plan = load_plan(
        {"model": "qwen3-30b-a3b", "hardware": {"gpu": "h100", "gpus": 16}, "parallel": {"ep": 8, "tp": 2}}
    )
    text = launch.render(plan, "megatron")["megatron.sh"]
    edited = text.replace("--moe-router-topk 8", "--moe-router-topk 4").replace(
        "--micro-batch-size 1", "--micro-batch-size 2"
    )
    read_plan = read_back("megatron", "megatron.sh", edited, tmp_path)
    assert (read_plan.moe.top_k, read_plan.batch.micro_batch_size) == (4, 2)
    assert read_plan.parallel == plan.parallel


def test_carried_line_is_one_line_of_ascii_whatever_it_holds() -> None:
    carried = Carried({"model": "a\nb\u2028 é😀 $(x)"}, {"moe.top_k": 8})
    line = carried.line()
    assert line.isascii() and len(line.splitlines()) == 1
    assert read_carried(f"#!/bin/sh\n{line}\n", "x") == carried


@pytest.mark.parametrize("text", ["# moeplan-carried: {", "# moeplan-carried: []", '# moeplan-carried: {"plan": 3}'])
def test_a_broken_carried_line_is_an_error(text: str) -> None:
    with pytest.raises(PlanError, match=r"script\.sh"):
        read_carried(text, "script.sh")
    assert read_carried("# nothing here", "script.sh") is None
    assert carried_from({}, "x") == Carried()
