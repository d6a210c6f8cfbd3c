"""What the keys of a DeepSpeed configuration say about a plan; the reading half of ``launch/deepspeed.py``.

Keys are those of DeepSpeed 0.19.8, ``deepspeed/runtime/config.py`` and ``deepspeed/module_inject/auto_ep_config.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OWN_KEY = "moeplan"
"""Top-level key with the heading and what is carried; DeepSpeed ignores keys that it does not know."""

TOP_LEVEL_KEYS: frozenset[str] = frozenset(
    {
        OWN_KEY,
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "zero_optimization",
        "zero_allow_untested_optimizer",
        "bf16",
        "fp16",
        "data_types",
        "optimizer",
        "gradient_clipping",
        "tensor_parallel",
        "sequence_parallel_size",
        "expert_parallel",
        "pipeline",
        "activation_checkpointing",
        "steps_per_print",
        "wall_clock_breakdown",
    }
)
"""Every key that a written configuration may hold."""

_NARROW = ("bf16", "bfloat16", "fp16", "float16", "half")


def plan_values(document: Mapping[str, Any]) -> dict[str, Any]:
    """What a DeepSpeed configuration says about a plan: dotted key -> value; keys that it leaves open are absent.

    ``"auto"`` (Hugging Face's placeholder) leaves a key open.
    """
    values: dict[str, Any] = {"framework": "deepspeed"}
    for key, name in (
        ("batch.micro_batch_size", "train_micro_batch_size_per_gpu"),
        ("batch.global_batch_size", "train_batch_size"),
    ):
        if _is_integer(document.get(name)):
            values[key] = document[name]
    values |= _parallel(document)
    values |= _numbers(document)
    zero = _section(document, "zero_optimization")
    stage = zero.get("stage", 0)
    values["optimizer.sharding"] = stage if _is_integer(stage) else 0
    offload = _section(zero, "offload_optimizer")
    values["optimizer.offload_fraction"] = (
        float(offload.get("ratio", 1.0)) if offload.get("device") in ("cpu", "nvme") else 0.0
    )
    overlap = zero.get("overlap_comm")
    # runtime/zero/config.py, overlap_comm_valid: on by default in stage 3 only.
    values["overlap.grad_reduce"] = overlap if isinstance(overlap, bool) else stage == 3
    optimizer = _section(document, "optimizer").get("type")
    if isinstance(optimizer, str):
        values["optimizer.name"] = "sgd" if optimizer.lower() == "sgd" else "adam"
    values["recompute.granularity"] = "full" if "activation_checkpointing" in document else "none"
    return values


def _parallel(document: Mapping[str, Any]) -> dict[str, Any]:
    tensor, expert = _section(document, "tensor_parallel"), _section(document, "expert_parallel")
    values: dict[str, Any] = {
        "parallel.tp": tensor.get("autotp_size") or 1,
        "parallel.cp": document.get("sequence_parallel_size") or 1,
        "parallel.ep": 1,
    }
    stages = _section(document, "pipeline").get("stages")
    values["parallel.pp"] = stages if _is_integer(stages) else 1
    if _several(values["parallel.cp"]):
        values["parallel.cp_comm"] = "a2a"  # Ulysses
    if _several(values["parallel.tp"]):
        values["overlap.tp"] = bool(tensor.get("tp_overlap_comm", False))
    if expert.get("enabled"):
        values["parallel.ep"] = expert.get("autoep_size", 1)
        values["parallel.etp"] = expert.get("expert_tensor_parallel_size", 1)
        values["moe.dispatcher"] = "deepep" if expert.get("comm_backend") == "deepep" else "alltoall"
        if _is_integer(expert.get("top_k")):
            values["moe.top_k"] = expert["top_k"]
    return values


def _numbers(document: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {"precision": "fp32", "optimizer.gradient_dtype": "fp32", "optimizer.state_dtype": "fp32"}
    for name in ("bf16", "fp16"):
        if _section(document, name).get("enabled") is True:
            values["precision"] = name
    if _section(document, "bf16").get("bf16_optimizer_states") is True:
        values["optimizer.state_dtype"] = "bf16"
    accumulated = _section(document, "data_types").get("grad_accum_dtype")
    # engine.py, get_data_types: gradients accumulate in the model's type unless asked otherwise.
    if (accumulated or values["precision"]) in _NARROW:
        values["optimizer.gradient_dtype"] = "bf16"
    return values


def _section(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = document.get(name)
    return section if isinstance(section, Mapping) else {}


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _several(value: Any) -> bool:
    """Whether a degree is above 1; what is no number at all is left to the plan to refuse."""
    return _is_integer(value) and bool(value > 1)
