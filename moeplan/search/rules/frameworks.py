"""What each framework combines: ZeRO stages with pipelines, experts and overlap.

``sharding`` means, in Megatron: 0 plain data parallelism, 1 the distributed optimizer, 2 and 3 Megatron-FSDP with
``optim_grads`` and ``optim_grads_params``. In fsdp2 (torchtitan's composition of PyTorch's FSDP2 with its tensor,
pipeline, context and expert parallelism): 0 replication, 2 ``reshard_after_forward: never``, 3 ``always``. In
DeepSpeed: its ZeRO stage.
"""

from __future__ import annotations

from moeplan.search.facts import Facts
from moeplan.search.rules.base import Finding, View, rule


@rule(
    "overlap_param_gather overlap_grad_reduce sharding framework",
    "overlap_param_gather",
    "Megatron-LM arguments.py: overlap_param_gather needs the distributed optimizer and overlap_grad_reduce",
)
def param_gather_overlap_needs_grad_overlap(facts: Facts, view: View) -> Finding:
    """Overlapped gathering builds on overlapped reduction. (Without sharding nothing is gathered: the flag is moot.)"""
    return Finding(
        view.equals("overlap_param_gather", True)
        & ~view.equals("overlap_grad_reduce", True)
        & (view["sharding"] >= 1)
        & view.equals("framework", "megatron"),
        lambda row: "overlap.param_gather needs overlap.grad_reduce",
        lambda row: "set overlap.param_gather: false, or overlap.grad_reduce: true",
    )


@rule("framework sharding", "sharding", "PyTorch FSDP2 fully_shard: parameters, gradients and state shard together")
def fsdp_shards_everything(facts: Facts, view: View) -> Finding:
    """FSDP2 cannot shard the optimizer state alone."""
    return Finding(
        view.equals("framework", "fsdp2") & (view["sharding"] == 1),
        lambda row: "FSDP2 shards parameters, gradients and optimizer state together: there is no stage 1",
        lambda row: "use sharding 0 (replicate), 2 (no reshard after forward) or 3, or framework: megatron",
    )


@rule("framework tp cp ep etp", "ep etp", "torchtitan distributed/parallel_dims.py: _validate")
def torchtitan_expert_mesh(facts: Facts, view: View) -> Finding:
    """torchtitan's expert mesh borrows all of cp (and tp where etp is 1) and part of the data-parallel ranks."""
    borrowed = view["cp"] * view["tp"] / view["etp"]
    whole = (view["etp"] == 1) | (view["etp"] == view["tp"])
    return Finding(
        view.equals("framework", "fsdp2") & (view["ep"] > 1) & (~whole | (view["ep"] % borrowed != 0)),
        lambda row: (
            f"torchtitan needs etp of 1 or tp, and ep a multiple of cp*tp/etp (etp={row['etp']}, tp={row['tp']}, "
            f"cp={row['cp']}, ep={row['ep']})"
        ),
    )


@rule("framework ep etp", "etp", "torchtitan distributed/parallel_dims.py: etp only beside ep")
def torchtitan_etp_follows_tp(facts: Facts, view: View) -> Finding:
    """Without expert parallelism torchtitan cuts experts as it cuts everything else."""
    return Finding(
        view.equals("framework", "fsdp2") & (view["ep"] == 1) & (view["etp"] > 1),
        lambda row: f"torchtitan has no etp={row['etp']} without expert parallelism",
        lambda row: "use etp=1, or ep of 2 or more",
    )


@rule("framework precision", "precision", "torchtitan config: mixed_precision_param is bfloat16 or float32; no scaler")
def fsdp_has_no_fp16(facts: Facts, view: View) -> Finding:
    """fp16 needs a loss scaler, which torchtitan does not have."""
    return Finding(
        view.equals("framework", "fsdp2") & view.equals("precision", "fp16"),
        lambda row: "fp16 needs a loss scaler, which torchtitan does not have",
        lambda row: "use precision: bf16, or another framework",
    )


@rule("framework offload_fraction", "offload_fraction", "PyTorch CPUOffloadPolicy: all or nothing, parameters included")
def fsdp_offloads_whole(facts: Facts, view: View) -> Finding:
    """FSDP2's offload policy moves parameters too; a part of the optimizer state cannot be offloaded."""
    return Finding(
        view.equals("framework", "fsdp2") & (view["offload_fraction"] > 0),
        lambda row: "FSDP2 cannot offload a part of the optimizer state alone",
        lambda row: "set optimizer.offload_fraction: 0, or use framework: megatron",
    )


@rule("framework dispatcher", "dispatcher", "torchtitan: alltoall, deepep, hybridep; deepspeed.moe: alltoall")
def dispatcher_exists(facts: Facts, view: View) -> Finding:
    """Not every framework has every dispatcher."""
    return Finding(
        (view.equals("framework", "fsdp2") & view.equals("dispatcher", "allgather"))
        | (view.equals("framework", "deepspeed") & ~view.equals("dispatcher", "alltoall")),
        lambda row: f"{row['framework']} has no {row['dispatcher']} dispatcher",
        lambda row: "use dispatcher: alltoall",
    )


@rule("framework cp cp_comm", "cp_comm", "torchtitan: ring attention; DeepSpeed: Ulysses sequence parallelism only")
def context_parallelism_exists(facts: Facts, view: View) -> Finding:
    """DeepSpeed's context parallelism is all-to-all (Ulysses), torchtitan's is a ring or an all-gather."""
    ulysses = view.equals("cp_comm", "a2a")
    return Finding(
        (view["cp"] > 1)
        & ((view.equals("framework", "deepspeed") & ~ulysses) | (view.equals("framework", "fsdp2") & ulysses)),
        lambda row: f"{row['framework']} has no {row['cp_comm']} context parallelism",
        lambda row: "use cp_comm: a2a" if row["framework"] == "deepspeed" else "use cp_comm: p2p or allgather",
    )


@rule(
    "framework sharding pp",
    "sharding pp",
    "DeepSpeed pipe/engine.py: ZeRO-2 and ZeRO-3 are incompatible with pipelines",
)
def deepspeed_pipeline_sharding(facts: Facts, view: View) -> Finding:
    """DeepSpeed's pipeline engine accumulates whole gradients."""
    return Finding(
        view.equals("framework", "deepspeed") & (view["pp"] > 1) & (view["sharding"] >= 2),
        lambda row: f"DeepSpeed refuses ZeRO-{row['sharding']} with pipeline parallelism (pp={row['pp']})",
        lambda row: "use sharding 0 or 1, or pp=1",
    )


@rule("framework vpp pipeline_layout", "vpp", "DeepSpeed pipe/module.py: PipelineModule partitions, no virtual stages")
def deepspeed_has_no_virtual_stages(facts: Facts, view: View) -> Finding:
    """DeepSpeed neither interleaves nor reads Megatron's layouts."""
    return Finding(
        view.equals("framework", "deepspeed") & ((view["vpp"] > 1) | ~view.equals("pipeline_layout", None)),
        lambda row: "DeepSpeed has no virtual pipeline stages and no pipeline layouts",
        lambda row: "use vpp=1 without a layout",
    )


@rule("framework sharding ep", "sharding ep", "DeepSpeed engine.py: 'MoE not supported with Stage 3'")
def deepspeed_experts_sharding(facts: Facts, view: View) -> Finding:
    """DeepSpeed's expert parallelism stops at ZeRO-2."""
    return Finding(
        view.equals("framework", "deepspeed") & (view["ep"] > 1) & (view["sharding"] >= 3),
        lambda row: f"DeepSpeed refuses expert parallelism (ep={row['ep']}) with ZeRO-3",
        lambda row: "use sharding 2 or less, or ep=1",
    )


@rule("framework sharding tp", "sharding tp", "DeepSpeed AutoTP training: ZeRO stages 0 to 2")
def deepspeed_tensor_sharding(facts: Facts, view: View) -> Finding:
    """DeepSpeed's tensor parallelism stops at ZeRO-2."""
    return Finding(
        view.equals("framework", "deepspeed") & (view["tp"] > 1) & (view["sharding"] >= 3),
        lambda row: f"DeepSpeed refuses tensor parallelism (tp={row['tp']}) with ZeRO-3",
        lambda row: "use sharding 2 or less, or tp=1",
    )


@rule(
    "framework tp etp", "etp", "deepspeed.moe: experts are whole, or cut as everything else (expert tensor parallelism)"
)
def deepspeed_etp(facts: Facts, view: View) -> Finding:
    """DeepSpeed cuts experts over the tp group or not at all."""
    return Finding(
        view.equals("framework", "deepspeed") & (view["etp"] > 1) & (view["etp"] != view["tp"]),
        lambda row: (
            f"DeepSpeed cuts experts over the tp group (tp={row['tp']}) or not at all, not over etp={row['etp']}"
        ),
        lambda row: f"use etp=1 or etp={row['tp']}",
    )
