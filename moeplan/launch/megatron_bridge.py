"""Megatron-Bridge: the closest recipe, and what the plan changes in it, as ``section.key=value`` overrides."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moeplan.frameworks.bridge_keys import MIXED_PRECISION, plan_values
from moeplan.frameworks.carried import what_to_carry
from moeplan.launch import megatron
from moeplan.launch.bridge_recipes import MODELS, bridge_model, closest_recipe
from moeplan.launch.heading import heading
from moeplan.launch.megatron import nodes, world_size_check
from moeplan.launch.megatron_plan import (
    arguments_of_plan,
    environment,
    full_recompute,
    overlaps_param_gather,
    sequence_parallel,
)
from moeplan.launch.refusal import Refusal
from moeplan.launch.words import comment, shell
from moeplan.plan import Plan

if TYPE_CHECKING:
    from moeplan.answers.documents import Estimate

SCRIPT = "megatron_bridge.sh"

# Names that recipes know a generation's GPUs by, the plan's own before its sisters.
_GPUS = {
    "hopper": ("h100",),
    "ampere": ("h100",),
    "blackwell": ("b200", "gb200", "b300", "gb300"),
    "blackwell-ultra": ("b300", "gb300", "b200", "gb200"),
}

_START = r"""
: "${BRIDGE_PATH:?set BRIDGE_PATH to a checkout of Megatron-Bridge}"
exec torchrun \
    --nnodes "$NNODES" \
    --nproc-per-node "$GPUS_PER_NODE" \
    --node-rank "$NODE_RANK" \
    --master-addr "$MASTER_ADDR" \
    --master-port "$MASTER_PORT" \
    "$BRIDGE_PATH/scripts/training/run_recipe.py" \
    --recipe "$RECIPE" --dataset "${DATASET:-mock}" "${OVERRIDES[@]}" "$@"
"""


def render(
    plan: Plan, estimate: Estimate | None = None, command: str | None = None, notes: tuple[str, ...] = ()
) -> dict[str, str]:
    """The launch file of a plan that :func:`refusals` has nothing against: name -> text."""
    told = (*notes, *_notes(plan))
    return {SCRIPT: _script(plan, heading(plan, "Megatron-Bridge launch script", estimate, command, told))}


def refusals(plan: Plan) -> list[Refusal]:
    """Why Megatron-Bridge cannot run the plan, beyond the legality rules that the caller checks; empty where it can."""
    architecture = plan.architecture()
    found = megatron.whole_nodes(plan)
    if bridge_model(architecture) is None:
        have = ", ".join(model.name for model in MODELS)
        remedy = f"use the megatron target, or a model with a recipe ({have})"
        found.append(Refusal(f"Megatron-Bridge has no recipe for {architecture.name}", remedy))
    if plan.kernels.dropout:
        reason = "Megatron-Bridge's recipes train without dropout"
        found.append(Refusal(reason, "set kernels.dropout: false", {"kernels.dropout": False}))
    return found


def recipe(plan: Plan) -> str:
    """The recipe that the overrides start from."""
    model = bridge_model(plan.architecture())
    if model is None:  # refusals() names the models that have one
        raise LookupError(plan.architecture().name)
    machine = plan.gpu().machine()
    own = tuple(name for name in ("gb300", "gb200", "b300", "b200") if machine.name.startswith(name))
    names = (*own, *_GPUS.get(machine.generation, ("h100",)))
    return closest_recipe(model, names, plan.hardware.gpus, plan.precision)


def overrides(plan: Plan) -> dict[str, str]:
    """What the plan sets in the recipe: dotted key -> word."""
    parallel, batch = plan.parallel, plan.batch
    architecture = plan.architecture()
    trained = architecture.mtp_layers if plan.mtp_layers is None else plan.mtp_layers
    found = {
        "train.micro_batch_size": str(batch.micro_batch_size),
        "train.global_batch_size": str(plan.global_batch_size),
        "model.seq_length": str(batch.sequence_length),
        "dataset.seq_length": str(batch.sequence_length),
        "model.tensor_model_parallel_size": str(parallel.tp),
        "model.pipeline_model_parallel_size": str(parallel.pp),
        "model.context_parallel_size": str(parallel.cp),
        "model.expert_model_parallel_size": str(parallel.ep),
        "model.expert_tensor_parallel_size": str(parallel.etp),
        "model.sequence_parallel": _truth(sequence_parallel(plan)),
    }
    found |= _pipeline(plan)
    if parallel.cp > 1:
        found["model.cp_comm_type"] = {"allgather": "all_gather"}.get(parallel.cp_comm, parallel.cp_comm)
    if architecture.mtp_layers or trained:
        found["model.mtp_num_layers"] = str(trained or "null")
    found |= _numbers(plan) | _recompute(plan) | _kernels(plan)
    if architecture.moe is not None:
        found |= _experts(plan)
    return found


def _truth(value: bool) -> str:
    return "true" if value else "false"


def _pipeline(plan: Plan) -> dict[str, str]:
    parallel = plan.parallel
    flags = arguments_of_plan(plan)
    uneven = "--account-for-embedding-in-pipeline-split" in flags
    return {
        "model.virtual_pipeline_model_parallel_size": (
            str(parallel.vpp) if parallel.vpp > 1 and parallel.pipeline_layout is None else "null"
        ),
        # Recipes may bring a layout of their own: without one in the plan it is taken out.
        # The quotes are for Hydra, whose values hold no bare parentheses.
        "model.pipeline_model_parallel_layout": (
            f'"{parallel.pipeline_layout}"' if parallel.pipeline_layout is not None else "null"
        ),
        "model.account_for_embedding_in_pipeline_split": _truth(uneven),
        "model.account_for_loss_in_pipeline_split": _truth(uneven),
    }


def _numbers(plan: Plan) -> dict[str, str]:
    optimizer = plan.optimizer
    kind: str = plan.precision
    if kind == "fp8":
        kind = "fp8-block" if "blockwise" in arguments_of_plan(plan).get("--fp8-recipe", ()) else "fp8-tensor"
    found = {
        "mixed_precision": MIXED_PRECISION[kind],
        "optimizer.optimizer": optimizer.name,
        "ddp.use_distributed_optimizer": _truth(optimizer.sharding >= 1),
        "optimizer.use_distributed_optimizer": _truth(optimizer.sharding >= 1),
        "ddp.grad_reduce_in_fp32": _truth(optimizer.gradient_dtype == "fp32"),
        "ddp.overlap_grad_reduce": _truth(plan.overlap.grad_reduce),
        "ddp.overlap_param_gather": _truth(overlaps_param_gather(plan)),
    }
    light = optimizer.state_dtype != "fp32" or optimizer.offload_fraction > 0
    found["optimizer.use_precision_aware_optimizer"] = _truth(light)
    names = {"fp32": "torch.float32", "bf16": "torch.bfloat16", "fp16": "torch.float16", "fp8": "torch.uint8"}
    found["optimizer.exp_avg_dtype"] = names[optimizer.state_dtype]
    found["optimizer.exp_avg_sq_dtype"] = names[optimizer.state_dtype]
    if optimizer.offload_fraction > 0:
        found["optimizer.optimizer_cpu_offload"] = "true"
        found["optimizer.optimizer_offload_fraction"] = str(optimizer.offload_fraction)
        found["optimizer.overlap_cpu_optimizer_d2h_h2d"] = "true"
    if optimizer.sharding >= 2:
        found["dist.use_megatron_fsdp"] = "true"
        found["ddp.use_megatron_fsdp"] = "true"
        found["ddp.data_parallel_sharding_strategy"] = (
            "optim_grads" if optimizer.sharding == 2 else "optim_grads_params"
        )
        found["checkpoint.ckpt_format"] = "fsdp_dtensor"
    return found


def _recompute(plan: Plan) -> dict[str, str]:
    recompute = plan.recompute
    none = recompute.granularity == "none"
    found: dict[str, str] = {"model.recompute_granularity": "null" if none else recompute.granularity}
    found["model.recompute_method"] = found["model.recompute_num_layers"] = "null"
    if recompute.granularity == "selective":
        found["model.recompute_modules"] = f"[{','.join(recompute.modules)}]"
    elif recompute.granularity == "full":
        method, layers = full_recompute(plan)
        found["model.recompute_method"], found["model.recompute_num_layers"] = method, str(layers)
    if plan.activation_offload.modules:
        found["model.fine_grained_activation_offloading"] = "true"
        found["model.offload_modules"] = f"[{','.join(plan.activation_offload.modules)}]"
        found["model.activation_offload_fraction"] = str(plan.activation_offload.fraction)
    return found


def _kernels(plan: Plan) -> dict[str, str]:
    kernels = plan.kernels
    found = {
        "model.attention_backend": "auto" if kernels.flash_attention else "unfused",
        "model.cross_entropy_loss_fusion": _truth(kernels.fused_cross_entropy),
        "model.gradient_accumulation_fusion": _truth(kernels.fused_gradient_accumulation),
        "model.cuda_graph_impl": "transformer_engine" if kernels.cuda_graphs else "none",
        "comm_overlap.tp_comm_overlap": _truth(plan.overlap.tp and sequence_parallel(plan)),
    }
    if kernels.fused_cross_entropy:
        # The fusion that is priced: 16-bit logits in place. The native one keeps fp32 copies.
        found["model.cross_entropy_fusion_impl"] = "te"
    if kernels.cuda_graphs:
        modules = arguments_of_plan(plan)["--cuda-graph-modules"]
        found["model.cuda_graph_modules"] = f"[{','.join(modules)}]"
        found["rng.te_rng_tracker"] = found["model.use_te_rng_tracker"] = "true"
    return found


def _experts(plan: Plan) -> dict[str, str]:
    flags = arguments_of_plan(plan)
    own = plan.architecture().moe
    chosen = plan.moe.top_k or (own.top_k if own is not None else 0)
    found = {
        "model.moe_router_topk": str(chosen),
        # The back end alone does nothing: the type must be flex.
        "model.moe_token_dispatcher_type": flags["--moe-token-dispatcher-type"][0],
        "model.moe_grouped_gemm": _truth("--moe-grouped-gemm" in flags),
        "model.moe_permute_fusion": "true",
        "model.moe_expert_capacity_factor": str(plan.moe.capacity_factor or "null"),
        "model.moe_router_padding_for_quantization": _truth("--moe-router-padding-for-quantization" in flags),
        "comm_overlap.overlap_moe_expert_parallel_comm": _truth(plan.overlap.ep),
        "comm_overlap.delay_wgrad_compute": _truth(plan.overlap.ep),
    }
    if "--moe-flex-dispatcher-backend" in flags:
        found["model.moe_flex_dispatcher_backend"] = flags["--moe-flex-dispatcher-backend"][0]
    if own is not None and own.shared is not None:
        # Recipes overlap shared experts with the dispatch, which EP overlap and their recomputation refuse.
        found["model.moe_shared_expert_overlap"] = "false"
    return found


def _notes(plan: Plan) -> tuple[str, ...]:
    notes = ["recipe names are Megatron-Bridge 0.6's; data, learning rate and steps are the recipe's own"]
    if plan.framework != "megatron":
        notes.append(f"the prediction follows {plan.framework}'s accounting; set framework: megatron for this launch")
    return tuple(notes)


def _script(plan: Plan, lines: list[str]) -> str:
    count, per_node = nodes(plan)
    words = overrides(plan)
    carried = what_to_carry(plan, plan_values(words))
    parts = ["#!/usr/bin/env bash", *comment(lines), carried.line(), "set -euo pipefail", ""]
    parts += world_size_check(plan.hardware.gpus, count, per_node)
    parts += ["", "# What this configuration needs of its environment."]
    for name, (value, why) in environment(plan).items():
        parts.append(f"export {name}={shell(value)}" + (f"  # {why}" if why else ""))
    parts += ["", f"RECIPE={shell(recipe(plan))}", "OVERRIDES=("]
    parts += [f"    {shell(f'{name}={value}')}" for name, value in words.items()]
    parts.append(")")
    return "\n".join(parts) + "\n" + _START
