"""What Megatron-Bridge overrides say about a plan; the reading half of ``launch/megatron_bridge.py``.

Keys are those of Megatron-Bridge 0.6's ``ConfigContainer``; precisions are names of its ``mixed_precision.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MIXED_PRECISION: Mapping[str, str] = {
    "bf16": "bf16_mixed",
    "fp16": "fp16_mixed",
    "fp32": "null",
    "tf32": "null",
    "fp8-block": "bf16_with_fp8_subchannel_scaling_mixed",
    "fp8-tensor": "bf16_with_fp8_current_scaling_mixed",
    "mxfp8": "bf16_with_mxfp8_mixed",
    "nvfp4": "bf16_with_nvfp4_mixed",
}
_STATES = {"torch.float32": "fp32", "torch.bfloat16": "bf16", "torch.float16": "fp16", "torch.uint8": "fp8"}
_INTEGERS = {
    "train.micro_batch_size": "batch.micro_batch_size",
    "train.global_batch_size": "batch.global_batch_size",
    "model.seq_length": "batch.sequence_length",
    "model.tensor_model_parallel_size": "parallel.tp",
    "model.pipeline_model_parallel_size": "parallel.pp",
    "model.context_parallel_size": "parallel.cp",
    "model.expert_model_parallel_size": "parallel.ep",
    "model.expert_tensor_parallel_size": "parallel.etp",
    "model.recompute_num_layers": "recompute.layers",
    "model.moe_router_topk": "moe.top_k",
    "model.mtp_num_layers": "mtp_layers",
}
_TRUTHS = {
    "model.sequence_parallel": "parallel.sp",
    "ddp.overlap_grad_reduce": "overlap.grad_reduce",
    "ddp.overlap_param_gather": "overlap.param_gather",
    "comm_overlap.tp_comm_overlap": "overlap.tp",
    "comm_overlap.overlap_moe_expert_parallel_comm": "overlap.ep",
    "model.cross_entropy_loss_fusion": "kernels.fused_cross_entropy",
    "model.gradient_accumulation_fusion": "kernels.fused_gradient_accumulation",
}


def plan_values(overrides: Mapping[str, str]) -> dict[str, Any]:
    """What overrides (dotted key -> word) say about a plan: dotted key -> value; keys that they leave open are absent.

    Raises:
        ValueError: A value is not of its key's kind.
    """
    values: dict[str, Any] = {"framework": "megatron"}
    for name, key in _INTEGERS.items():
        if name in overrides:
            word = overrides[name]
            values[key] = int(word) if word != "null" else (0 if key == "mtp_layers" else None)
    for name, key in _TRUTHS.items():
        if name in overrides:
            values[key] = overrides[name] == "true"
    kinds = {there: "fp8" if here.startswith("fp8") else here for here, there in MIXED_PRECISION.items()}
    if "mixed_precision" in overrides:
        word = overrides["mixed_precision"]
        values["precision"] = "fp32" if word == "null" else kinds.get(word, "bf16")
    values |= _optimizer(overrides) | _layers(overrides)
    if "model.moe_token_dispatcher_type" in overrides:
        kind = overrides["model.moe_token_dispatcher_type"]
        backend = overrides.get("model.moe_flex_dispatcher_backend", "deepep")
        values["moe.dispatcher"] = backend if kind == "flex" else kind
    if "model.moe_expert_capacity_factor" in overrides:
        word = overrides["model.moe_expert_capacity_factor"]
        values["moe.capacity_factor"] = None if word == "null" else float(word)
    return values


def _optimizer(overrides: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if "optimizer.optimizer" in overrides:
        values["optimizer.name"] = overrides["optimizer.optimizer"]
    if "ddp.use_distributed_optimizer" in overrides:
        values["optimizer.sharding"] = int(overrides["ddp.use_distributed_optimizer"] == "true")
    if overrides.get("ddp.use_megatron_fsdp") == "true":
        strategy = overrides.get("ddp.data_parallel_sharding_strategy", "optim_grads_params")
        values["optimizer.sharding"] = 2 if strategy == "optim_grads" else 3
    if "ddp.grad_reduce_in_fp32" in overrides:
        values["optimizer.gradient_dtype"] = "fp32" if overrides["ddp.grad_reduce_in_fp32"] == "true" else "bf16"
    if "optimizer.exp_avg_dtype" in overrides:
        values["optimizer.state_dtype"] = _STATES.get(overrides["optimizer.exp_avg_dtype"], "fp32")
    offloaded = overrides.get("optimizer.optimizer_cpu_offload") == "true"
    values["optimizer.offload_fraction"] = (
        float(overrides.get("optimizer.optimizer_offload_fraction", "1.0")) if offloaded else 0.0
    )
    return values


def _layers(overrides: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    virtual = overrides.get("model.virtual_pipeline_model_parallel_size", "null")
    values["parallel.vpp"] = 1 if virtual == "null" else int(virtual)
    layout = overrides.get("model.pipeline_model_parallel_layout", "null")
    values["parallel.pipeline_layout"] = None if layout == "null" else layout.strip("\"'")
    if "model.cp_comm_type" in overrides:
        word = overrides["model.cp_comm_type"]
        values["parallel.cp_comm"] = "allgather" if word == "all_gather" else word
    granularity = overrides.get("model.recompute_granularity", "null")
    values["recompute.granularity"] = "none" if granularity == "null" else granularity
    values["recompute.modules"] = _listed(overrides.get("model.recompute_modules", "[]"))
    method = overrides.get("model.recompute_method", "null")
    values["recompute.method"] = None if method == "null" else method
    values["activation_offload.modules"] = _listed(overrides.get("model.offload_modules", "[]"))
    values["activation_offload.fraction"] = float(overrides.get("model.activation_offload_fraction", "1.0"))
    values["kernels.flash_attention"] = overrides.get("model.attention_backend", "auto") != "unfused"
    values["kernels.cuda_graphs"] = overrides.get("model.cuda_graph_impl", "none") != "none"
    return values


def _listed(word: str) -> tuple[str, ...]:
    return tuple(name for name in word.strip("[]").split(",") if name)
