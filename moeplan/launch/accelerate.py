"""Hugging Face accelerate: the YAML of its FSDP2 or Megatron-LM plugin, and a script that launches with it.

A plan of ``framework: megatron`` is written for the Megatron-LM plugin, one of ``fsdp2`` for FSDP2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moeplan.frameworks.accelerate_keys import ROTATIONS, plan_values
from moeplan.frameworks.carried import what_to_carry
from moeplan.frameworks.megatron_flags import TF32_VARIABLE
from moeplan.launch.heading import heading
from moeplan.launch.megatron import nodes, whole_nodes, world_size_check
from moeplan.launch.megatron_plan import environment, full_recompute, sequence_parallel
from moeplan.launch.refusal import Refusal
from moeplan.launch.words import comment, shell
from moeplan.plan import Plan

if TYPE_CHECKING:
    from moeplan.answers.documents import Estimate

CONFIGURATION = "accelerate.yaml"
SCRIPT = "accelerate.sh"

# Hugging Face model types that the Megatron-LM plugin can build (accelerate/utils/dataclasses.py,
# add_model_config_to_megatron_parser), as far as they are decoders.
_MEGATRON_MODELS = ("gpt2", "llama", "glm4_moe")

_START = r"""
: "${TRAIN_SCRIPT:?set TRAIN_SCRIPT to a Python script that uses accelerate}"
CONFIGURATION="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/accelerate.yaml"
exec accelerate launch \
    --config_file "$CONFIGURATION" \
    --machine_rank "$NODE_RANK" \
    --main_process_ip "$MASTER_ADDR" \
    --main_process_port "$MASTER_PORT" \
    "$TRAIN_SCRIPT" "$@"
"""


def render(
    plan: Plan, estimate: Estimate | None = None, command: str | None = None, notes: tuple[str, ...] = ()
) -> dict[str, str]:
    """The launch files of a plan that :func:`refusals` has nothing against: name -> text."""
    import yaml

    document = configuration(plan)
    kind = "Megatron-LM plugin" if plan.framework == "megatron" else "FSDP2"
    told = (*notes, *_notes(plan))
    lines = heading(plan, f"accelerate configuration ({kind})", estimate, command, told)
    head = [*comment(lines), what_to_carry(plan, plan_values(document)).line()]
    body = yaml.safe_dump(document, sort_keys=False, width=120, allow_unicode=False)
    script_lines = heading(plan, f"accelerate launch script ({kind})", estimate, command, told)
    return {CONFIGURATION: "\n".join(head) + "\n" + body, SCRIPT: _script(plan, script_lines)}


def configuration(plan: Plan) -> dict[str, Any]:
    """accelerate's own keys."""
    megatron = plan.framework == "megatron"
    kind = "MEGATRON_LM" if megatron else "FSDP" if plan.optimizer.sharding > 0 or _meshed(plan) else "MULTI_GPU"
    document: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": kind,
        "mixed_precision": plan.precision if plan.precision in ("bf16", "fp16") else "no",
        "num_machines": nodes(plan)[0],
        "num_processes": plan.hardware.gpus,
        "machine_rank": 0,
        "main_training_function": "main",
        "rdzv_backend": "static",
        "same_network": True,
        "use_cpu": False,
    }
    if megatron:
        return document | {"megatron_lm_config": _megatron(plan)}
    if kind == "FSDP":
        document["fsdp_config"] = _fsdp(plan)
    if _meshed(plan):
        document["parallelism_config"] = _mesh(plan)
    return document


def refusals(plan: Plan) -> list[Refusal]:
    """Why the plugin cannot run the plan, beyond the legality rules that the caller checks; empty where it can."""
    found = whole_nodes(plan) + _refused_numbers(plan)
    return found + (_refused_megatron(plan) if plan.framework == "megatron" else _refused_fsdp(plan))


def _meshed(plan: Plan) -> bool:
    return plan.parallel.tp > 1 or plan.parallel.cp > 1


def _fsdp(plan: Plan) -> dict[str, Any]:
    return {
        "fsdp_version": 2,
        "fsdp_reshard_after_forward": plan.optimizer.sharding == 3,
        "fsdp_offload_params": False,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_state_dict_type": "SHARDED_STATE_DICT",
        "fsdp_cpu_ram_efficient_loading": True,
        "fsdp_activation_checkpointing": plan.recompute.granularity == "full",
    }


def _mesh(plan: Plan) -> dict[str, Any]:
    mesh: dict[str, Any] = {
        "parallelism_config_dp_replicate_size": 1,
        "parallelism_config_dp_shard_size": plan.dp,
        "parallelism_config_tp_size": plan.parallel.tp,
        "parallelism_config_cp_size": plan.parallel.cp,
    }
    if plan.parallel.cp > 1:
        mesh["parallelism_config_cp_comm_strategy"] = ROTATIONS[plan.parallel.cp_comm]
    return mesh


def _megatron(plan: Plan) -> dict[str, Any]:
    parallel, optimizer = plan.parallel, plan.optimizer
    keys: dict[str, Any] = {
        "tp_degree": parallel.tp,
        "pp_degree": parallel.pp,
        "num_micro_batches": plan.micro_batches,
        "gradient_clipping": 1.0,
        "sequence_parallelism": sequence_parallel(plan),
        "use_distributed_optimizer": optimizer.sharding == 1,
        "context_parallel_size": parallel.cp,  # the plugin's default is 2
        "expert_model_parallel_size": parallel.ep,
        "expert_tensor_parallel_size": parallel.etp,
        "attention_backend": plan.kernels.flash_attention,
        "recompute_granularity": plan.recompute.granularity,
    }
    if plan.recompute.granularity == "full":
        keys["recompute_method"], keys["recompute_num_layers"] = full_recompute(plan)
    if optimizer.offload_fraction > 0:
        keys |= {"optimizer_cpu_offload": True, "use_precision_aware_optimizer": True}
        keys["overlap_cpu_optimizer_d2h_h2d"] = True
    return {f"megatron_lm_{name}": value for name, value in keys.items()}


def _refused_numbers(plan: Plan) -> list[Refusal]:
    found = []
    optimizer = plan.optimizer
    if plan.precision not in ("fp32", "tf32", "bf16", "fp16"):
        reason = f"accelerate's plugins train in no {plan.precision} by their configuration alone"
        found.append(Refusal(reason, "set precision: bf16", {"precision": "bf16"}))
    if optimizer.state_dtype != "fp32":
        reason = f"accelerate's configuration has no key for {optimizer.state_dtype} moments"
        found.append(Refusal(reason, "set optimizer.state_dtype: fp32", {"optimizer.state_dtype": "fp32"}))
    if optimizer.gradient_dtype != "fp32":
        reason = f"accelerate's configuration has no key for {optimizer.gradient_dtype} gradients"
        found.append(Refusal(reason, "set optimizer.gradient_dtype: fp32", {"optimizer.gradient_dtype": "fp32"}))
    if plan.kernels.cuda_graphs:
        reason = "accelerate's configuration has no key for CUDA graphs"
        found.append(Refusal(reason, "set kernels.cuda_graphs: false", {"kernels.cuda_graphs": False}))
    if plan.overlap.ep:
        reason = "accelerate's configuration has no key for the overlap of expert communication"
        found.append(Refusal(reason, "set overlap.ep: false", {"overlap.ep": False}))
    if plan.overlap.tp:
        reason = "accelerate's configuration has no key for the overlap of tensor-parallel communication"
        found.append(Refusal(reason, "set overlap.tp: false", {"overlap.tp": False}))
    if plan.activation_offload.modules:
        reason = "accelerate's configuration offloads no modules' activations"
        changes: dict[str, Any] = {"activation_offload.modules": []}
        found.append(Refusal(reason, "leave activation_offload.modules empty", changes))
    if plan.moe.capacity_factor is not None and plan.architecture().moe is not None:
        reason = "accelerate's configuration has no key for expert capacity"
        found.append(Refusal(reason, "leave moe.capacity_factor unset", {"moe.capacity_factor": None}))
    if plan.architecture().moe is not None and plan.moe.dispatcher != "alltoall" and plan.parallel.ep > 1:
        reason = "accelerate's configuration has no key for the token dispatcher"
        found.append(Refusal(reason, "set moe.dispatcher: alltoall", {"moe.dispatcher": "alltoall"}))
    return found


def _refused_fsdp(plan: Plan) -> list[Refusal]:
    parallel, recompute = plan.parallel, plan.recompute
    found = []
    changes: dict[str, Any]
    if plan.framework != "fsdp2":
        reason = "accelerate reads DeepSpeed's own configuration, which the deepspeed target writes"
        found.append(Refusal(reason, "set framework: fsdp2", {"framework": "fsdp2"}))
    if parallel.pp > 1 or parallel.vpp > 1 or parallel.pipeline_layout is not None:
        changes = {"parallel.pp": 1, "parallel.vpp": 1, "parallel.pipeline_layout": None}
        found.append(Refusal("accelerate's FSDP2 has no pipeline", "set parallel.pp: 1", changes))
    if parallel.ep > 1 or parallel.etp > 1:
        changes = {"parallel.ep": 1, "parallel.etp": 1}
        found.append(Refusal("accelerate's FSDP2 has no expert parallelism", "set parallel.ep: 1", changes))
    if parallel.tp > 1 and parallel.sp is False:
        found.append(
            Refusal("tensor parallelism here shards the sequence too", "leave parallel.sp unset", {"parallel.sp": None})
        )
    if plan.optimizer.sharding == 1 or (plan.optimizer.sharding == 0 and _meshed(plan)):
        reason = "FSDP2 shards parameters, gradients and optimizer state together"
        found.append(Refusal(reason, "set optimizer.sharding: 3", {"optimizer.sharding": 3}))
    if parallel.tp > 1 and parallel.cp > 1:
        reason = "accelerate combines tensor parallelism with no context parallelism"
        found.append(Refusal(reason, "set parallel.cp: 1", {"parallel.cp": 1}))
    if plan.optimizer.sharding == 0 and recompute.granularity != "none":
        reason = "accelerate recomputes activations with FSDP only"
        found.append(Refusal(reason, "set optimizer.sharding: 3", {"optimizer.sharding": 3}))
    if recompute.granularity == "selective":
        changes = {"recompute.granularity": "full", "recompute.modules": []}
        found.append(Refusal("accelerate's FSDP2 recomputes whole layers", "set recompute.granularity: full", changes))
    if recompute.layers is not None or recompute.method is not None:
        changes = {"recompute.method": None, "recompute.layers": None}
        found.append(Refusal("accelerate's FSDP2 recomputes all layers", "leave method and layers unset", changes))
    return found


def _refused_megatron(plan: Plan) -> list[Refusal]:
    architecture, parallel, recompute = plan.architecture(), plan.parallel, plan.recompute
    found = []
    changes: dict[str, Any]
    if architecture.family not in _MEGATRON_MODELS:
        reason = f"accelerate's Megatron-LM plugin does not build {architecture.family} ({', '.join(_MEGATRON_MODELS)})"
        found.append(Refusal(reason, "set framework: fsdp2", {"framework": "fsdp2"}))
        return found
    if parallel.vpp > 1 or parallel.pipeline_layout is not None:
        changes = {"parallel.vpp": 1, "parallel.pipeline_layout": None}
        found.append(
            Refusal("accelerate's configuration has no key for virtual stages", "set parallel.vpp: 1", changes)
        )
    elif len(architecture.layers) % parallel.pp:
        reason = "accelerate's Megatron-LM plugin splits layers evenly"
        found.append(Refusal(reason, "use a pp that divides the layers", columns=("pp",)))
    if plan.optimizer.sharding > 1:
        reason = "accelerate's Megatron-LM plugin shards the optimizer state only"
        found.append(Refusal(reason, "set optimizer.sharding: 1", {"optimizer.sharding": 1}))
    if 0 < plan.optimizer.offload_fraction < 1:
        reason = "accelerate's Megatron-LM plugin offloads all of the optimizer state or none"
        changes = {"optimizer.offload_fraction": 1.0}
        found.append(Refusal(reason, "set optimizer.offload_fraction: 1.0, or 0.0", changes))
    if recompute.granularity == "none" or (
        recompute.granularity == "selective" and recompute.modules != ("core_attn",)
    ):
        reason = "accelerate's Megatron-LM plugin recomputes whole layers or the attention core"
        changes = {"recompute.granularity": "selective", "recompute.modules": ["core_attn"]}
        found.append(Refusal(reason, "set recompute.granularity: selective", changes))
    return found


def _notes(plan: Plan) -> list[str]:
    return [
        f"the training script builds {plan.architecture().name}, loads {plan.batch.micro_batch_size} sequences of "
        f"{plan.batch.sequence_length} tokens per pass and accumulates over {plan.micro_batches} passes"
    ]


def _script(plan: Plan, lines: list[str]) -> str:
    count, per_node = nodes(plan)
    parts = ["#!/usr/bin/env bash", *comment(lines), "set -euo pipefail", ""]
    parts += world_size_check(plan.hardware.gpus, count, per_node)
    parts += ["", "# What the configuration file has no key for."]
    if plan.framework == "megatron":
        parts += [f"export {name}={shell(value)}" for name, (value, _) in environment(plan).items()]
    else:
        parts.append(f"export ACCELERATE_GRADIENT_ACCUMULATION_STEPS={plan.micro_batches}")
        if plan.precision == "tf32":
            parts.append("export {}={}".format(*TF32_VARIABLE))
        elif plan.precision == "fp32":
            parts.append("export NVIDIA_TF32_OVERRIDE=0")
        parts.append("export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True")
    return "\n".join(parts) + "\n" + _START
