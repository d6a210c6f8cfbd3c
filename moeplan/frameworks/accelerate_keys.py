"""What the keys of an accelerate configuration say about a plan; the reading half of ``launch/accelerate.py``.

Keys are those of accelerate 1.15, ``accelerate/commands/config/config_args.py`` and ``accelerate/commands/launch.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ROTATIONS: Mapping[str, str] = {"p2p": "alltoall", "allgather": "allgather"}
"""Plan's ``cp_comm`` -> accelerate's ``cp_comm_strategy`` (torch's rotate method)."""


def plan_values(document: Mapping[str, Any]) -> dict[str, Any]:
    """What an accelerate configuration says about a plan: dotted key -> value; keys that it leaves open are absent."""
    precision = document.get("mixed_precision", "no")
    values: dict[str, Any] = {"precision": "fp32" if precision in ("no", None) else str(precision)}
    if document.get("distributed_type") == "MEGATRON_LM":
        return values | _megatron(_section(document, "megatron_lm_config"))
    return values | _fsdp(_section(document, "fsdp_config"), _section(document, "parallelism_config"), document)


def _fsdp(fsdp: Mapping[str, Any], parallel: Mapping[str, Any], document: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {"framework": "fsdp2", "parallel.pp": 1, "parallel.ep": 1}
    values["parallel.tp"] = parallel.get("parallelism_config_tp_size", 1)
    values["parallel.cp"] = parallel.get("parallelism_config_cp_size", 1)
    if values["parallel.cp"] > 1:
        strategy = parallel.get("parallelism_config_cp_comm_strategy", "allgather")
        values["parallel.cp_comm"] = "p2p" if strategy == "alltoall" else "allgather"
    values["optimizer.sharding"] = 0
    if document.get("distributed_type") == "FSDP":
        values["optimizer.sharding"] = 3 if fsdp.get("fsdp_reshard_after_forward", True) else 2
    values["recompute.granularity"] = "full" if fsdp.get("fsdp_activation_checkpointing") else "none"
    return values


def _megatron(megatron: Mapping[str, Any]) -> dict[str, Any]:
    def key(name: str, default: Any) -> Any:
        return megatron.get(f"megatron_lm_{name}", default)

    values: dict[str, Any] = {
        "framework": "megatron",
        "parallel.tp": key("tp_degree", 1),
        "parallel.pp": key("pp_degree", 1),
        "parallel.cp": key("context_parallel_size", 2),  # the plugin's default
        "parallel.ep": key("expert_model_parallel_size", 1),
        "parallel.etp": key("expert_tensor_parallel_size", 1),
        "parallel.sp": bool(key("sequence_parallelism", False)),
        "optimizer.sharding": 1 if key("use_distributed_optimizer", False) else 0,
        "optimizer.offload_fraction": 1.0 if key("optimizer_cpu_offload", False) else 0.0,
        "optimizer.state_dtype": "fp32",
        "kernels.flash_attention": bool(key("attention_backend", True)),
        "recompute.granularity": key("recompute_granularity", "full"),
    }
    if values["recompute.granularity"] == "selective":
        values["recompute.modules"] = ("core_attn",)
    else:
        values["recompute.method"] = key("recompute_method", "uniform")
        values["recompute.layers"] = key("recompute_num_layers", 1)
    return values


def _section(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = document.get(name)
    return section if isinstance(section, Mapping) else {}
