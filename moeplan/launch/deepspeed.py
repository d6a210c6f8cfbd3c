"""DeepSpeed: its JSON configuration, and a script that starts a training script with it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from moeplan.frameworks.carried import what_to_carry
from moeplan.frameworks.deepspeed_keys import OWN_KEY, plan_values
from moeplan.frameworks.megatron_flags import TF32_VARIABLE
from moeplan.launch.heading import heading
from moeplan.launch.megatron import nodes, whole_nodes, world_size_check
from moeplan.launch.refusal import Refusal
from moeplan.launch.words import comment, one_line
from moeplan.plan import Plan

if TYPE_CHECKING:
    from moeplan.answers.documents import Estimate

CONFIGURATION = "deepspeed.json"
SCRIPT = "deepspeed.sh"

# Hugging Face model types that AutoEP has a preset for (deepspeed/module_inject/auto_ep_presets, hf_model_types).
PRESETS = {
    "mixtral": "mixtral",
    "qwen3_moe": "qwen3_moe",
    "qwen2_moe": "qwen3_moe",
    "deepseek_v2": "deepseek_v2",
    "deepseek_v3": "deepseek_v3",
}

_START = r"""
: "${TRAIN_SCRIPT:?set TRAIN_SCRIPT to a Python script that calls deepspeed.initialize}"
CONFIGURATION="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/deepspeed.json"
exec torchrun \
    --nnodes "$NNODES" \
    --nproc-per-node "$GPUS_PER_NODE" \
    --node-rank "$NODE_RANK" \
    --master-addr "$MASTER_ADDR" \
    --master-port "$MASTER_PORT" \
    "$TRAIN_SCRIPT" --deepspeed --deepspeed_config "$CONFIGURATION" "$@"
"""


def render(
    plan: Plan, estimate: Estimate | None = None, command: str | None = None, notes: tuple[str, ...] = ()
) -> dict[str, str]:
    """The launch files of a plan that :func:`refusals` has nothing against: name -> text."""
    told = (*notes, *_notes(plan))
    document = configuration(plan)
    lines = heading(plan, "DeepSpeed configuration", estimate, command, told)
    own = {"about": [one_line(line) for line in lines], **what_to_carry(plan, plan_values(document)).to_mapping()}
    script_lines = heading(plan, "DeepSpeed launch script", estimate, command, told)
    return {
        CONFIGURATION: json.dumps({OWN_KEY: own, **document}, indent=2) + "\n",
        SCRIPT: _script(plan, script_lines),
    }


def configuration(plan: Plan) -> dict[str, Any]:
    """DeepSpeed's own keys."""
    document: dict[str, Any] = {
        "train_batch_size": plan.global_batch_size,
        "train_micro_batch_size_per_gpu": plan.batch.micro_batch_size,
        "gradient_accumulation_steps": plan.micro_batches,
        "zero_optimization": _zero(plan),
        **_numbers(plan),
        **_optimizer(plan),
        "gradient_clipping": 1.0,
    }
    parallel = plan.parallel
    if parallel.tp > 1:
        document["tensor_parallel"] = {"autotp_size": parallel.tp, "tp_overlap_comm": plan.overlap.tp}
    if parallel.cp > 1:
        document["sequence_parallel_size"] = parallel.cp
    if parallel.ep > 1:
        document["expert_parallel"] = _expert_parallel(plan)
    if parallel.pp > 1:
        interval = 1 if plan.recompute.granularity == "full" else 0
        document["pipeline"] = {"stages": parallel.pp, "activation_checkpoint_interval": interval}
    if plan.recompute.granularity == "full":
        document["activation_checkpointing"] = {"partition_activations": False, "cpu_checkpointing": False}
    return document | {"steps_per_print": 10, "wall_clock_breakdown": False}


def refusals(plan: Plan) -> list[Refusal]:
    """Why DeepSpeed cannot run the plan, beyond the legality rules that the caller checks; empty where it can."""
    return whole_nodes(plan) + _refused_numbers(plan) + _refused_experts(plan) + _refused_kernels(plan)


def _zero(plan: Plan) -> dict[str, Any]:
    optimizer = plan.optimizer
    zero: dict[str, Any] = {
        "stage": optimizer.sharding,
        "overlap_comm": plan.overlap.grad_reduce,
        "contiguous_gradients": True,
        "reduce_scatter": True,
    }
    if optimizer.offload_fraction > 0:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True, "ratio": optimizer.offload_fraction}
    if optimizer.sharding == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    return zero


def _numbers(plan: Plan) -> dict[str, Any]:
    wide = plan.optimizer.gradient_dtype == "fp32"
    if plan.precision in ("bf16", "fp16"):
        kind = plan.precision
        return {kind: {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32" if wide else kind}}
    return {"bf16": {"enabled": False}, "fp16": {"enabled": False}}


def _optimizer(plan: Plan) -> dict[str, Any]:
    if plan.optimizer.name == "sgd":
        # torch's own; ZeRO asks to be told that it has not been tested with it.
        parameters: dict[str, Any] = {"lr": 3e-4, "momentum": 0.9, "weight_decay": 0.1}
        return {"optimizer": {"type": "SGD", "params": parameters}, "zero_allow_untested_optimizer": True}
    return {
        "optimizer": {"type": "AdamW", "params": {"lr": 3e-4, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1}}
    }


def _expert_parallel(plan: Plan) -> dict[str, Any]:
    section: dict[str, Any] = {
        "enabled": True,
        "autoep_size": plan.parallel.ep,
        "expert_tensor_parallel_size": plan.parallel.etp,
        "preset_model": PRESETS[plan.architecture().family],
        "comm_backend": "comm",
    }
    if plan.moe.top_k is not None:
        section["top_k"] = plan.moe.top_k
    return section


def _refused_numbers(plan: Plan) -> list[Refusal]:
    found = []
    optimizer = plan.optimizer
    if plan.precision in ("fp8", "mxfp8", "nvfp4"):
        found.append(Refusal(f"DeepSpeed trains in no {plan.precision}", "set precision: bf16", {"precision": "bf16"}))
    if optimizer.state_dtype != "fp32":
        reason = f"DeepSpeed keeps {optimizer.state_dtype} moments only beside master weights of the same type"
        found.append(Refusal(reason, "set optimizer.state_dtype: fp32", {"optimizer.state_dtype": "fp32"}))
    if optimizer.sharding == 0 and optimizer.gradient_dtype == "fp32" and plan.precision not in ("fp32", "tf32"):
        # engine.py, _do_optimizer_sanity_check: "unsupported mix" of model and accumulation types without ZeRO.
        reason = "DeepSpeed accumulates 16-bit gradients in fp32 only with ZeRO"
        found.append(Refusal(reason, "set optimizer.sharding: 1", {"optimizer.sharding": 1}))
    if optimizer.sharding in (1, 2) and 0 < optimizer.offload_fraction < 1:
        reason = f"DeepSpeed offloads a part of the optimizer state ({optimizer.offload_fraction:g}) only with ZeRO-3"
        found.append(
            Refusal(reason, "set optimizer.offload_fraction: 1.0, or 0.0", {"optimizer.offload_fraction": 1.0})
        )
    return found


def _refused_experts(plan: Plan) -> list[Refusal]:
    parallel, architecture = plan.parallel, plan.architecture()
    found: list[Refusal] = []
    changes: dict[str, Any]
    if parallel.ep > 1 and architecture.family not in PRESETS:
        reason = f"DeepSpeed's AutoEP has no preset for {architecture.family} ({', '.join(PRESETS)})"
        found.append(Refusal(reason, "set parallel.ep: 1", {"parallel.ep": 1}))
    if parallel.ep > 1 and parallel.etp > 1:
        found.append(Refusal("DeepSpeed's AutoEP keeps experts whole", "set parallel.etp: 1", {"parallel.etp": 1}))
    if architecture.moe is not None and parallel.ep == 1 and parallel.tp > 1 and parallel.etp != parallel.tp:
        reason = "without expert parallelism, DeepSpeed's AutoTP cuts experts as everything else"
        if architecture.moe.expert_bias:
            # Experts with biases are not cut in any framework here.
            found.append(Refusal(reason, "set parallel.tp: 1", {"parallel.tp": 1, "parallel.etp": 1}))
        else:
            found.append(Refusal(reason, f"set parallel.etp: {parallel.tp}", {"parallel.etp": parallel.tp}))
    if parallel.tp > 1 and parallel.cp > 1:
        reason = "DeepSpeed combines tensor parallelism with no sequence parallelism"
        found.append(Refusal(reason, "set parallel.cp: 1", {"parallel.cp": 1}))
    if parallel.pp > 1 and (parallel.ep > 1 or parallel.tp > 1):
        reason = "DeepSpeed's pipeline engine runs neither AutoTP nor AutoEP"
        changes = {"parallel.pp": 1, "parallel.vpp": 1, "parallel.pipeline_layout": None}
        found.append(Refusal(reason, "set parallel.pp: 1", changes))
    if parallel.vpp > 1 or parallel.pipeline_layout is not None:
        reason = "DeepSpeed has no virtual pipeline stages and no pipeline layouts"
        changes = {"parallel.vpp": 1, "parallel.pipeline_layout": None}
        found.append(Refusal(reason, "set parallel.vpp: 1 without a layout", changes))
    if parallel.tp > 1 and parallel.ep > 1 and plan.optimizer.offload_fraction > 0:
        reason = "DeepSpeed offloads nothing where AutoEP and AutoTP meet"
        found.append(Refusal(reason, "set optimizer.offload_fraction: 0", {"optimizer.offload_fraction": 0.0}))
    if plan.moe.capacity_factor is not None and architecture.moe is not None:
        reason = "DeepSpeed's AutoEP drops no tokens"
        found.append(Refusal(reason, "leave moe.capacity_factor unset", {"moe.capacity_factor": None}))
    return found


def _refused_kernels(plan: Plan) -> list[Refusal]:
    found: list[Refusal] = []
    changes: dict[str, Any]
    recompute = plan.recompute
    if recompute.granularity == "selective":
        changes = {"recompute.granularity": "full", "recompute.modules": []}
        found.append(Refusal("DeepSpeed recomputes whole layers or none", "set recompute.granularity: full", changes))
    if recompute.layers is not None or recompute.method is not None:
        changes = {"recompute.method": None, "recompute.layers": None}
        found.append(
            Refusal("DeepSpeed recomputes all layers or none", "leave recompute.method and layers unset", changes)
        )
    if plan.kernels.cuda_graphs:
        found.append(
            Refusal(
                "DeepSpeed trains without CUDA graphs", "set kernels.cuda_graphs: false", {"kernels.cuda_graphs": False}
            )
        )
    if plan.overlap.ep:
        reason = "DeepSpeed does not overlap expert communication"
        found.append(Refusal(reason, "set overlap.ep: false", {"overlap.ep": False}))
    if plan.activation_offload.modules:
        reason = "DeepSpeed offloads no modules' activations"
        changes = {"activation_offload.modules": []}
        found.append(Refusal(reason, "leave activation_offload.modules empty", changes))
    return found


def _notes(plan: Plan) -> list[str]:
    notes = [
        f"the training script builds {plan.architecture().name} itself and cuts data into sequences of "
        f"{plan.batch.sequence_length} tokens"
    ]
    if plan.recompute.granularity == "full":
        notes.append("full recompute: call model.gradient_checkpointing_enable() (the JSON cannot turn it on)")
    if plan.parallel.pp > 1:
        notes.append(f"pipeline: the training script builds PipelineModule(num_stages={plan.parallel.pp})")
    if plan.parallel.cp > 1:
        notes.append("sequence parallelism: register UlyssesSPAttentionHF and shard batches with UlyssesSPDataLoader")
    if plan.moe.top_k is not None and plan.parallel.ep == 1:
        notes.append(f"set the model's experts per token to {plan.moe.top_k}")
    if plan.framework != "deepspeed":
        notes.append(f"the prediction follows {plan.framework}'s accounting; set framework: deepspeed for this launch")
    return notes


def _script(plan: Plan, lines: list[str]) -> str:
    count, per_node = nodes(plan)
    parts = ["#!/usr/bin/env bash", *comment(lines), "set -euo pipefail", ""]
    parts += world_size_check(plan.hardware.gpus, count, per_node)
    parts += ["export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"]
    if plan.precision == "tf32":
        parts.append("export {}={}".format(*TF32_VARIABLE))
    elif plan.precision == "fp32":
        parts.append("export NVIDIA_TF32_OVERRIDE=0")
    return "\n".join(parts) + "\n" + _START
