"""What a framework cannot run is refused with its reason, and the nearest plan that it can run is found."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given, settings
from test_launch_round_trip import plans

from moeplan import PlanError, launch
from moeplan.frameworks.carried import dotted
from moeplan.plan import Plan, load_plan


def plan_for(model: str = "qwen3-30b-a3b", gpu: str = "h100", gpus: int = 64, **values: Any) -> Plan:
    given_values = {name.replace("__", "."): value for name, value in values.items()}
    return load_plan({"model": model, "hardware": {"gpu": gpu, "gpus": gpus}}).with_values(given_values)


def differences(before: Plan, after: Plan) -> dict[str, Any]:
    old = dotted(before)
    return {key: value for key, value in dotted(after).items() if value != old[key]}


# (target, plan, a word of the reason, what the nearest plan changes)
REFUSED: list[tuple[str, Plan, str, dict[str, Any]]] = [
    ("megatron", plan_for(parallel__schedule="zero_bubble"), "zero_bubble", {"parallel.schedule": "1f1b"}),
    ("megatron", plan_for(parallel__ep=3), "experts do not divide", {"parallel.ep": 4}),
    ("megatron", plan_for(gpus=12, parallel__ep=2), "whole nodes of 8", {"hardware.gpus_per_node": 6}),
    ("megatron", plan_for(parallel__pp=2, parallel__ep=8, overlap__ep=True), "overlap.ep", {"overlap.ep": False}),
    ("megatron", plan_for(precision="mxfp8"), "no mxfp8", {"precision": "bf16"}),
    ("deepspeed", plan_for(precision="fp8", framework="deepspeed"), "no fp8", {"precision": "bf16"}),
    (
        "deepspeed",
        plan_for(optimizer__offload_fraction=0.5, framework="deepspeed"),
        "only with ZeRO-3",
        {"optimizer.offload_fraction": 1.0},
    ),
    (
        "deepspeed",
        plan_for(recompute__granularity="selective", framework="deepspeed"),
        "whole layers or none",
        {"recompute.granularity": "full", "recompute.modules": []},
    ),
    (
        "deepspeed",
        plan_for("glm-4.5-air", parallel__ep=8, framework="deepspeed"),
        "no preset for glm4_moe",
        {"parallel.ep": 1},
    ),
    (
        "torchtitan",
        plan_for(framework="fsdp2"),
        "no stage 1",
        {"optimizer.sharding": 3},
    ),
    (
        "torchtitan",
        plan_for(optimizer__sharding=3, moe__top_k=4, framework="fsdp2"),
        "routes to 8",
        {"moe.top_k": None},
    ),
    (
        "accelerate",
        plan_for("llama-3-8b", framework="megatron", batch__sequence_length=2048),
        "whole layers or the attention core",
        {"recompute.granularity": "selective", "recompute.modules": ["core_attn"]},
    ),
    (
        "accelerate",
        plan_for(framework="fsdp2", optimizer__sharding=3, parallel__ep=8),
        "no expert parallelism",
        {"parallel.ep": 1},
    ),
]


@pytest.mark.parametrize(("target", "plan", "reason", "nearest"), REFUSED)
def test_refused_with_reason_and_nearest_plan(target: str, plan: Plan, reason: str, nearest: dict[str, Any]) -> None:
    assert any(reason in refusal.reason for refusal in launch.refusals(plan, target))
    with pytest.raises(PlanError) as raised:
        launch.render(plan, target)
    message = str(raised.value)
    assert message.startswith(f"--to {target}: ") and "--adapt" in message
    assert all(f"{key}: " in message for key in nearest)
    runs, told = launch.adapt(plan, target)
    assert differences(plan, runs) == nearest
    assert len(told) >= 1 and all(" -> " in line for line in told)


@pytest.mark.parametrize(
    ("target", "model", "reason"),
    [
        ("megatron", "olmoe-1b-7b", "over all heads at once"),
        ("megatron", "jamba-v0.1", "no flags for mamba layers"),
        ("megatron", "longcat-flash", "one attention and one feed-forward"),
        ("megatron-bridge", "mixtral-8x7b", "no recipe for mixtral-8x7b"),
        ("torchtitan", "mixtral-8x7b", "does not have mixtral-8x7b"),
        ("torchtitan", "moonlight-16b-a3b", "does not have moonlight"),  # DeepSeek-V2-Lite's shape, another vocabulary
    ],
)
def test_models_that_no_key_helps(target: str, model: str, reason: str) -> None:
    plan = plan_for(model, batch__sequence_length=1024)
    with pytest.raises(PlanError, match=reason) as raised:
        launch.adapt(plan, target)
    assert "use " in raised.value.remedy


@pytest.mark.parametrize("target", launch.TARGETS)
@settings(max_examples=12)
@given(asked=plans())
def test_adapted_plans_run_and_lawful_ones_stay(target: str, asked: Plan) -> None:
    """What adapt returns is refused by nothing, is its own nearest plan, and keeps model and number of GPUs."""
    try:
        runs, _ = launch.adapt(asked, target)
    except PlanError:
        assume(False)
    assert launch.refusals(runs, target) == []
    assert launch.adapt(runs, target) == (runs, [])
    assert (runs.model, runs.hardware.gpu, runs.hardware.gpus) == (asked.model, asked.hardware.gpu, asked.hardware.gpus)


def test_a_plan_of_another_framework_says_whose_accounting_its_prediction_follows() -> None:
    text = launch.render(plan_for(framework="fsdp2", optimizer__sharding=3), "megatron")["megatron.sh"]
    assert "follows fsdp2's accounting" in text
    assert "follows fsdp2's" not in launch.render(plan_for(), "megatron")["megatron.sh"]
