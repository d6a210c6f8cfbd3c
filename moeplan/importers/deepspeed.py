"""DeepSpeed configurations, read into plans.

Keys and defaults: DeepSpeed 0.19.8, ``deepspeed/runtime/config.py`` and ``deepspeed/runtime/zero/config.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moeplan.documents import parse_mapping
from moeplan.errors import PlanError, nearest
from moeplan.frameworks.carried import carried_from
from moeplan.frameworks.deepspeed_keys import OWN_KEY, plan_values
from moeplan.importers.assembling import Asked, dense_ranks, finish, left_open, whole_number, with_hardware, words_of
from moeplan.importers.imported import INERT, LOST, Imported, Unused

_AUTO = "auto"
_BUCKETS = "the plan takes the framework's bucket sizes"
# Section -> keys that reach the plan.
_USED: Mapping[str, frozenset[str]] = {
    "zero_optimization": frozenset({"stage", "overlap_comm", "offload_optimizer"}),
    "bf16": frozenset({"enabled", "bf16_optimizer_states"}),
    "fp16": frozenset({"enabled"}),
    "data_types": frozenset({"grad_accum_dtype"}),
    "optimizer": frozenset({"type"}),
    "tensor_parallel": frozenset({"autotp_size", "tp_overlap_comm"}),
    "expert_parallel": frozenset(
        {"enabled", "autoep_size", "expert_tensor_parallel_size", "comm_backend", "top_k", "preset_model"}
    ),
    "pipeline": frozenset({"stages"}),
}
_DEGREES = (
    ("", "train_batch_size"),
    ("", "train_micro_batch_size_per_gpu"),
    ("", "gradient_accumulation_steps"),
    ("", "sequence_parallel_size"),
    ("tensor_parallel", "autotp_size"),
    ("expert_parallel", "autoep_size"),
    ("expert_parallel", "expert_tensor_parallel_size"),
)
_WHOLE = frozenset(
    {
        OWN_KEY,
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "sequence_parallel_size",
        "activation_checkpointing",
    }
)
_LOST: Mapping[str, str] = {
    "zero_optimization.offload_param": "the plan keeps parameters on the GPU",
    "zero_optimization.reduce_bucket_size": _BUCKETS,
    "zero_optimization.allgather_bucket_size": _BUCKETS,
    "zero_optimization.sub_group_size": _BUCKETS,
    "zero_optimization.stage3_prefetch_bucket_size": _BUCKETS,
    "zero_optimization.stage3_param_persistence_threshold": _BUCKETS,
    "zero_optimization.stage3_model_persistence_threshold": _BUCKETS,
    "zero_optimization.stage3_max_live_parameters": _BUCKETS,
    "zero_optimization.stage3_max_reuse_distance": _BUCKETS,
    "zero_optimization.zero_hpz_partition_size": "the plan shards over the whole data-parallel group",
    "zero_optimization.mics_shard_size": "the plan shards over the whole data-parallel group",
    "zero_optimization.zero_quantized_weights": "the plan gathers parameters in their own type",
    "zero_optimization.zero_quantized_gradients": "the plan reduces gradients in their own type",
    "zero_optimization.zero_quantized_nontrainable_weights": "the plan gathers parameters in their own type",
    "bf16.bf16_master_weights_and_grads": "the plan keeps main parameters in fp32",
    "fp16.fp16_master_weights_and_grads": "the plan keeps main parameters in fp32",
    "compression_training": "the plan trains dense weights",
    "sparse_attention": "the plan has dense attention",
    "sparse_gradients": "the plan has dense gradients",
    "amp": "the plan has one precision for all layers",
    "torch_autocast": "the plan has one precision for all layers",
    "communication_data_type": "the plan reduces gradients in their own type",
    "elasticity": "the plan has one number of GPUs",
    "autotuning": "the plan has one configuration",
    "hybrid_engine": "the plan is about training steps",
    "data_efficiency": "the plan has one sequence length",
    "curriculum_learning": "the plan has one sequence length",
    "progressive_layer_drop": "the plan runs every layer",
    "eigenvalue": "the plan has one precision schedule",
    "compile": "the plan has the framework's own kernels",
}
_INERT = frozenset(
    [
        "aio",
        "checkpoint",
        "comet",
        "comms_logger",
        "csv_monitor",
        "dataloader_drop_last",
        "disable_allgather",
        "dump_state",
        "flops_profiler",
        "gradient_clipping",
        "gradient_predivide_factor",
        "graph_harvesting",
        "load_universal_checkpoint",
        "memory_breakdown",
        "monitor_config",
        "nebula",
        "optimizer.legacy_fusion",
        "optimizer.params",
        "prescale_gradients",
        "scheduler",
        "seed",
        "steps_per_print",
        "tensorboard",
        "timers",
        "train_steps",
        "wall_clock_breakdown",
        "wandb",
        "weight_quantization",
        "zero_allow_untested_optimizer",
        "zero_force_ds_cpu_optimizer",
    ]
)


def read_deepspeed(text: str, asked: Asked, where: str) -> Imported:
    """Read a DeepSpeed JSON configuration (its text) into a plan.

    Raises:
        PlanError: It is no such configuration, or lacks what neither it nor the user says.
    """
    document = parse_mapping(text, where, is_json=True)
    if not {"train_batch_size", "train_micro_batch_size_per_gpu", "zero_optimization", "bf16", "fp16"} & set(document):
        raise PlanError(where, "is no DeepSpeed configuration", "it has train_batch_size, zero_optimization, ...")
    carried = carried_from(document[OWN_KEY], where) if OWN_KEY in document else None
    stage = _section(document, "zero_optimization").get("stage", 0)
    if isinstance(stage, bool) or stage not in (0, 1, 2, 3):
        raise PlanError(where, f"zero_optimization.stage is {str(stage)[:40]!r}", "give 0, 1, 2 or 3")
    plain = _without_auto(document)
    for section, key in _DEGREES:
        inner = _section(plain, section) if section else plain
        if key in inner:
            whole_number(where, f"{section}.{key}".lstrip("."), inner[key])
    words = words_of(plan_values, plain, where)
    open_precision = [name for name in ("bf16", "fp16") if _section(document, name).get("enabled") == _AUTO]
    if open_precision and words["precision"] == "fp32":
        words["precision"] = open_precision[0]
    values = carried.applied(words) if carried is not None else dict(words)
    values = with_hardware(values, asked, where)
    assumptions = left_open(values, carried, {"batch.sequence_length": "tokens in a sequence"})
    if open_precision and values["precision"] == open_precision[0]:
        assumptions.append(f"precision {open_precision[0]}: the file leaves it to the trainer (auto)")
    ranks = dense_ranks(values, where)
    if carried is None:
        assumptions += _batch(values, document, ranks, where)
    plan = finish(values, where)
    moe = plan.architecture().moe
    if carried is None and moe is not None and plan.parallel.ep == 1 and plan.parallel.tp > 1:
        # Without AutoEP, AutoTP cuts experts as it cuts everything else.
        plan = finish({**values, "parallel.etp": plan.parallel.tp}, where)
    return Imported(plan, tuple(_unused(document)), tuple(assumptions))


def _section(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = document.get(name)
    return section if isinstance(section, Mapping) else {}


def _without_auto(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document without the placeholders that Hugging Face's Trainer fills in."""
    return {
        key: _without_auto(value) if isinstance(value, Mapping) else value
        for key, value in document.items()
        if value != _AUTO
    }


def _batch(values: dict[str, Any], document: Mapping[str, Any], ranks: int, where: str) -> list[str]:
    """Fill in the batch by DeepSpeed's identity: train = micro * accumulation * ranks (``runtime/config.py``)."""
    whole, micro = values.get("batch.global_batch_size"), values.get("batch.micro_batch_size")
    steps = document.get("gradient_accumulation_steps")
    steps = steps if isinstance(steps, int) and not isinstance(steps, bool) and steps > 0 else None
    remarks = []
    if micro is None and whole is not None and whole % (ranks * (steps or 1)) == 0:
        micro = whole // (ranks * (steps or 1))
    if micro is None:
        micro = 1
        remarks.append("micro batch size: the file leaves it open; 1 is taken")
    if whole is None:
        whole = micro * (steps or 1) * ranks
        if steps is None:
            remarks.append(f"global batch size: the file leaves it open; one micro batch per rank, {whole}, is taken")
    if whole % (micro * ranks) or (steps is not None and whole != micro * steps * ranks):
        raise PlanError(
            where,
            f"train_batch_size {whole} is not micro batch {micro} * accumulation {steps or 'any'} * {ranks} ranks",
            "check --gpus: DeepSpeed refuses this too",
        )
    values["batch.global_batch_size"], values["batch.micro_batch_size"] = whole, micro
    return remarks


def _unused(document: Mapping[str, Any]) -> list[Unused]:
    found: list[Unused] = []
    for key, value in document.items():
        if key in _WHOLE:
            continue
        if key in _USED and isinstance(value, Mapping):
            for inner, leaf in value.items():
                if inner not in _USED[key] and leaf not in (False, None, _AUTO):
                    found.append(_reason(f"{key}.{inner}", leaf, section=True))
        elif key not in _USED and value not in (False, None):
            found.append(_reason(key, value, section=False))
    checkpointing = document.get("activation_checkpointing")
    for inner in ("partition_activations", "cpu_checkpointing", "contiguous_memory_optimization"):
        if isinstance(checkpointing, Mapping) and checkpointing.get(inner):
            name = f"activation_checkpointing.{inner}"
            found.append(Unused(name, "true", f"{LOST}: the plan keeps checkpoints whole on the GPU"))
    return sorted(found, key=lambda item: not item.matters)


def _reason(name: str, value: Any, section: bool) -> Unused:
    shown = "" if isinstance(value, Mapping | list) else str(value)
    if name in _LOST:
        return Unused(name, shown, f"{LOST}: {_LOST[name]}")
    # Other keys inside a section that moeplan reads are switches of buffers and loss scaling.
    if section or name in _INERT:
        return Unused(name, shown, INERT)
    hint = nearest(name, [*_USED, *_WHOLE])
    return Unused(
        name, shown, f"is not a key that moeplan knows, and DeepSpeed ignores unknown ones; {hint}".rstrip("; ")
    )
