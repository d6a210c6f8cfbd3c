"""What the keys of a torchtitan configuration say about a plan; the reading half of ``launch/torchtitan.py``.

Sections and keys are those of torchtitan 0.2.2, ``torchtitan/config/job_config.py`` (TOML); 0.3 keeps the names of
``training``, ``parallelism`` and ``compile`` in Python, where :func:`python_document` finds them.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

ROTATIONS: Mapping[str, str] = {"p2p": "alltoall", "allgather": "allgather"}
"""Plan's ``cp_comm`` -> torchtitan's rotate method: its all-to-all passes blocks around as a ring does."""

FLOAT8 = ("quantize.linear.float8", "quantize.grouped_mm.float8")
MXFP8 = ("quantize.linear.mx", "quantize.grouped_mm.mx")


def plan_values(document: Mapping[str, Any]) -> dict[str, Any]:
    """What a torchtitan configuration says about a plan: dotted key -> value; keys that it leaves open are absent.

    Args:
        document: Section -> key -> value, as the TOML holds it.
    """
    training, parallel = _section(document, "training"), _section(document, "parallelism")
    values: dict[str, Any] = {
        "framework": "fsdp2",
        "optimizer.state_dtype": "fp32",
        "optimizer.gradient_dtype": "fp32",
        "optimizer.offload_fraction": 0.0,
    }
    for key, name in (
        ("tp", "tensor_parallel_degree"),
        ("pp", "pipeline_parallel_degree"),
        ("cp", "context_parallel_degree"),
        ("ep", "expert_parallel_degree"),
    ):
        values[f"parallel.{key}"] = parallel.get(name, 1)
    if values["parallel.ep"] > 1:
        values["parallel.etp"] = parallel.get("expert_tensor_parallel_degree", 1)
        backend = parallel.get("expert_parallel_comm_backend", "standard")
        values["moe.dispatcher"] = "alltoall" if backend == "standard" else backend
    if values["parallel.tp"] > 1:
        values["parallel.sp"] = parallel.get("enable_sequence_parallel", True)
        asynchronous = _section(document, "compile").get("enable_async_tensor_parallel", False)
        values["overlap.tp"] = parallel.get("enable_async_tensor_parallel", asynchronous)
    if values["parallel.cp"] > 1:
        names = {there: here for here, there in ROTATIONS.items()}
        values["parallel.cp_comm"] = names.get(parallel.get("context_parallel_rotate_method", "allgather"), "allgather")
    if "seq_len" in training:
        values["batch.sequence_length"] = training["seq_len"]
    if training.get("global_batch_size", -1) > 0:
        values["batch.global_batch_size"] = training["global_batch_size"]
    pipelined = values["parallel.pp"] > 1
    size = parallel.get("pipeline_parallel_microbatch_size", 1) if pipelined else training.get("local_batch_size")
    if size is not None:
        values["batch.micro_batch_size"] = size
    values |= _schedule(parallel) if pipelined else {}
    values["optimizer.sharding"] = _sharding(parallel)
    values["precision"] = _precision(document)
    values["optimizer.name"] = "adam"
    mode = _section(document, "activation_checkpoint").get("mode", "selective")
    values["recompute.granularity"] = mode if mode in ("none", "full") else "selective"
    compiled, loss = _section(document, "compile"), _section(document, "loss")
    components = compiled.get("components", ["model", "loss"])
    # 0.2.2 fuses the loss by compiling it, 0.3 has a loss in chunks.
    fused = loss["chunked"] if "chunked" in loss else compiled.get("enable", False) and "loss" in components
    values["kernels.fused_cross_entropy"] = bool(fused)
    return values


def python_document(text: str) -> dict[str, dict[str, Any]]:
    """The assignments ``config.section.key = constant`` of a Python configuration as section -> key -> value.

    The text is parsed, never run (raises SyntaxError when it is not Python). Whether activations are recomputed and
    which model is trained follow from the lines that launch files have for them.
    """
    document: dict[str, dict[str, Any]] = {}
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Assign) or len(node.targets) != 1:
            continue
        path = _path(node.targets[0])
        if len(path) == 3 and path[0] == "config":
            try:
                document.setdefault(path[1], {})[path[2]] = ast.literal_eval(node.value)
            except ValueError:
                continue
        elif path == ["config", "activation_checkpoint"]:
            made = ast.unparse(node.value)
            mode = "none" if made == "None" else "full" if made.startswith("FullAC") else "selective"
            document.setdefault("activation_checkpoint", {})["mode"] = mode
        elif path == ["config", "model_spec"] and isinstance(node.value, ast.Call):
            document["model"] = {"flavor": ast.literal_eval(node.value.args[0])}
            for keyword in node.value.keywords:
                if keyword.arg == "moe_comm_backend":
                    backend = ast.literal_eval(keyword.value)
                    document.setdefault("parallelism", {})["expert_parallel_comm_backend"] = backend
                elif keyword.arg == "converters":
                    kind = MXFP8 if "MXFP8" in ast.unparse(keyword.value) else FLOAT8
                    document["model"]["converters"] = list(kind)
        elif path == ["config", "loss"]:
            document["loss"] = {"chunked": ast.unparse(node.value).startswith("Chunked")}
    return document


def _schedule(parallel: Mapping[str, Any]) -> dict[str, Any]:
    name = str(parallel.get("pipeline_parallel_schedule", "1F1B")).lower()
    values: dict[str, Any] = {"parallel.schedule": "zero_bubble" if "zero" in name else "1f1b"}
    return values


def _sharding(parallel: Mapping[str, Any]) -> int:
    if parallel.get("data_parallel_shard_degree", -1) == 1 and parallel.get("context_parallel_degree", 1) == 1:
        return 0
    return 2 if parallel.get("fsdp_reshard_after_forward", "default") == "never" else 3


def _precision(document: Mapping[str, Any]) -> str:
    converters = _section(document, "model").get("converters", [])
    if any(name in MXFP8 for name in converters):
        return "mxfp8"
    if any(name in FLOAT8 for name in converters):
        return "fp8"
    kind = _section(document, "training").get("mixed_precision_param", "bfloat16")
    return "fp32" if kind == "float32" else "bf16"


def _path(node: ast.expr) -> list[str]:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return [*([node.id] if isinstance(node, ast.Name) else [""]), *reversed(parts)]


def _section(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = document.get(name)
    return section if isinstance(section, Mapping) else {}
