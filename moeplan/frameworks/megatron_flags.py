"""Which Megatron-LM flags stand for which keys of a plan: the one table that writing and reading launch files share.

Names and defaults are those of megatron-core 0.19.2, ``megatron/training/arguments.py``. A flag's values are a tuple of
words, empty for a switch. :func:`plan_values` is the exact inverse of what ``launch`` writes: a launch file carries
(``frameworks/carried.py``) precisely those plan keys that :func:`plan_values` would read differently or not at all.

Flags of the model itself (widths, experts, routing) are not here: ``launch/megatron_model.py`` writes them from an
:class:`~moeplan.model.architecture.Architecture`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Flags: TypeAlias = Mapping[str, tuple[str, ...]]
Words: TypeAlias = tuple[tuple[str, tuple[str, ...]], ...]

UNSAID: Any = object()
"""In :attr:`ValueFlag.absent`: without the flag, the script says nothing about the key."""


@dataclass(frozen=True, slots=True)
class ValueFlag:
    """A flag with one value.

    Attributes:
        key: Dotted key of the plan.
        flag: The flag.
        kind: ``int``, ``float`` or ``str``.
        absent: What Megatron does without the flag, as a plan value, or :data:`UNSAID`.
        names: Plan value -> flag value where they differ.
    """

    key: str
    flag: str
    kind: type
    absent: Any
    names: Mapping[str, str] = field(default_factory=dict)

    def word(self, value: Any) -> str:
        """The flag's value for a plan value."""
        return self.names.get(value, str(value)) if isinstance(value, str) else str(value)

    def value(self, word: str) -> Any:
        """The plan value for a flag's value (raises ValueError when the word is not of the flag's kind)."""
        return self.kind({there: here for here, there in self.names.items()}.get(word, word))


VALUE_FLAGS: tuple[ValueFlag, ...] = (
    ValueFlag("batch.sequence_length", "--seq-length", int, UNSAID),
    ValueFlag("batch.micro_batch_size", "--micro-batch-size", int, UNSAID),
    # Absent: one micro batch per data-parallel rank.
    ValueFlag("batch.global_batch_size", "--global-batch-size", int, UNSAID),
    ValueFlag("parallel.tp", "--tensor-model-parallel-size", int, 1),
    ValueFlag("parallel.pp", "--pipeline-model-parallel-size", int, 1),
    ValueFlag("parallel.cp", "--context-parallel-size", int, 1),
    ValueFlag("parallel.ep", "--expert-model-parallel-size", int, 1),
    # Absent: the tensor-parallel size, not 1 (``plan_values`` fills it in).
    ValueFlag("parallel.etp", "--expert-tensor-parallel-size", int, UNSAID),
    ValueFlag(
        "parallel.cp_comm",
        "--cp-comm-type",
        str,
        "p2p",
        {"p2p": "p2p", "a2a": "a2a", "allgather": "all_gather"},
    ),
    ValueFlag("parallel.vpp", "--num-virtual-stages-per-pipeline-rank", int, 1),
    ValueFlag("parallel.pipeline_layout", "--pipeline-model-parallel-layout", str, None),
    ValueFlag("optimizer.name", "--optimizer", str, "adam"),
    ValueFlag("optimizer.state_dtype", "--exp-avg-dtype", str, "fp32"),
    ValueFlag("recompute.method", "--recompute-method", str, None),
    ValueFlag("recompute.layers", "--recompute-num-layers", int, None),
    ValueFlag("activation_offload.fraction", "--activation-offload-fraction", float, 1.0),
    ValueFlag("moe.top_k", "--moe-router-topk", int, UNSAID),
    ValueFlag("moe.capacity_factor", "--moe-expert-capacity-factor", float, None),
    ValueFlag("mtp_layers", "--mtp-num-layers", int, 0),
)

SWITCHES: Mapping[str, tuple[str, bool]] = {
    "parallel.sp": ("--sequence-parallel", True),
    "overlap.grad_reduce": ("--overlap-grad-reduce", True),
    "overlap.param_gather": ("--overlap-param-gather", True),
    "overlap.tp": ("--tp-comm-overlap", True),
    "overlap.ep": ("--overlap-moe-expert-parallel-comm", True),
    "kernels.fused_cross_entropy": ("--cross-entropy-loss-fusion", True),
    "kernels.fused_gradient_accumulation": ("--no-gradient-accumulation-fusion", False),
}
"""Key -> (flag, what its presence means)."""

RECOMPUTE_GRANULARITY = "--recompute-granularity"
RECOMPUTE_MODULES = "--recompute-modules"
OFFLOAD_MODULES = "--offload-modules"
OPTIMIZER_OFFLOAD = "--optimizer-cpu-offload"
OPTIMIZER_OFFLOAD_FRACTION = "--optimizer-offload-fraction"
PRECISION_AWARE = "--use-precision-aware-optimizer"
ATTENTION_BACKEND = "--attention-backend"
CUDA_GRAPHS = "--cuda-graph-impl"

DISPATCHERS: Mapping[str, Words] = {
    "alltoall": (("--moe-token-dispatcher-type", ("alltoall",)),),
    # The parser's default: a script without the flag gathers.
    "allgather": (("--moe-token-dispatcher-type", ("allgather",)),),
    # The back end alone does nothing: the type must be flex.
    "deepep": (("--moe-token-dispatcher-type", ("flex",)), ("--moe-flex-dispatcher-backend", ("deepep",))),
    "hybridep": (("--moe-token-dispatcher-type", ("flex",)), ("--moe-flex-dispatcher-backend", ("hybridep",))),
}

SHARDING: Mapping[int, Words] = {
    0: (),
    1: (("--use-distributed-optimizer", ()),),
    # Megatron-FSDP stands for ZeRO 2 and 3: the distributed optimizer keeps whole gradients.
    2: (
        ("--use-distributed-optimizer", ()),
        ("--use-megatron-fsdp", ()),
        ("--data-parallel-sharding-strategy", ("optim_grads",)),
    ),
    3: (
        ("--use-distributed-optimizer", ()),
        ("--use-megatron-fsdp", ()),
        ("--data-parallel-sharding-strategy", ("optim_grads_params",)),
    ),
}
FSDP_STRATEGIES: Mapping[str, int] = {"no_shard": 0, "optim": 1, "optim_grads": 2, "optim_grads_params": 3}

GRADIENTS: Mapping[str, Words] = {
    "fp32": (("--accumulate-allreduce-grads-in-fp32", ()),),
    "bf16": (("--grad-reduce-in-bf16", ()),),
}

PRECISIONS: Mapping[str, Words] = {
    "fp32": (),
    # No flag: PyTorch reads TF32 from the environment (see :data:`TF32_VARIABLE`).
    "tf32": (),
    "fp16": (("--fp16", ()),),
    "bf16": (("--bf16", ()),),
    "mxfp8": (("--bf16", ()), ("--fp8-format", ("e4m3",)), ("--fp8-recipe", ("mxfp8",))),
    "nvfp4": (("--bf16", ()), ("--fp4-format", ("e2m1",)), ("--fp4-recipe", ("nvfp4",))),
}
FP8_RECIPES: Mapping[str, Words] = {
    # 128-element blocks, as DeepSeek-V3 trained; Transformer Engine has the kernels for Hopper.
    "blockwise": (("--bf16", ()), ("--fp8-format", ("e4m3",)), ("--fp8-recipe", ("blockwise",))),
    # One scale per tensor, taken from the tensor itself: runs wherever there is FP8.
    "tensorwise": (("--bf16", ()), ("--fp8-format", ("hybrid",)), ("--fp8-recipe", ("tensorwise",))),
}
"""What ``precision: fp8`` is written as; on reading, any recipe that is not mxfp8 is fp8."""

TF32_VARIABLE = ("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "1")
"""PyTorch runs fp32 matrix products in TF32 when this is set (aten/src/ATen/Context.h, allow_tf32_cublas_override)."""


def plan_values(flags: Flags, environment: Mapping[str, str]) -> dict[str, Any]:
    """What Megatron's flags say about a plan: dotted key -> value.

    Keys that the flags leave open are absent. MoE keys (``moe.*``, ``overlap.ep``) appear only with ``--num-experts``,
    multi-token prediction always (0 when not asked for), ``parallel.vpp`` follows the layout where there is one.

    Args:
        flags: Flag -> its words, for every flag of the script.
        environment: Variables that the script exports.

    Raises:
        ValueError: A value is not of its flag's kind.
    """
    values: dict[str, Any] = {}
    for entry in VALUE_FLAGS:
        if entry.flag in flags:
            values[entry.key] = entry.value(flags[entry.flag][0])
        elif entry.absent is not UNSAID:
            values[entry.key] = entry.absent
    values.setdefault("parallel.etp", values["parallel.tp"])
    for key, (flag, presence) in SWITCHES.items():
        values[key] = presence if flag in flags else not presence
    if values["parallel.pipeline_layout"] is not None:
        from moeplan.estimator.layout import parse_layout

        values["parallel.vpp"] = len(parse_layout(values["parallel.pipeline_layout"])) // values["parallel.pp"] or 1
    values["precision"] = _precision(flags, environment)
    values |= _optimizer_values(flags, values["precision"])
    values["recompute.granularity"] = flags[RECOMPUTE_GRANULARITY][0] if RECOMPUTE_GRANULARITY in flags else "none"
    default_modules = ("core_attn",) if values["recompute.granularity"] == "selective" else ()
    values["recompute.modules"] = flags.get(RECOMPUTE_MODULES, default_modules)
    values["activation_offload.modules"] = flags.get(OFFLOAD_MODULES, ())
    values["kernels.flash_attention"] = flags.get(ATTENTION_BACKEND, ("auto",))[0] not in ("unfused", "local")
    values["kernels.cuda_graphs"] = flags.get(CUDA_GRAPHS, ("none",))[0] != "none"
    values["moe.dispatcher"] = _dispatcher(flags)
    values["framework"] = "megatron"
    if "--num-experts" not in flags:
        values = {key: value for key, value in values.items() if not key.startswith("moe.") and key != "overlap.ep"}
    return values


def _precision(flags: Flags, environment: Mapping[str, str]) -> str:
    if "--fp4-format" in flags:
        return "nvfp4"
    if "--fp8-format" in flags:
        return "mxfp8" if flags.get("--fp8-recipe", ("delayed",))[0] == "mxfp8" else "fp8"
    if "--bf16" in flags:
        return "bf16"
    if "--fp16" in flags:
        return "fp16"
    return "tf32" if environment.get(TF32_VARIABLE[0]) == TF32_VARIABLE[1] else "fp32"


def _optimizer_values(flags: Flags, precision: str) -> dict[str, Any]:
    if "--use-megatron-fsdp" in flags:
        strategy = flags.get("--data-parallel-sharding-strategy", ("optim_grads_params",))[0]
        sharding = FSDP_STRATEGIES.get(strategy, 3)
    else:
        sharding = 1 if "--use-distributed-optimizer" in flags else 0
    narrow = "--grad-reduce-in-bf16" in flags or flags.get("--main-grads-dtype", ("fp32",))[0] == "bf16"
    if precision == "fp16":
        # Gradients have the parameters' type unless asked for wider: fp16, as narrow as bf16.
        narrow = "--accumulate-allreduce-grads-in-fp32" not in flags
    elif precision in ("fp32", "tf32"):
        narrow = False
    offload = 0.0
    if OPTIMIZER_OFFLOAD in flags:
        offload = float(flags.get(OPTIMIZER_OFFLOAD_FRACTION, ("1.0",))[0])
    return {
        "optimizer.sharding": sharding,
        "optimizer.gradient_dtype": "bf16" if narrow else "fp32",
        "optimizer.offload_fraction": offload,
    }


def _dispatcher(flags: Flags) -> str:
    kind = flags.get("--moe-token-dispatcher-type", ("allgather",))[0]
    if kind == "flex":
        return flags.get("--moe-flex-dispatcher-backend", ("deepep",))[0]
    return kind
