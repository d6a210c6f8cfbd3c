"""The plans whose launch files the frameworks judge: every catalog model, in settings that take turns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from moeplan import launch
from moeplan.errors import PlanError
from moeplan.model import load_model, model_names
from moeplan.plan import Plan, load_plan

Setting = dict[str, Any]

# Dotted plan keys. Each model gets several of these in turn; what a model or a GPU does not allow is adapted to the
# nearest that it does, as `--adapt` would.
MEGATRON_SETTINGS: tuple[Setting, ...] = (
    {"hardware.gpu": "h100", "hardware.gpus": 64, "parallel.tp": 2, "parallel.ep": 8, "parallel.pp": 2},
    {"hardware.gpu": "h100", "hardware.gpus": 128, "parallel.pp": 4, "parallel.vpp": 2, "parallel.ep": 16},
    {
        "hardware.gpu": "h100",
        "hardware.gpus": 64,
        "precision": "fp8",
        "parallel.ep": 8,
        "optimizer.state_dtype": "bf16",
    },
    {"hardware.gpu": "b200", "hardware.gpus": 64, "precision": "mxfp8", "parallel.ep": 32, "parallel.tp": 2},
    {
        "hardware.gpu": "gb200",
        "hardware.gpus": 144,
        "precision": "nvfp4",
        "moe.dispatcher": "hybridep",
        "parallel.ep": 8,
    },
    {"hardware.gpu": "h100", "hardware.gpus": 256, "parallel.ep": 32, "moe.dispatcher": "deepep", "parallel.pp": 2},
    {"hardware.gpu": "a100", "hardware.gpus": 64, "precision": "fp16", "parallel.tp": 4, "parallel.ep": 2},
    {"hardware.gpu": "h200", "hardware.gpus": 32, "parallel.cp": 2, "batch.sequence_length": 8192, "parallel.ep": 4},
    {"hardware.gpu": "h100", "hardware.gpus": 64, "optimizer.sharding": 3, "parallel.ep": 4},
    {"hardware.gpu": "h100", "hardware.gpus": 64, "optimizer.sharding": 2, "recompute.granularity": "full"},
    {"hardware.gpu": "h100", "hardware.gpus": 16, "optimizer.sharding": 0, "parallel.ep": 4, "parallel.tp": 2},
    {
        "hardware.gpu": "h100",
        "hardware.gpus": 64,
        "parallel.pp": 4,
        "recompute.granularity": "full",
        "recompute.layers": 2,
        "optimizer.offload_fraction": 0.5,
        "parallel.ep": 4,
    },
    {
        "hardware.gpu": "h100",
        "hardware.gpus": 64,
        "recompute.granularity": "selective",
        "recompute.modules": ["moe_act", "layernorm"],
        "parallel.ep": 8,
        "optimizer.gradient_dtype": "bf16",
    },
    {
        "hardware.gpu": "h100",
        "hardware.gpus": 128,
        "overlap.ep": True,
        "parallel.ep": 8,
        "parallel.pp": 2,
        "parallel.vpp": 2,
    },
    {
        "hardware.gpu": "h100",
        "hardware.gpus": 64,
        "parallel.tp": 4,
        "parallel.etp": 2,
        "overlap.tp": True,
        "parallel.ep": 2,
    },
    {
        "hardware.gpu": "b200",
        "hardware.gpus": 32,
        "kernels.cuda_graphs": True,
        "parallel.ep": 8,
        "moe.capacity_factor": 1.25,
    },
    {"hardware.gpu": "h100", "hardware.gpus": 512, "layout": 8, "parallel.ep": 8, "parallel.tp": 2},
    {"hardware.gpu": "h100", "hardware.gpus": 128, "layout": 16, "parallel.ep": 4},
    {
        "hardware.gpu": "h100",
        "hardware.gpus": 64,
        "activation_offload.modules": ["qkv_linear", "core_attn", "attn_proj"],
        "parallel.ep": 8,
        "mtp_layers": 0,
    },
    {"hardware.gpu": "mi300x", "hardware.gpus": 64, "parallel.ep": 8, "parallel.pp": 2},
    {
        "hardware.gpu": "h100",
        "hardware.gpus": 8,
        "precision": "fp32",
        "kernels.flash_attention": False,
        "parallel.tp": 8,
    },
    {
        "hardware.gpu": "h100",
        "hardware.gpus": 1024,
        "parallel.tp": 8,
        "parallel.pp": 8,
        "parallel.ep": 8,
        "precision": "fp8",
    },
)
OTHER_SETTINGS: tuple[Setting, ...] = (
    {"hardware.gpu": "h100", "hardware.gpus": 32, "parallel.tp": 2},
    {"hardware.gpu": "h100", "hardware.gpus": 64, "parallel.ep": 8, "recompute.granularity": "full"},
    {"hardware.gpu": "a100", "hardware.gpus": 16, "optimizer.sharding": 0},
    {
        "hardware.gpu": "h200",
        "hardware.gpus": 32,
        "parallel.cp": 2,
        "parallel.cp_comm": "allgather",
        "optimizer.sharding": 2,
    },
    {"hardware.gpu": "h100", "hardware.gpus": 64, "parallel.pp": 4, "parallel.vpp": 2, "parallel.ep": 2},
    {"hardware.gpu": "h100", "hardware.gpus": 64, "optimizer.sharding": 3, "optimizer.offload_fraction": 0.5},
    {"hardware.gpu": "b200", "hardware.gpus": 16, "precision": "fp32"},
    {"hardware.gpu": "h100", "hardware.gpus": 64, "precision": "fp16", "parallel.ep": 4},
    {"hardware.gpu": "h100", "hardware.gpus": 64, "layout": 4, "parallel.ep": 4},
)


@dataclass(frozen=True)
class Case:
    """One plan for one target, and the target's files."""

    target: str
    plan: Plan
    files: dict[str, str]


def plan_of(model: str, setting: Setting) -> Plan:
    """The plan of a model in a setting; ``layout`` asks for an uneven pipeline of that many stages."""
    values: Setting = {"batch.micro_batch_size": 1} | setting
    architecture = load_model(model)
    stages = values.pop("layout", None)
    if stages is not None and len(architecture.layers) >= stages:
        values |= {"parallel.pp": stages, "parallel.pipeline_layout": uneven(model, stages)}
    length = architecture.max_sequence_length or 4096
    values["batch.sequence_length"] = min(values.get("batch.sequence_length", 4096), length)
    document: dict[str, Any] = {"model": model}
    for name, value in values.items():
        section, _, key = name.partition(".")
        if key:
            document.setdefault(section, {})[key] = value
        else:
            document[section] = value
    return load_plan(document)


def uneven(model: str, stages: int) -> str:
    """A layout whose first and last stages hold a layer less than the others where that divides, else nearly even."""
    architecture = load_model(model)
    layers = len(architecture.layers)
    each, more = divmod(layers, stages)
    counts = [each + (1 if 0 < index <= more else 0) for index in range(stages)]
    counts[-1] += layers - sum(counts)
    parts = ["t" * count for count in counts]
    parts[0] = "E" + parts[0]
    parts[-1] += "m" * architecture.mtp_layers + "L"
    return "|".join(parts)


def cases(target: str, every: int = 1) -> Iterator[Case]:
    """Plans that the target can run, with their files.

    Args:
        target: A launch target.
        every: Take each model's turn only at every so manyth setting: 1 for all turns.
    """
    settings = MEGATRON_SETTINGS if target.startswith("megatron") else OTHER_SETTINGS
    turns = 2
    for index, model in enumerate(model_names()):
        if index % every:
            continue
        for turn in range(turns):
            setting = settings[(index * turns + turn) % len(settings)]
            frameworks = ("megatron", "fsdp2") if target == "accelerate" else ("megatron",)
            for framework in frameworks:
                try:
                    plan, _ = launch.adapt(plan_of(model, {"framework": framework} | setting), target)
                except PlanError:
                    continue
                yield Case(target, plan, launch.render(plan, target, command=f"moeplan launch PLAN --to {target}"))


def refused(target: str) -> dict[str, str]:
    """Catalog models that no plan takes to the target, with the reason."""
    found = {}
    for model in model_names():
        plan = plan_of(model, {"hardware.gpu": "h100", "hardware.gpus": 64})
        try:
            launch.adapt(plan, target)
        except PlanError as error:
            found[model] = error.problem
    return found
