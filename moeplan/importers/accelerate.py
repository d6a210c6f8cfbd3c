"""Hugging Face accelerate configurations (YAML with the FSDP or Megatron-LM plugin), read into plans.

Keys and defaults: accelerate 1.15, ``accelerate/commands/config/config_args.py``, ``accelerate/utils/dataclasses.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moeplan.documents import parse_mapping
from moeplan.errors import PlanError
from moeplan.frameworks.accelerate_keys import plan_values
from moeplan.frameworks.carried import read_carried
from moeplan.importers.assembling import Asked, dense_ranks, finish, left_open, whole_number, with_hardware, words_of
from moeplan.importers.imported import INERT, LOST, Imported, Unused
from moeplan.importers.megatron_unused import why_unused

_USED: Mapping[str, frozenset[str]] = {
    "fsdp_config": frozenset({"fsdp_reshard_after_forward", "fsdp_activation_checkpointing", "fsdp_version"}),
    "parallelism_config": frozenset(
        {
            "parallelism_config_tp_size",
            "parallelism_config_cp_size",
            "parallelism_config_cp_comm_strategy",
            "parallelism_config_dp_shard_size",
        }
    ),
    "megatron_lm_config": frozenset(
        f"megatron_lm_{name}"
        for name in (
            "tp_degree",
            "pp_degree",
            "context_parallel_size",
            "expert_model_parallel_size",
            "expert_tensor_parallel_size",
            "sequence_parallelism",
            "use_distributed_optimizer",
            "optimizer_cpu_offload",
            "attention_backend",
            "recompute_granularity",
            "recompute_method",
            "recompute_num_layers",
            "num_micro_batches",
            "use_precision_aware_optimizer",
        )
    ),
}
_LOST = {
    "fsdp_config.fsdp_offload_params": "the plan keeps parameters on the GPU",
    "parallelism_config.parallelism_config_dp_replicate_size": "the plan shards over the whole data-parallel group",
    "dynamo_config": "the plan has the framework's own kernels",
    "fp8_config": "set precision: fp8",
    "deepspeed_config": "import that file with 'moeplan import deepspeed'",
}


def read_accelerate(text: str, asked: Asked, where: str) -> Imported:
    """Read an accelerate configuration (its text) into a plan.

    Raises:
        PlanError: It is no such configuration, or lacks what neither it nor the user says.
    """
    document = parse_mapping(text, where)
    kind = document.get("distributed_type")
    if kind is None or "num_processes" not in document:
        raise PlanError(where, "is no accelerate configuration", "it has distributed_type and num_processes")
    if kind not in ("FSDP", "MULTI_GPU", "MEGATRON_LM", "NO"):
        remedy = "import the DeepSpeed file" if kind == "DEEPSPEED" else "use FSDP or MEGATRON_LM"
        raise PlanError(where, f"moeplan does not read distributed_type {str(kind)[:40]!r}", remedy)
    carried = read_carried(text, where)
    for section in ("megatron_lm_config", "parallelism_config"):
        inner = document.get(section)
        for key, value in (inner if isinstance(inner, Mapping) else {}).items():
            if key.endswith(("_degree", "_size", "_num_layers")):
                whole_number(where, f"{section}.{key}", value)
    words = words_of(plan_values, document, where)
    processes = document["num_processes"]
    whole_number(where, "num_processes", processes)
    values = carried.applied(words) if carried is not None else dict(words)
    if carried is None and not values.get("recompute.modules") and values.get("recompute.granularity") != "full":
        values = {key: value for key, value in values.items() if key not in ("recompute.method", "recompute.layers")}
    values = with_hardware({**values, "hardware.gpus": processes}, asked, where)
    assumptions = left_open(
        values, carried, {"batch.sequence_length": "tokens in a sequence", "batch.micro_batch_size": "micro batch size"}
    )
    if carried is None:
        ranks = dense_ranks(values, where)
        plugin = document.get("megatron_lm_config")
        steps = plugin.get("megatron_lm_num_micro_batches", 1) if isinstance(plugin, Mapping) else 1
        values["batch.global_batch_size"] = ranks * (steps if isinstance(steps, int) and steps > 0 else 1)
    return Imported(finish(values, where), tuple(_unused(document)), tuple(assumptions))


def _unused(document: Mapping[str, Any]) -> list[Unused]:
    found = []
    for key, value in document.items():
        if isinstance(value, Mapping) and key in _USED:
            found += [
                _reason(key, inner, leaf) for inner, leaf in value.items() if inner not in _USED[key] and _says(leaf)
            ]
        elif key in _LOST and value:
            found.append(Unused(key, "", f"{LOST}: {_LOST[key]}"))
        elif key not in ("distributed_type", "num_processes", "mixed_precision", *_USED) and _says(value):
            found.append(Unused(key, str(value)[:200], INERT))
    return sorted(found, key=lambda item: not item.matters)


def _says(value: Any) -> bool:
    return value not in (None, False, "", {}, [])


def _reason(section: str, key: str, value: Any) -> Unused:
    name = f"{section}.{key}"
    if name in _LOST:
        # One replica is no hybrid sharding.
        reason = INERT if value == 1 and value is not True else f"{LOST}: {_LOST[name]}"
    elif section == "megatron_lm_config":
        reason = why_unused(key.removeprefix("megatron_lm_").replace("_", "-"), (str(value),)) or INERT
    else:
        reason = INERT
    return Unused(name, str(value)[:200], reason)
