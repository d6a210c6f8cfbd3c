"""Megatron-LM's arguments of a run (parallelism, batch, optimizer, recomputation, kernels) as a plan's keys.

Semantics and defaults: Megatron-LM, megatron/training/arguments.py (parser and ``validate_args``) and
megatron/core/transformer/transformer_config.py, megatron-core 0.19.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moeplan.errors import PlanError
from moeplan.frameworks.megatron_flags import TF32_VARIABLE
from moeplan.importers.megatron_flags import Flags
from moeplan.importers.megatron_layout import pipeline
from moeplan.importers.megatron_script import Launch
from moeplan.plan import OFFLOAD_MODULES, RECOMPUTE_MODULES

_SHARDING = {"no_shard": 0, "optim": 1, "optim_grads": 2, "optim_grads_params": 3}
_CP_COMM = {"p2p": "p2p", "a2a": "a2a", "all_gather": "allgather", "allgather": "allgather"}
_OPTIMIZERS = ("adam", "sgd", "muon", "lion")
_TYPES = ("fp32", "fp16", "bf16", "fp8")


def plan_mapping(flags: Flags, launch: Launch, document: Mapping[str, Any], world: int) -> dict[str, Any]:
    """The plan's keys but ``model`` and ``hardware``."""
    is_moe = "moe" in document
    mtp = int(document.get("mtp_layers", 0))
    parallel = _parallel(flags, is_moe, int(document["layers"]), mtp)
    dp = _data_parallel(flags, parallel, world, document)
    micro = flags.required("micro-batch-size")
    whole = flags.integer("global-batch-size") or micro * dp
    if whole % (micro * dp):
        raise PlanError(
            flags.where,
            f"--global-batch-size {whole} is no multiple of --micro-batch-size {micro} times {dp} data-parallel ranks",
            "check --gpus: Megatron-LM refuses this too",
        )
    plan = {
        "batch": {
            "sequence_length": flags.required("seq-length", "encoder-seq-length"),
            "micro_batch_size": micro,
            "global_batch_size": whole,
        },
        "parallel": parallel,
        "precision": _precision(flags, launch),
        "optimizer": _optimizer(flags),
        "recompute": _recompute(flags),
        "kernels": _kernels(flags, launch),
        "framework": "megatron",
        "overlap": {
            "grad_reduce": flags.has("overlap-grad-reduce"),
            "param_gather": flags.has("overlap-param-gather"),
            "tp": flags.has("tp-comm-overlap"),
            "ep": flags.has("overlap-moe-expert-parallel-comm"),
        },
    }
    if flags.has("use-torch-fsdp2"):
        plan["framework"] = "fsdp2"
    offload = _activation_offload(flags)
    if offload:
        plan["activation_offload"] = offload
    if is_moe:
        plan["moe"] = _moe(flags)
    return plan


def _parallel(flags: Flags, is_moe: bool, layers: int, mtp: int) -> dict[str, Any]:
    tp = flags.count("tensor-model-parallel-size", 1)
    pp = flags.count("pipeline-model-parallel-size", 1)
    expert = flags.count("expert-tensor-parallel-size", tp)
    ep = flags.count("expert-model-parallel-size", 1)
    if not is_moe and ep > 1:
        raise PlanError(flags.where, f"--expert-model-parallel-size {ep} without --num-experts", "drop it")
    found: dict[str, Any] = {
        "tp": tp,
        "pp": pp,
        "cp": flags.count("context-parallel-size", 1),
        "ep": ep,
        "etp": expert if is_moe else 1,
    }
    sequence = flags.has("sequence-parallel")
    if tp > 1 and not sequence:
        found["sp"] = False
    found |= pipeline(flags, pp, layers, mtp)
    exchange = flags.words("cp-comm-type")
    if exchange:
        if exchange[0] not in _CP_COMM or len(set(exchange)) > 1:
            flags.lose("cp-comm-type", "the plan has p2p, a2a or allgather, the same in every layer")
        found["cp_comm"] = _CP_COMM.get(exchange[0], "p2p")
    group = flags.integer("microbatch-group-size-per-virtual-pipeline-stage")
    if group is not None and group != pp:
        flags.lose(
            "microbatch-group-size-per-virtual-pipeline-stage", "the plan interleaves in groups of pp micro batches"
        )
    return found


def _data_parallel(flags: Flags, parallel: Mapping[str, Any], world: int, document: Mapping[str, Any]) -> int:
    """The data-parallel degree, where both grids divide the world as Megatron demands (parallel_state.py)."""
    dense = parallel["tp"] * parallel["pp"] * parallel["cp"]
    if world % dense:
        raise PlanError(flags.where, f"tp*pp*cp = {dense} does not divide {world} GPUs", "check --gpus")
    experts = parallel["pp"] * parallel["ep"] * parallel["etp"]
    if world % experts:
        raise PlanError(flags.where, f"pp*ep*etp = {experts} does not divide {world} GPUs", "check --gpus")
    moe = document.get("moe")
    if moe is not None and moe["experts"] % parallel["ep"]:
        raise PlanError(flags.where, f"ep = {parallel['ep']} does not divide {moe['experts']} experts", "change ep")
    return int(world // dense)


def _precision(flags: Flags, launch: Launch) -> str:
    eight, four = flags.text("fp8-format"), flags.text("fp4-format")
    if eight is not None and four is not None:
        raise PlanError(flags.where, "--fp8-format and --fp4-format exclude each other", "keep one")
    half, brain = flags.has("fp16"), flags.has("bf16")
    if half and brain:
        raise PlanError(flags.where, "--fp16 and --bf16 exclude each other", "keep one")
    if four is not None:
        if flags.text("fp4-recipe", "nvfp4") != "nvfp4":
            flags.lose("fp4-recipe", "the plan knows nvfp4")
        return "nvfp4"
    recipe = flags.text("fp8-recipe", "delayed")
    if eight is not None:
        if recipe == "custom":
            flags.lose("fp8-recipe", "the plan knows the standard recipes")
        return "mxfp8" if recipe == "mxfp8" else "fp8"
    if half or brain:
        return "fp16" if half else "bf16"
    return "tf32" if launch.environment.get(TF32_VARIABLE[0]) == TF32_VARIABLE[1] else "fp32"


def _optimizer(flags: Flags) -> dict[str, Any]:
    name = flags.text("optimizer", "adam") or "adam"
    # dist_muon is the older word for muon with a distributed optimizer (validate_args).
    name = "muon" if name == "dist_muon" else name
    if name not in _OPTIMIZERS:
        flags.lose("optimizer", f"the plan has {', '.join(_OPTIMIZERS)}; priced as adam")
        name = "adam"
    found: dict[str, Any] = {"name": name, "sharding": int(flags.has("use-distributed-optimizer"))}
    if flags.values.get("optimizer") == ("dist_muon",):
        found["sharding"] = 1
    if flags.has("use-megatron-fsdp", "use-custom-fsdp"):
        strategy = flags.choice("data-parallel-sharding-strategy", tuple(_SHARDING), "optim_grads_params")
        found["sharding"] = _SHARDING[strategy]
    elif flags.has("use-torch-fsdp2"):
        found["sharding"] = 3
    else:
        flags.has("data-parallel-sharding-strategy")
    found["gradient_dtype"] = _gradient_dtype(flags)
    first = flags.choice("exp-avg-dtype", _TYPES, "fp32")
    second = flags.choice("exp-avg-sq-dtype", _TYPES, "fp32")
    if flags.has("use-precision-aware-optimizer"):
        if first != second:
            flags.lose("exp-avg-sq-dtype", "the plan has one type for both moments")
        if first == second == "fp32":
            flags.lose("use-precision-aware-optimizer", "the plan has no two-byte remainders of main parameters")
        found["state_dtype"] = first
    if flags.has("optimizer-cpu-offload"):
        fraction = flags.number("optimizer-offload-fraction", 1.0)
        if not 0 <= fraction <= 1:
            raise PlanError(flags.where, f"--optimizer-offload-fraction is {fraction}", "give a number from 0 to 1")
        found["offload_fraction"] = fraction
    else:
        flags.has("optimizer-offload-fraction")
    return found


def _gradient_dtype(flags: Flags) -> str:
    """The type of the gradient buffer: fp32 for bf16 training unless asked otherwise (``validate_args``)."""
    main = flags.choice("main-grads-dtype", ("fp32", "bf16"), "fp32")
    fsdp = flags.choice("megatron-fsdp-main-grads-dtype", ("fp32", "bf16", "fp16", "auto"), "fp32")
    whole = flags.has("accumulate-allreduce-grads-in-fp32")
    if flags.has("grad-reduce-in-bf16") or (main == "bf16" and not whole):
        return "bf16"
    if flags.has("use-megatron-fsdp", "use-custom-fsdp") and fsdp in ("bf16", "fp16"):
        return "bf16"
    # fp16 training keeps gradients in the parameters' two bytes unless told to accumulate in fp32.
    return "fp16" if flags.has("fp16") and not whole else "fp32"


def _recompute(flags: Flags) -> dict[str, Any]:
    granularity = flags.text("recompute-granularity")
    if flags.has("recompute-activations"):
        granularity = "selective"
    method, layers = flags.text("recompute-method"), flags.integer("recompute-num-layers")
    modules = list(flags.words("recompute-modules"))
    if granularity is None and flags.has("moe-layer-recompute"):
        granularity, modules = "selective", ["moe"]
    if granularity is None:
        return {"granularity": "none"}
    if granularity == "full":
        flags.choice("recompute-method", ("uniform", "block"), "uniform")
        if method == "block":
            return {"granularity": "full", "method": "block", "layers": layers or 1}
        # One layer per checkpoint over all layers is what a plan means by full recomputation.
        if (layers or 1) == 1:
            return {"granularity": "full"}
        return {"granularity": "full", "method": "uniform", "layers": layers}
    if granularity != "selective":
        raise PlanError(flags.where, f"--recompute-granularity is {granularity[:60]!r}", "use full or selective")
    if method is not None:
        raise PlanError(flags.where, "--recompute-method goes with full recomputation", "drop it")
    if flags.has("moe-layer-recompute"):
        modules.append("moe")
    known = [module for module in dict.fromkeys(modules or ["core_attn"]) if module in RECOMPUTE_MODULES]
    if len(known) < len(set(modules or known)):
        flags.lose("recompute-modules", f"the plan knows {', '.join(RECOMPUTE_MODULES)}")
    return {"granularity": "selective", "modules": known} if known else {"granularity": "none"}


def _activation_offload(flags: Flags) -> dict[str, Any] | None:
    on = flags.has("fine-grained-activation-offloading")
    modules = flags.words("offload-modules")
    fraction = flags.number("activation-offload-fraction", 1.0)
    if not on or not modules:
        return None
    known = [module for module in dict.fromkeys(modules) if module in OFFLOAD_MODULES]
    if len(known) < len(set(modules)):
        flags.lose("offload-modules", f"the plan knows {', '.join(OFFLOAD_MODULES)}")
    if not 0 <= fraction <= 1:
        raise PlanError(flags.where, f"--activation-offload-fraction is {fraction}", "give a number from 0 to 1")
    return {"modules": known, "fraction": fraction}


def _moe(flags: Flags) -> dict[str, Any]:
    dispatcher = flags.choice(
        "moe-token-dispatcher-type", ("allgather", "alltoall", "alltoall_seq", "flex"), "allgather"
    )
    backend = flags.choice("moe-flex-dispatcher-backend", ("deepep", "hybridep", "ncclep"), "deepep")
    if flags.has("moe-enable-deepep"):
        backend = "deepep"
    if dispatcher == "flex":
        if backend == "ncclep":
            flags.lose("moe-flex-dispatcher-backend", "the plan has deepep and hybridep; priced as hybridep")
            backend = "hybridep"
        dispatcher = backend
    found: dict[str, Any] = {"dispatcher": "alltoall" if dispatcher == "alltoall_seq" else dispatcher}
    capacity = flags.number("moe-expert-capacity-factor", 0.0)
    if capacity > 0:
        found["capacity_factor"] = capacity
    return found


def _kernels(flags: Flags, launch: Launch) -> dict[str, Any]:
    implementation = flags.choice(
        "transformer-impl", ("local", "transformer_engine", "inference_optimized"), "transformer_engine"
    )
    if implementation == "local":
        flags.lose("transformer-impl", "the plan's layers are Transformer Engine's")
    backend = (flags.text("attention-backend", "auto") or "auto").rpartition(".")[2]
    unfused = backend in ("unfused", "local") or (implementation == "local" and not flags.has("use-flash-attn"))
    # Transformer Engine's switches, which --attention-backend sets too.
    switches = [launch.environment.get(name) for name in ("NVTE_FLASH_ATTN", "NVTE_FUSED_ATTN")]
    if backend == "auto" and switches == ["0", "0"]:
        unfused = True
    graphs = flags.text("cuda-graph-impl", "none")
    return {
        "fused_cross_entropy": _fused_cross_entropy(flags),
        "fused_gradient_accumulation": not flags.has("no-gradient-accumulation-fusion"),
        "flash_attention": not unfused,
        "cuda_graphs": graphs != "none" or flags.has("enable-cuda-graph", "external-cuda-graph"),
        "dropout": _dropout(flags),
    }


def _fused_cross_entropy(flags: Flags) -> bool:
    """Whether logits stay in 16 bits: Transformer Engine's fusion; Megatron's native one still makes fp32 copies."""
    if not flags.has("cross-entropy-loss-fusion"):
        return False
    if flags.values.get("cross-entropy-fusion-impl") == ("te",):
        return True
    flags.lose("cross-entropy-loss-fusion", "the native fusion keeps fp32 logits, as the unfused loss of the plan does")
    return False


def _dropout(flags: Flags) -> bool:
    """Whether dropout masks are kept; both rates are 0.1 unless they are given (TransformerConfig)."""
    hidden, attention = flags.number("hidden-dropout", 0.1), flags.number("attention-dropout", 0.1)
    if (hidden > 0) != (attention > 0):
        flags.lose("attention-dropout", "the plan has attention and residual dropout both on or both off")
    return hidden > 0
