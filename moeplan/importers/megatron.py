"""Megatron-LM launch scripts and argument mappings, read into plans.

Flag semantics and defaults: Megatron-LM, megatron/training/arguments.py (parser and ``validate_args``) and
megatron/core/transformer/transformer_config.py, megatron-core 0.19.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moeplan.errors import PlanError
from moeplan.frameworks.carried import plan_from, read_carried
from moeplan.frameworks.megatron_flags import TF32_VARIABLE, plan_values
from moeplan.importers.imported import INERT, LOST, Imported, Unused
from moeplan.importers.megatron_flags import Flags
from moeplan.importers.megatron_model import architecture_document
from moeplan.importers.megatron_plan import plan_mapping
from moeplan.importers.megatron_script import Launch, read_launch
from moeplan.importers.megatron_unused import BEYOND_DOCUMENTS
from moeplan.importers.recognise import choose_model, model_by_flags
from moeplan.model import load_model


def read_megatron(
    source: str | Mapping[str, Any],
    gpu: str | Mapping[str, Any] | None = None,
    gpus: int | None = None,
    *,
    gpus_per_node: int | None = None,
    model: str | Mapping[str, Any] | None = None,
    vocabulary: int | None = None,
    variables: Mapping[str, str] | None = None,
    where: str = "megatron",
) -> Imported:
    """Read a launch script or a mapping of flags to values into a plan.

    Args:
        source: The text of a shell script, of YAML or of JSON; or a mapping.
        gpu: The GPU of the plan; None only where the file carries it (a launch file of moeplan).
        gpus: GPUs in all; None takes the launcher's number.
        gpus_per_node: GPUs in one host; None takes the launcher's number, else the catalog's.
        model: Name or document to write into the plan in place of what the flags describe; it must have their shape.
        vocabulary: Tokens in the vocabulary, where the file does not tell.
        variables: Values of variables that the file leaves open; a script's arguments are ``1``, ``2``, ...
        where: The file, for messages.

    Returns:
        The plan, every setting that it does not hold with the reason, and what was assumed.

    Raises:
        PlanError: The source cannot be read, lacks what Megatron needs, or asks for what no plan describes.
    """
    launch = read_launch(source, where, variables)
    flags = Flags(launch.flags, where)
    world = gpus if gpus is not None else launch.gpus
    if world is None:
        raise PlanError(where, "does not say on how many GPUs it runs", "pass --gpus N")
    if gpus is not None and launch.gpus not in (None, gpus):
        flags.assumptions.append(f"{gpus} GPUs as asked; the file itself runs on {launch.gpus}")
    document = architecture_document(flags, vocabulary)
    values = _flat(plan_mapping(flags, launch, document, world))
    carried = read_carried(source, where) if isinstance(source, str) else None
    if carried is not None:
        values = carried.applied(values | _said(launch))
    values |= _hardware(values, gpu, world, gpus_per_node, launch)
    named = carried.plan.get("model") if carried is not None else None
    reference, apart = _model(flags, document, model, named)
    if carried is None or reference is not named:
        # Explicit only where the model's own number is another one; a carried line has settled both for its model.
        values = {key: value for key, value in values.items() if key not in ("moe.top_k", "mtp_layers")} | apart
    values["model"] = reference
    if "hardware.gpu" not in values:
        raise PlanError(where, "does not say on which GPU it runs", "pass --gpu NAME")
    plan = plan_from(values)
    unused = (*flags.unused(), *_unused_environment(launch))
    return Imported(plan, tuple(unused), (*flags.assumptions, *launch.notes))


def _model(flags: Flags, document: Mapping[str, Any], asked: Any, named: Any) -> tuple[Any, dict[str, Any]]:
    """The plan's ``model``, and the plan keys in which the file's differs from it."""
    beyond = [name for name in BEYOND_DOCUMENTS if flags.has(name)]
    if not beyond:
        return choose_model(document, asked, named, flags.where, flags.assumptions)
    known = [model for model in (asked, named) if model is not None]
    reference = model_by_flags(flags.values, known)
    if reference is None or (asked is not None and reference is not asked):
        raise PlanError(
            flags.where,
            f"--{beyond[0]} {' '.join(flags.values[beyond[0]])}: no known model has this shape",
            "pass --model with the model's config.json",
        )
    described = {"moe.top_k": document.get("moe", {}).get("top_k"), "mtp_layers": document.get("mtp_layers", 0)}
    architecture = load_model(reference)
    own = {
        "moe.top_k": architecture.moe.top_k if architecture.moe is not None else None,
        "mtp_layers": architecture.mtp_layers,
    }
    return reference, {key: value for key, value in described.items() if value != own[key]}


def _hardware(
    values: Mapping[str, Any],
    gpu: str | Mapping[str, Any] | None,
    world: int,
    gpus_per_node: int | None,
    launch: Launch,
) -> dict[str, Any]:
    """What is asked for, else what the launcher starts, else what the file carries."""
    from moeplan.hardware import load_gpu

    found: dict[str, Any] = {"hardware.gpus": world}
    if gpu is not None:
        found["hardware.gpu"] = gpu
    reference = gpu if gpu is not None else values.get("hardware.gpu")
    per_node = gpus_per_node or launch.gpus_per_node
    if per_node is None or reference is None:
        return found
    usual = values.get("hardware.gpus_per_node") or load_gpu(reference).machine().gpus_per_node
    # A launcher starts at most as many processes as there are GPUs; the plan's node may be larger.
    if min(per_node, world) != min(usual, world):
        found["hardware.gpus_per_node"] = per_node
    return found


def _flat(document: Mapping[str, Any]) -> dict[str, Any]:
    """Sections and keys as dotted keys."""
    found: dict[str, Any] = {}
    for section, value in document.items():
        if isinstance(value, Mapping):
            found |= {f"{section}.{key}": leaf for key, leaf in value.items()}
        else:
            found[section] = value
    return found


# Spellings that moeplan's own launch files do not have: where one is given, this module's reading of the key holds.
_OTHER_SPELLINGS = {
    "num-layers-per-virtual-pipeline-stage": ("parallel.vpp",),
    "decoder-first-pipeline-num-layers": ("parallel.pipeline_layout",),
    "decoder-last-pipeline-num-layers": ("parallel.pipeline_layout",),
    "account-for-embedding-in-pipeline-split": ("parallel.pipeline_layout",),
    "account-for-loss-in-pipeline-split": ("parallel.pipeline_layout",),
    "recompute-activations": ("recompute.granularity", "recompute.modules"),
    "moe-layer-recompute": ("recompute.granularity", "recompute.modules"),
    "use-torch-fsdp2": ("framework", "optimizer.sharding"),
    "use-custom-fsdp": ("optimizer.sharding",),
    "moe-enable-deepep": ("moe.dispatcher",),
    "enable-cuda-graph": ("kernels.cuda_graphs",),
    "external-cuda-graph": ("kernels.cuda_graphs",),
}


def _said(launch: Launch) -> dict[str, Any]:
    """What the flags say, read exactly as moeplan writes them: the reading that a carried line corrects."""
    words = {f"--{name}": values for name, values in launch.flags.items()}
    try:
        said = plan_values(words, launch.environment)
    except (ValueError, IndexError):
        # This module's own reading has already said what is wrong, or takes it in another way.
        return {}
    elsewhere = {key for name, keys in _OTHER_SPELLINGS.items() if name in launch.flags for key in keys}
    return {key: value for key, value in said.items() if key not in elsewhere}


# Environment variables that a plan has no key for although they change how a step runs.
_LOST_ENVIRONMENT = {
    "NVTE_CPU_OFFLOAD_V1": "the plan has one way of offloading",
    "NVTE_NORM_FWD_USE_CUDNN": "the plan has one norm kernel",
    "NVTE_NORM_BWD_USE_CUDNN": "the plan has one norm kernel",
    "NCCL_ALGO": "the plan takes NCCL's own choice of algorithm",
    "NCCL_PROTO": "the plan takes NCCL's own choice of protocol",
    "PYTORCH_CUDA_ALLOC_CONF": "the plan has one allocator",
}


def _unused_environment(launch: Launch) -> list[Unused]:
    found = []
    for name, value in launch.environment.items():
        if name in ("NVTE_FLASH_ATTN", "NVTE_FUSED_ATTN", TF32_VARIABLE[0]):
            continue
        if (name, value) == ("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True"):
            continue  # what moeplan's own launch files set, and its allowance for fragmentation assumes
        why = _LOST_ENVIRONMENT.get(name)
        found.append(Unused(name, value, f"{LOST}: {why}" if why else INERT))
    return found
