"""Which models torchtitan has, and which plans its two generations can run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from moeplan.estimator.layout import parse_layout
from moeplan.launch.megatron import whole_nodes
from moeplan.launch.megatron_words import operators
from moeplan.launch.refusal import Refusal
from moeplan.model.architecture import Architecture
from moeplan.operators.attention import Attention, LatentAttention
from moeplan.operators.moe import MoE
from moeplan.plan import Plan


@dataclass(frozen=True)
class Flavor:
    """A model that torchtitan ships.

    Attributes:
        module: Its model's name (``[model] name``, ``--module``).
        name: The flavor.
        base: A configuration function of the module's registry in 0.3, which ours starts from.
        vocabulary, layers, hidden, heads: The architecture's.
        kv_heads: Key/value heads, 0 for latent attention.
        experts, top_k, expert_ffn: The MoE block's, 0 for a dense model.
        versions: Generations that have it: ``0.2.2``, ``0.3``.
    """

    module: str
    name: str
    base: str
    vocabulary: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    experts: int = 0
    top_k: int = 0
    expert_ffn: int = 0
    versions: tuple[str, ...] = ("0.2.2", "0.3")


# torchtitan/models/*/__init__.py of 0.2.2 and 0.3.0.
FLAVORS: tuple[Flavor, ...] = (
    Flavor("llama3", "8B", "llama3_8b", 128256, 32, 4096, 32, 8),
    Flavor("llama3", "70B", "llama3_8b", 128256, 80, 8192, 64, 8),
    Flavor("llama3", "405B", "llama3_8b", 128256, 126, 16384, 128, 8),
    Flavor("qwen3", "0.6B", "qwen3_30b_a3b", 151936, 28, 1024, 16, 8),
    Flavor("qwen3", "1.7B", "qwen3_30b_a3b", 151936, 28, 2048, 16, 8),
    Flavor("qwen3", "4B", "qwen3_30b_a3b", 151936, 36, 2560, 32, 8),
    Flavor("qwen3", "8B", "qwen3_30b_a3b", 151936, 36, 4096, 32, 8),
    Flavor("qwen3", "14B", "qwen3_30b_a3b", 151936, 40, 5120, 40, 8),
    Flavor("qwen3", "32B", "qwen3_30b_a3b", 151936, 64, 5120, 64, 8),
    Flavor("qwen3", "30B-A3B", "qwen3_30b_a3b", 151936, 48, 2048, 32, 4, 128, 8, 768),
    Flavor("qwen3", "235B-A22B", "qwen3_30b_a3b", 151936, 94, 4096, 64, 4, 128, 8, 1536),
    Flavor("deepseek_v3", "16B", "deepseek_v3_16b", 102400, 27, 2048, 16, 0, 64, 6, 1408),
    Flavor("deepseek_v3", "236B", "deepseek_v3_16b", 102400, 60, 5120, 128, 0, 160, 6, 1536),
    Flavor("deepseek_v3", "671B", "deepseek_v3_16b", 129280, 61, 7168, 128, 0, 256, 8, 2048),
    Flavor("gpt_oss", "20b", "gpt_oss_20b", 201088, 24, 2880, 64, 8, 32, 4, 2880),
    Flavor("gpt_oss", "120b", "gpt_oss_20b", 201088, 36, 2880, 64, 8, 128, 4, 2880),
    Flavor("llama4", "17bx16e_irope", "", 202048, 48, 5120, 40, 8, 16, 1, 8192, ("0.2.2",)),
    Flavor("llama4", "17bx128e_irope", "", 202048, 48, 5120, 40, 8, 128, 1, 8192, ("0.2.2",)),
)

# Hugging Face model types whose code each of torchtitan's models is.
_FAMILIES = {
    "llama3": ("llama",),
    "qwen3": ("qwen3", "qwen3_moe"),
    "deepseek_v3": ("deepseek_v2", "deepseek_v3"),
    "gpt_oss": ("gpt_oss",),
    "llama4": ("llama4", "llama4_text"),
}


def flavor_of(architecture: Architecture) -> Flavor | None:
    """The flavor with the architecture's family and shape, or None when torchtitan has none."""
    softmax = [o for o in operators(architecture, Attention) if isinstance(o, Attention)]
    latent = [o for o in operators(architecture, LatentAttention) if isinstance(o, LatentAttention)]
    if not softmax and not latent:
        return None
    heads, kv_heads = (softmax[0].heads, softmax[0].kv_heads) if softmax else (latent[0].heads, 0)
    moe: MoE | None = architecture.moe
    experts = (moe.experts, moe.top_k, moe.expert_ffn) if moe is not None else (0, 0, 0)
    vocabulary = architecture.embedding.vocabulary
    shape = (vocabulary, len(architecture.layers), architecture.hidden, heads, kv_heads, *experts)
    for flavor in FLAVORS:
        theirs = (flavor.vocabulary, flavor.layers, flavor.hidden, flavor.heads, flavor.kv_heads)
        same = shape == (*theirs, flavor.experts, flavor.top_k, flavor.expert_ffn)
        if same and architecture.family in _FAMILIES[flavor.module]:
            return flavor
    return None


def refusals(plan: Plan) -> list[Refusal]:
    """Why neither generation of torchtitan can run the plan, beyond the legality rules that the caller checks."""
    found = whole_nodes(plan) + _model(plan) + _numbers(plan) + _layers(plan)
    if found:
        return found
    old, new = refusals_before_0_3(plan), refusals_since_0_3(plan)
    if not old or not new:
        return []
    # Of the two, the one with the shorter way.
    return new if len(new) <= len(old) else old


def refusals_before_0_3(plan: Plan) -> list[Refusal]:
    """What only torchtitan 0.2.2 and before refuse."""
    flavor, parallel = flavor_of(plan.architecture()), plan.parallel
    found = []
    if flavor is None or "0.2.2" not in flavor.versions:
        found.append(Refusal("torchtitan 0.2.2 does not have the model", "use torchtitan 0.3"))
    elif flavor.module == "qwen3" and parallel.pp > 1:
        # models/qwen3/__init__.py: pipelining_fn=None
        reason = "torchtitan 0.2.2 has no pipeline for Qwen3"
        found.append(Refusal(reason, "set parallel.pp: 1", {"parallel.pp": 1, "parallel.vpp": 1}))
    if parallel.tp > 1 and parallel.sp is False:
        reason = "torchtitan 0.2.2 has tensor parallelism with sequence parallelism only"
        found.append(Refusal(reason, "set parallel.sp: true", {"parallel.sp": True}))
    if plan.moe.dispatcher == "hybridep" and plan.parallel.ep > 1:
        reason = "torchtitan 0.2.2 has no hybridep dispatcher"
        found.append(Refusal(reason, "set moe.dispatcher: alltoall", {"moe.dispatcher": "alltoall"}))
    return found


def refusals_since_0_3(plan: Plan) -> list[Refusal]:
    """What only torchtitan 0.3 and later refuse."""
    flavor, parallel = flavor_of(plan.architecture()), plan.parallel
    found = []
    if flavor is None or "0.3" not in flavor.versions:
        found.append(Refusal("torchtitan 0.3 does not have the model", "use torchtitan 0.2.2"))
    if parallel.etp > 1:
        reason = "torchtitan 0.3 has no expert tensor parallelism"
        found.append(Refusal(reason, "set parallel.etp: 1", {"parallel.etp": 1}))
    if parallel.cp > 1 and parallel.cp_comm != "allgather":
        # ParallelismConfig of 0.3 has no rotate method: keys and values are gathered.
        reason = "torchtitan 0.3 gathers keys and values in context parallelism"
        found.append(Refusal(reason, "set parallel.cp_comm: allgather", {"parallel.cp_comm": "allgather"}))
    return found


def _model(plan: Plan) -> list[Refusal]:
    architecture = plan.architecture()
    if flavor_of(architecture) is None:
        have = ", ".join(f"{flavor.module} {flavor.name}" for flavor in FLAVORS)
        remedy = f"use another target, or a model that it has ({have})"
        return [Refusal(f"torchtitan does not have {architecture.name}", remedy)]
    found = []
    trained = architecture.mtp_layers if plan.mtp_layers is None else plan.mtp_layers
    if trained:
        reason = "torchtitan's configurations of the model train no multi-token prediction"
        changes: dict[str, Any] = {"mtp_layers": 0}
        if plan.parallel.pipeline_layout is not None:
            changes["parallel.pipeline_layout"] = re.sub(r"m(\*\d+)?", "", plan.parallel.pipeline_layout)
        found.append(Refusal(reason, "set mtp_layers: 0", changes))
    moe = architecture.moe
    if moe is not None and plan.moe.top_k not in (None, moe.top_k):
        reason = f"torchtitan's model routes to {moe.top_k} experts"
        found.append(Refusal(reason, "leave moe.top_k unset", {"moe.top_k": None}))
    if moe is not None and plan.moe.capacity_factor is not None:
        reason = "torchtitan drops no tokens"
        found.append(Refusal(reason, "leave moe.capacity_factor unset", {"moe.capacity_factor": None}))
    return found


def _numbers(plan: Plan) -> list[Refusal]:
    found = []
    optimizer = plan.optimizer
    if plan.precision not in ("fp32", "tf32", "bf16", "fp8", "mxfp8"):
        reason = f"torchtitan's configurations train in no {plan.precision}"
        found.append(Refusal(reason, "set precision: bf16", {"precision": "bf16"}))
    for key in ("state_dtype", "gradient_dtype"):
        if getattr(optimizer, key) != "fp32":
            reason = f"torchtitan keeps optimizer state and gradients in fp32 ({key}: {getattr(optimizer, key)})"
            found.append(Refusal(reason, f"set optimizer.{key}: fp32", {f"optimizer.{key}": "fp32"}))
    if optimizer.name != "adam":
        found.append(Refusal("torchtitan has Adam only", "set optimizer.name: adam", {"optimizer.name": "adam"}))
    if optimizer.sharding == 1:
        reason = "FSDP2 shards parameters, gradients and optimizer state together: there is no stage 1"
        found.append(Refusal(reason, "set optimizer.sharding: 3", {"optimizer.sharding": 3}))
    elif optimizer.sharding == 0 and (plan.parallel.ep > 1 or plan.parallel.cp > 1):
        reason = "torchtitan's context and expert parallelism live on the ranks that FSDP shards over"
        found.append(Refusal(reason, "set optimizer.sharding: 3", {"optimizer.sharding": 3}))
    return found


def _layers(plan: Plan) -> list[Refusal]:
    found = []
    parallel, recompute = plan.parallel, plan.recompute
    changes: dict[str, Any]
    if recompute.granularity == "selective":
        # Flash attention recomputes its core anyway; other modules have no counterpart short of the whole layer.
        kind = "none" if set(recompute.modules) == {"core_attn"} else "full"
        changes = {"recompute.granularity": kind, "recompute.modules": []}
        found.append(
            Refusal("torchtitan recomputes operators or layers, not modules", f"set granularity: {kind}", changes)
        )
    if recompute.layers is not None or recompute.method is not None:
        changes = {"recompute.method": None, "recompute.layers": None}
        found.append(
            Refusal("torchtitan recomputes all layers or none", "leave recompute.method and layers unset", changes)
        )
    if parallel.schedule == "dualpipe":
        reason = "torchtitan has DualPipeV, whose ranks hold two chunks of one copy, not DualPipe"
        found.append(Refusal(reason, "set parallel.schedule: 1f1b", {"parallel.schedule": "1f1b"}))
    layout = parallel.pipeline_layout
    chunks = len(parse_layout(layout)) // parallel.pp if layout is not None else parallel.vpp
    if parallel.schedule == "zero_bubble" and parallel.pp > 1 and chunks < 2:
        reason = "torchtitan's zero-bubble schedule has two stages or more on each rank"
        found.append(Refusal(reason, "set parallel.vpp: 2", {"parallel.vpp": 2}))
    if plan.kernels.dropout:
        reason = "torchtitan's models have no dropout"
        found.append(Refusal(reason, "set kernels.dropout: false", {"kernels.dropout": False}))
    if plan.kernels.cuda_graphs:
        reason = "CUDA graphs are off in torchtitan configurations that dispatch to experts"
        found.append(Refusal(reason, "set kernels.cuda_graphs: false", {"kernels.cuda_graphs": False}))
    if plan.overlap.ep:
        reason = "torchtitan overlaps expert communication in DualPipeV only"
        found.append(Refusal(reason, "set overlap.ep: false", {"overlap.ep": False}))
    return found
