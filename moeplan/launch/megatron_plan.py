"""A plan's parallelism, batch, precision, optimizer, recompute, experts and overlap in Megatron-LM's flags."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil

from moeplan.estimator.layout import even_chunks
from moeplan.frameworks.megatron_flags import (
    DISPATCHERS,
    FP8_RECIPES,
    GRADIENTS,
    PRECISIONS,
    SHARDING,
    SWITCHES,
    TF32_VARIABLE,
    VALUE_FLAGS,
    Words,
)
from moeplan.launch.megatron_words import FlagList, operators
from moeplan.operators.mlp import DenseMLP
from moeplan.plan import Plan

_BY_KEY = {entry.key: entry for entry in VALUE_FLAGS}


def plan_flags(plan: Plan) -> dict[str, FlagList]:
    """The plan in Megatron's flags: section -> flag -> words. The model's own flags are ``megatron_model``'s."""
    sections = {
        "parallelism": _parallel(plan),
        "batch": _batch(plan),
        "precision": dict(precision_words(plan)),
        "optimizer and data parallelism": _optimizer(plan),
        "recompute and offload": _recompute(plan),
        "kernels": _kernels(plan),
    }
    if plan.architecture().moe is not None:
        sections["experts: dispatch and overlap"] = _dispatch(plan)
    return {title: flags for title, flags in sections.items() if flags}


def sequence_parallel(plan: Plan) -> bool:
    """Whether sequence parallelism is on: as asked, by default wherever ``tp`` > 1."""
    return plan.parallel.tp > 1 and plan.parallel.sp is not False


def overlaps_param_gather(plan: Plan) -> bool:
    """Whether ``--overlap-param-gather`` has something to gather and is allowed."""
    return plan.overlap.param_gather and plan.overlap.grad_reduce and plan.optimizer.sharding >= 1


def precision_words(plan: Plan) -> Words:
    """The flags of the plan's precision; ``fp8`` is written as the recipe that the GPU has kernels for."""
    if plan.precision != "fp8":
        return PRECISIONS[plan.precision]
    # Transformer Engine's Float8BlockScaling runs on Hopper (compute capability 9.0); elsewhere one scale per tensor.
    return FP8_RECIPES["blockwise" if plan.gpu().machine().compute_capability == 90 else "tensorwise"]


def environment(plan: Plan) -> dict[str, tuple[str, str]]:
    """Variables that the configuration needs: name -> (value, why)."""
    machine = plan.gpu().machine()
    older = machine.compute_capability < 100
    parallel, sharded = plan.parallel, plan.optimizer.sharding >= 2
    needed: dict[str, tuple[str, str]] = {}
    # megatron/training/arguments.py, validate_args: 1 for tp or cp before Blackwell, never 1 with FSDP.
    if sharded:
        needed["CUDA_DEVICE_MAX_CONNECTIONS"] = ("8", "Megatron-FSDP refuses 1")
    elif plan.overlap.ep:
        needed["CUDA_DEVICE_MAX_CONNECTIONS"] = ("32", "expert communication overlaps on streams of its own")
    elif older and (parallel.tp > 1 or parallel.cp > 1):
        needed["CUDA_DEVICE_MAX_CONNECTIONS"] = ("1", "tensor and context parallelism rely on launch order")
    needed["PYTORCH_CUDA_ALLOC_CONF"] = ("expandable_segments:True", "less fragmentation")
    needed["TORCH_NCCL_AVOID_RECORD_STREAMS"] = ("1", "frees communication buffers early")
    needed["NCCL_NVLS_ENABLE"] = ("0", "NVLink SHARP would reserve memory")
    if plan.kernels.cuda_graphs:
        needed["NCCL_GRAPH_REGISTER"] = ("0", "CUDA graphs with expandable segments")
    if plan.activation_offload.modules:
        needed["NVTE_CPU_OFFLOAD_V1"] = ("1", "fine-grained activation offloading")
    if plan.precision == "tf32":
        needed[TF32_VARIABLE[0]] = (TF32_VARIABLE[1], "matrix products of fp32 in TF32")
    elif plan.precision == "fp32":
        needed["NVIDIA_TF32_OVERRIDE"] = ("0", "no TF32 behind fp32's back")
    if plan.architecture().moe is not None and plan.moe.dispatcher == "hybridep":
        domain = machine.nvlink_domain
        ranks = str(min(parallel.ep * parallel.etp, domain))
        needed["NUM_OF_HYBRID_EP_RANKS_PER_NVLINK_DOMAIN"] = (ranks, "expert ranks that share NVLink")
        needed["NVLINK_DOMAIN_SIZE"] = (str(domain), "")
        needed["USE_MNNVL"] = ("1" if domain > plan.gpus_per_node else "0", "NVLink across nodes")
    return needed


def _value(key: str, value: object) -> FlagList:
    entry = _BY_KEY[key]
    return {entry.flag: (entry.word(value),)}


def _switch(key: str) -> FlagList:
    return {SWITCHES[key][0]: ()}


def _parallel(plan: Plan) -> FlagList:
    parallel = plan.parallel
    flags: FlagList = {}
    for name in ("tp", "pp", "cp", "ep"):
        flags |= _value(f"parallel.{name}", getattr(parallel, name))
    flags |= _value("parallel.etp", parallel.etp)  # the parser's default is tp, not 1
    if sequence_parallel(plan):
        flags |= _switch("parallel.sp")
    if parallel.cp > 1:
        flags |= _value("parallel.cp_comm", parallel.cp_comm)
    if parallel.pipeline_layout is not None:
        flags |= _value("parallel.pipeline_layout", parallel.pipeline_layout)
        return flags
    if parallel.vpp > 1:
        flags |= _value("parallel.vpp", parallel.vpp)
    layers, virtual = len(plan.architecture().layers), parallel.pp * parallel.vpp
    if layers % virtual and even_chunks(parallel.pp, parallel.vpp, layers, 0) is not None:
        flags["--account-for-embedding-in-pipeline-split"] = ()
        flags["--account-for-loss-in-pipeline-split"] = ()
    return flags


def _batch(plan: Plan) -> FlagList:
    batch = plan.batch
    return (
        _value("batch.sequence_length", batch.sequence_length)
        | _value("batch.micro_batch_size", batch.micro_batch_size)
        | _value("batch.global_batch_size", plan.global_batch_size)
    )


def _optimizer(plan: Plan) -> FlagList:
    optimizer = plan.optimizer
    flags = _value("optimizer.name", optimizer.name) | dict(SHARDING[optimizer.sharding])
    if optimizer.sharding >= 2:
        flags["--ckpt-format"] = ("fsdp_dtensor",)
    # fp16 has no flag for narrow gradients: without the wide ones they are fp16.
    unsaid = plan.precision == "fp16" and optimizer.gradient_dtype != "fp32"
    if plan.precision not in ("fp32", "tf32") and not unsaid:
        flags |= dict(GRADIENTS[optimizer.gradient_dtype])
    if optimizer.state_dtype != "fp32" or optimizer.offload_fraction > 0:
        flags["--use-precision-aware-optimizer"] = ()
        if optimizer.gradient_dtype == "bf16" and plan.precision != "fp16":
            flags["--main-grads-dtype"] = ("bf16",)
        flags["--exp-avg-dtype"] = (optimizer.state_dtype,)
        flags["--exp-avg-sq-dtype"] = (optimizer.state_dtype,)
    if optimizer.offload_fraction > 0:
        flags["--optimizer-cpu-offload"] = ()
        flags["--optimizer-offload-fraction"] = (str(optimizer.offload_fraction),)
        flags["--overlap-cpu-optimizer-d2h-h2d"] = ()
    if plan.overlap.grad_reduce:
        flags |= _switch("overlap.grad_reduce")
    if overlaps_param_gather(plan):
        flags |= _switch("overlap.param_gather")
    if plan.overlap.tp and sequence_parallel(plan):
        flags |= _switch("overlap.tp")
    return flags


def _recompute(plan: Plan) -> FlagList:
    recompute = plan.recompute
    flags: FlagList = {}
    if recompute.granularity != "none":
        flags["--recompute-granularity"] = (recompute.granularity,)
    if recompute.granularity == "selective":
        flags["--recompute-modules"] = recompute.modules
    elif recompute.granularity == "full":
        method, layers = full_recompute(plan)
        flags |= _value("recompute.method", method) | _value("recompute.layers", layers)
    if plan.activation_offload.modules:
        flags["--fine-grained-activation-offloading"] = ()
        flags["--offload-modules"] = plan.activation_offload.modules
        flags |= _value("activation_offload.fraction", plan.activation_offload.fraction)
    return flags


def full_recompute(plan: Plan) -> tuple[str, int]:
    """Method and number of layers of full recomputation, which Megatron wants spelled out."""
    method, layers = plan.recompute.method, plan.recompute.layers
    if method is None:
        method = "uniform" if layers is None else "block"
    if layers is None:
        # All layers: checkpoints of one layer each, or as many layers of a block as the fullest stage has.
        layers = 1 if method == "uniform" else ceil((len(plan.architecture().layers) + 2) / plan.parallel.pp)
    return method, layers


def _kernels(plan: Plan) -> FlagList:
    flags: FlagList = {"--transformer-impl": ("transformer_engine",)}
    # auto picks flash or cuDNN's fused attention, whichever knows the head widths, masks and sinks.
    flags["--attention-backend"] = ("auto" if plan.kernels.flash_attention else "unfused",)
    # No --cross-entropy-loss-fusion: the parser refuses Transformer Engine's (arguments.py), and the native one keeps
    # more fp32 copies of the logits than the unfused loss does (as_run in megatron.py).
    if not plan.kernels.fused_gradient_accumulation:
        flags |= _switch("kernels.fused_gradient_accumulation")
    if plan.kernels.cuda_graphs:
        flags["--cuda-graph-impl"] = ("transformer_engine",)
        flags["--cuda-graph-modules"] = tuple(_graphed(plan))
        flags["--te-rng-tracker"] = ()
    return flags


def _graphed(plan: Plan) -> list[str]:
    """Parts of a layer that a CUDA graph may hold (transformer_config.py, cuda_graph_modules)."""
    modules = ["attn"]
    architecture = plan.architecture()
    if operators(architecture, DenseMLP):
        modules.append("mlp")
    if architecture.moe is not None and "moe" not in plan.recompute.modules:
        modules.append("moe_router")
        if plan.moe.capacity_factor is None and not _pads_for_quantization(plan):
            modules.append("moe_preprocess")
    return modules


def _pads_for_quantization(plan: Plan) -> bool:
    return plan.precision in ("fp8", "mxfp8", "nvfp4") and plan.moe.dispatcher != "allgather"


def _dispatch(plan: Plan) -> FlagList:
    flags: FlagList = dict(DISPATCHERS[plan.moe.dispatcher])
    machine = plan.gpu().machine()
    if machine.compute_capability >= 80 or machine.compute_capability == 0:
        flags["--moe-grouped-gemm"] = ()
    flags["--moe-permute-fusion"] = ()
    if plan.moe.capacity_factor is not None:
        flags |= _value("moe.capacity_factor", plan.moe.capacity_factor)
        flags["--moe-token-drop-policy"] = ("probs",)
    if _pads_for_quantization(plan):
        flags["--moe-router-padding-for-quantization"] = ()
    if plan.overlap.ep:
        flags |= _switch("overlap.ep")
        flags["--delay-wgrad-compute"] = ()
    return flags


def flat(sections: Mapping[str, FlagList]) -> FlagList:
    """All sections in one mapping."""
    return {flag: words for flags in sections.values() for flag, words in flags.items()}


def arguments_of_plan(plan: Plan) -> FlagList:
    """Every flag of the plan in one mapping, the model's own apart."""
    return flat(plan_flags(plan))
