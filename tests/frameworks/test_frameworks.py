"""The frameworks' own parsers accept what moeplan writes, and refuse what moeplan says they refuse."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from judges import (
    judge_accelerate,
    judge_bridge,
    judge_deepspeed,
    judge_megatron,
    judge_torchtitan,
    judged,
    megatron_line,
)
from support.launch_cases import Case, cases, plan_of

from moeplan import launch
from moeplan.operators.attention import Attention


def failures(found: list[Case], verdicts: list[dict[str, Any]]) -> list[str]:
    return [
        f"{case.plan.model} on {case.plan.hardware.gpus} x {case.plan.hardware.gpu}: {verdict}"
        for case, verdict in zip(found, verdicts, strict=True)
        if not verdict["accepted"]
    ]


def test_megatron_accepts_every_launch_script(frameworks: Path, tmp_path: Path) -> None:
    """Parser, validate_args, TransformerConfig, optimizer, DDP and process groups; and the model is the model."""
    found = list(cases("megatron"))
    assert len(found) >= 40
    assert len({case.plan.model for case in found}) >= 40
    verdicts = judge_megatron(frameworks, found, tmp_path)
    assert not failures(found, verdicts)
    for case, verdict in zip(found, verdicts, strict=True):
        values = verdict["values"]
        assert int(values["data_parallel_size"]) == case.plan.dp
        assert int(values["expert_tensor_parallel_size"]) == case.plan.parallel.etp
        counted = verdict["parameters"]
        if counted is not None and _counts_all(case):
            trained = case.plan.architecture().total_parameters + _trained_mtp(case)
            # Megatron prints billions with two digits and leaves small parts (the MTP projection) out.
            assert counted == pytest.approx(trained, rel=0.003, abs=6e6), case.plan.model


def _counts_all(case: Case) -> bool:
    """Whether Megatron's formula knows the model's layers: it counts no quick-GEGLU gates, no linear attention, no
    gates on the output and no vectors but norms."""
    architecture = case.plan.architecture()
    gated = any(isinstance(o, Attention) and o.output_gate for layer in architecture.layers for o in layer.operators)
    return architecture.family != "gpt_oss" and not gated


def _trained_mtp(case: Case) -> int:
    architecture = case.plan.architecture()
    if case.plan.mtp_layers is None:
        return architecture.mtp_parameters
    return architecture.mtp_parameters // max(architecture.mtp_layers, 1) * case.plan.mtp_layers


def test_megatron_refuses_what_moeplan_refuses(frameworks: Path, tmp_path: Path) -> None:
    """The judge can say no: arguments with one thing broken are refused, at the stage that checks it."""
    plan = plan_of("qwen3-30b-a3b", {"hardware.gpu": "h100", "hardware.gpus": 16, "parallel.ep": 8})
    good = megatron_line(Case("megatron", plan, launch.render(plan, "megatron")), tmp_path)

    def broken(flag: str, value: str) -> dict[str, Any]:
        arguments = list(good["arguments"])
        arguments[arguments.index(flag) + 1] = value
        return good | {"arguments": arguments}

    lines = [
        good,
        broken("--tensor-model-parallel-size", "3"),
        broken("--expert-model-parallel-size", "32"),  # passes the parser, fails when groups are made
        broken("--global-batch-size", "1001"),
        good | {"arguments": [*good["arguments"], "--no-such-flag"]},
    ]
    verdicts = judged(frameworks, "judge_megatron.py", [str(frameworks / "megatron-core-0.19.2")], lines)
    assert [verdict["accepted"] for verdict in verdicts] == [True, False, False, False, False]
    assert [verdict["stage"] for verdict in verdicts][1:] == [
        "validate_args",
        "process groups",
        "validate_args",
        "parser",
    ]


def test_deepspeed_accepts_every_configuration(frameworks: Path) -> None:
    found = list(cases("deepspeed"))
    verdicts = judge_deepspeed(frameworks, found)
    assert not failures(found, verdicts)
    for case, verdict in zip(found, verdicts, strict=True):
        assert verdict["stage"] == case.plan.optimizer.sharding
        assert verdict["steps"] == case.plan.micro_batches
    assert len({case.plan.optimizer.sharding for case in found}) >= 3


def test_deepspeed_judge_notices_unknown_keys(frameworks: Path) -> None:
    """DeepSpeed ignores top-level keys that it does not know; the judge does not."""
    plan = plan_of("mixtral-8x7b", {"hardware.gpu": "h100", "hardware.gpus": 8})
    document = {"train_micro_batch_size_per_gpu": 1, "train_batch_size": 8, "zero_optimisation": {"stage": 1}}
    lines = [{"document": document, "world_size": 8, "data_parallel": plan.dp}]
    [verdict] = judged(frameworks, "judge_others.py", ["deepspeed"], lines)
    assert not verdict["accepted"] and "zero_optimisation" in verdict["error"]


@pytest.mark.parametrize("name", ["torchtitan.toml", "torchtitan_config.py"])
def test_torchtitan_accepts_every_configuration(frameworks: Path, name: str) -> None:
    """Both generations; for 0.2.2 the flavor is also built without memory and has the model's parameters."""
    # torchtitan 0.3's quantized configurations need torchao and a GPU to be built at all.
    found = [
        case
        for case in cases("torchtitan")
        if name in case.files and (name.endswith(".toml") or case.plan.precision in ("bf16", "fp32", "tf32"))
    ]
    verdicts = judge_torchtitan(frameworks, found, name)
    assert not failures(found, verdicts)
    assert len(found) >= 20
    if name.endswith(".toml"):
        for case, verdict in zip(found, verdicts, strict=True):
            assert verdict["dp_shard"] == (case.plan.dp if case.plan.optimizer.sharding else 1)
            assert verdict["layers"] == len(case.plan.architecture().layers)
            # The vocabulary of llama3's flavors is the tokenizer's, 128256; ours is the catalog's.
            assert verdict["parameters"] == case.plan.architecture().total_parameters, case.plan.model


def test_accelerate_accepts_every_configuration(frameworks: Path) -> None:
    found = list(cases("accelerate"))
    verdicts = judge_accelerate(frameworks, found)
    assert not failures(found, verdicts)
    kinds = Counter(verdict["plugin"] for verdict in verdicts)
    assert kinds["FullyShardedDataParallelPlugin"] >= 20 and kinds["MegatronLMPlugin"] >= 5
    for case, verdict in zip(found, verdicts, strict=True):
        if verdict["plugin"] == "MegatronLMPlugin":
            assert (verdict["tp"], verdict["pp"]) == (case.plan.parallel.tp, case.plan.parallel.pp)


def test_bridge_overrides_name_fields_of_megatron_core(frameworks: Path, tmp_path: Path) -> None:
    """Megatron-Bridge itself is not installed; the classes behind model, ddp and optimizer are megatron-core's."""
    found = list(cases("megatron-bridge"))
    verdicts = judge_bridge(frameworks, found, tmp_path)
    assert not failures(found, verdicts)
    assert all(verdict["looked_up"] >= 25 for verdict in verdicts)
    line = {"overrides": ["model.tensor_parallel_size=2"]}
    core = str(frameworks / "megatron-core-0.19.2")
    [wrong] = judged(frameworks, "judge_others.py", ["megatron-bridge", core], [line])
    assert not wrong["accepted"] and "has no field tensor_parallel_size" in wrong["error"]
