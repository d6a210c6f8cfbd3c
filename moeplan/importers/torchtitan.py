"""torchtitan configurations, read into plans: TOML (up to 0.2.2), Python configurations and command lines (from 0.3).

Sections, keys and defaults: torchtitan 0.2.2, ``torchtitan/config/job_config.py``; 0.3 keeps their names.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moeplan.errors import PlanError
from moeplan.frameworks.carried import read_carried
from moeplan.frameworks.torchtitan_keys import plan_values, python_document
from moeplan.importers.assembling import Asked, dense_ranks, finish, whole_number, with_hardware, words_of
from moeplan.importers.imported import INERT, LOST, Imported, Unused
from moeplan.importers.shell import read_script
from moeplan.importers.shell_words import is_unknown

# Keys that reach the plan.
_USED = frozenset(
    [
        "training.seq_len",
        "training.local_batch_size",
        "training.global_batch_size",
        "training.mixed_precision_param",
        "training.mixed_precision_reduce",
        "parallelism.data_parallel_replicate_degree",
        "parallelism.data_parallel_shard_degree",
        "parallelism.fsdp_reshard_after_forward",
        "parallelism.tensor_parallel_degree",
        "parallelism.context_parallel_degree",
        "parallelism.pipeline_parallel_degree",
        "parallelism.expert_parallel_degree",
        "parallelism.expert_tensor_parallel_degree",
        "parallelism.enable_async_tensor_parallel",
        "parallelism.enable_sequence_parallel",
        "parallelism.context_parallel_rotate_method",
        "parallelism.expert_parallel_comm_backend",
        "parallelism.pipeline_parallel_schedule",
        "parallelism.pipeline_parallel_microbatch_size",
        "parallelism.pipeline_parallel_layers_per_stage",
        "activation_checkpoint.mode",
        "compile.enable",
        "compile.components",
        "compile.enable_async_tensor_parallel",
        "model.name",
        "model.flavor",
        "model.converters",
        "loss.chunked",
        "optimizer.name",
    ]
)
_LOST: Mapping[str, str] = {
    "training.enable_cpu_offload": "the plan offloads optimizer state only",
    "training.dtype": "the plan keeps main parameters in fp32",
    "parallelism.disable_loss_parallel": "the plan cuts the loss over tensor-parallel ranks",
    "parallelism.enable_compiled_autograd": "the plan has the framework's own kernels",
    "parallelism.module_fqns_per_model_part": "use a pipeline layout",
    "parallelism.pipeline_parallel_schedule_csv": "the plan knows schedules by name",
    "parallelism.pipeline_parallel_split_points": "use a pipeline layout",
    "parallelism.pipeline_parallel_expert_parallel_overlap": "set overlap.ep",
    "parallelism.hybridep": "the plan takes the dispatcher's default",
    "activation_checkpoint.selective_ac_option": "the plan recomputes modules, not operators",
    "activation_checkpoint.per_op_sac_force_recompute_mm_shapes_by_fqns": "the plan recomputes modules, not operators",
    "activation_checkpoint.memory_budget": "the plan recomputes modules, not operators",
    "activation_checkpoint.early_stop": "the plan recomputes whole layers",
    "optimizer.implementation": "the plan has one optimizer kernel",
    "debug.moe_force_load_balance": "set moe.load_imbalance",
}
_INERT_SECTIONS = (
    "job",
    "profiling",
    "metrics",
    "lr_scheduler",
    "checkpoint",
    "comm",
    "memory_estimation",
    "fault_tolerance",
    "validation",
    "experimental",
    "debug",
    "quantize",
    "optimizer",
    "training",
    "model",
    "tokenizer",
    "dataloader",
    "profiler",
)


def read_torchtitan(text: str, asked: Asked, where: str) -> Imported:
    """Read a torchtitan TOML, Python configuration or launch script (its text) into a plan.

    Raises:
        PlanError: It is none of these, or lacks what neither it nor the user says.
    """
    document = _document(text, where, asked.variables)
    if not {"parallelism", "training", "model"} & set(document):
        raise PlanError(where, "is no torchtitan configuration", "it has [training] and [parallelism]")
    carried = read_carried(text, where)
    assumptions: list[str] = []
    words = _checked_values(document, where)
    if carried is not None:
        values = with_hardware(carried.applied(words), asked, where)
    else:
        values = dict(words)
        model = asked.model if asked.model is not None else _model(document)
        values |= {"model": model} if model is not None else {}
        values = with_hardware(values, asked, where, _world(document))
        assumptions += _defaults(values, document)
        _batch(values, document, where)
    plan = finish(values, where)
    if carried is None:
        plan = finish({**values, **_virtual_stages(document, len(plan.architecture().layers))}, where)
    return Imported(plan, tuple(_unused(document)), tuple(assumptions))


def _document(text: str, where: str, variables: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Section -> key -> value, whatever the file is."""
    if re.search(r"^\s*\[[\w.]+\]\s*(#.*)?$", text, re.MULTILINE) and not text.startswith("#!"):
        try:
            return _flat_sections(tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            raise PlanError(where, f"is not TOML: {error}", "correct it there") from None
    if re.search(r"^\s*(def \w+\(|from \w|import \w)", text, re.MULTILINE) and not text.startswith("#!"):
        try:
            document = python_document(text)
        except (SyntaxError, ValueError, RecursionError, IndexError) as error:
            raise PlanError(where, f"is not Python that moeplan can read: {error}", "correct it there") from None
        module = re.search(r"^from torchtitan\.models\.(\w+) import model_registry", text, re.MULTILINE)
        if module is not None:
            document.setdefault("model", {}).setdefault("name", module.group(1))
        return document
    return _script_document(text, where, variables)


def _flat_sections(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Tables of tables under dotted names (``quantize.linear.float8``)."""
    found: dict[str, dict[str, Any]] = {}
    for name, section in document.items():
        if not isinstance(section, Mapping):
            continue
        found[name] = {key: value for key, value in section.items() if not isinstance(value, Mapping)}
        for inner, keys in _flat_sections({k: v for k, v in section.items() if isinstance(v, Mapping)}).items():
            found[f"{name}.{inner}"] = keys
    return found


def _script_document(text: str, where: str, variables: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The ``--section.key value`` overrides of a launch script, over the TOML that it names where that is at hand."""
    script = read_script(text, variables)
    words = max(script.commands, key=lambda w: sum(bool(re.match(r"--\w+\.\w", word)) for word in w), default=[])
    document: dict[str, dict[str, Any]] = {}
    options = _dotted_options(words)
    for name, value in options.items():
        if name == "job.config_file" and not is_unknown(value):
            path = Path(where).parent / value
            if path.suffix == ".toml" and path.is_file():
                from moeplan.documents import read_text

                document = _document(read_text(path), str(path), variables)
    for name, value in options.items():
        section, _, key = name.rpartition(".")
        if is_unknown(value):
            continue
        document.setdefault(section, {})[key] = _literal(value)
    return document


def _dotted_options(words: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for index, word in enumerate(words):
        match = re.fullmatch(r"--(\w+(?:\.\w+)+)(?:=(.*))?", word, re.DOTALL)
        if match is None:
            continue
        name, value = match.groups()
        following = words[index + 1] if index + 1 < len(words) else ""
        switch = not following or following.startswith("--")
        name = name.replace(".no_", ".") if value is None and switch and ".no_" in name else name
        negated = name != match.group(1)
        found[name] = value if value is not None else "False" if negated else "True" if switch else following
    return found


def _literal(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text
    return value if isinstance(value, int | float | str | list) else text


def _checked_values(document: Mapping[str, Mapping[str, Any]], where: str) -> dict[str, Any]:
    parallel = document.get("parallelism", {})
    for key, value in parallel.items():
        if key in ("pipeline_parallel_microbatch_size", "pipeline_parallel_layers_per_stage"):
            whole_number(where, f"parallelism.{key}", value)
        if key.endswith("_degree") and (
            isinstance(value, bool) or not isinstance(value, int) or value == 0 or value < -1
        ):
            raise PlanError(where, f"parallelism.{key} is {str(value)[:40]!r}", "give a whole number above 0")
    training = document.get("training", {})
    for key in ("seq_len", "local_batch_size", "global_batch_size"):
        value = training.get(key, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value == 0 or value < -1:
            raise PlanError(where, f"training.{key} is {str(value)[:40]!r}", "give a whole number above 0")
    return words_of(plan_values, document, where)


def _model(document: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The catalog model that torchtitan's model name and flavor stand for."""
    from moeplan.launch.torchtitan_rules import flavor_of
    from moeplan.model import load_model, model_names

    model = document.get("model", {})
    name, flavor = model.get("name"), model.get("flavor")
    for known in model_names():
        shape = flavor_of(load_model(known))
        if shape is not None and (shape.module, shape.name) == (name, flavor):
            return known
    return None


def _world(document: Mapping[str, Mapping[str, Any]]) -> int | None:
    """GPUs in all where every degree is written out."""
    parallel = document.get("parallelism", {})
    product = 1
    for key, default in (
        ("data_parallel_replicate_degree", 1),
        ("data_parallel_shard_degree", -1),
        ("tensor_parallel_degree", 1),
        ("context_parallel_degree", 1),
        ("pipeline_parallel_degree", 1),
    ):
        degree = parallel.get(key, default)
        if degree < 1:
            return None
        product *= degree
    return product


def _defaults(values: dict[str, Any], document: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """torchtitan's own defaults of what the file leaves open."""
    remarks = []
    if "batch.sequence_length" not in values:
        values["batch.sequence_length"] = 2048
        remarks.append("sequence length 2048: torchtitan's default")
    if "batch.micro_batch_size" not in values:
        values["batch.micro_batch_size"] = 8
        remarks.append("local batch size 8: torchtitan's default")
    if document.get("activation_checkpoint", {}).get("mode", "selective") == "selective":
        remarks.append("selective recomputation of operators is read as core_attn, the nearest module")
    return remarks


def _batch(values: dict[str, Any], document: Mapping[str, Mapping[str, Any]], where: str) -> None:
    """The global batch: one local batch per data-parallel rank unless the file says otherwise (``train.py``)."""
    ranks = dense_ranks(values, where)
    local = document.get("training", {}).get("local_batch_size", 8)
    if "batch.global_batch_size" not in values:
        values["batch.global_batch_size"] = local * ranks
    whole, micro = values["batch.global_batch_size"], values["batch.micro_batch_size"]
    if whole % (local * ranks) or local % micro:
        raise PlanError(
            where,
            f"training.global_batch_size {whole} is no multiple of local_batch_size {local} times {ranks} ranks",
            "check --gpus: torchtitan refuses this too",
        )


def _virtual_stages(document: Mapping[str, Mapping[str, Any]], layers: int) -> dict[str, Any]:
    """Stages per rank: from layers per stage, else two where the schedule is interleaved (``pipeline_parallel.py``)."""
    parallel = document.get("parallelism", {})
    pp = parallel.get("pipeline_parallel_degree", 1)
    if pp == 1:
        return {}
    schedule = str(parallel.get("pipeline_parallel_schedule", "1F1B"))
    per_stage = parallel.get("pipeline_parallel_layers_per_stage")
    if isinstance(per_stage, int) and not isinstance(per_stage, bool) and per_stage > 0:
        less = (
            parallel.get("pipeline_parallel_first_stage_less_layers", 1),
            parallel.get("pipeline_parallel_last_stage_less_layers", 1),
        )
        stages = -(-(layers + sum(count for count in less if isinstance(count, int))) // per_stage)
        return {"parallel.vpp": max(stages // pp, 1)}
    interleaved = any(word in schedule.lower() for word in ("interleaved", "looped", "zbv", "dualpipe"))
    return {"parallel.vpp": 2} if interleaved else {}


def _unused(document: Mapping[str, Mapping[str, Any]]) -> list[Unused]:
    found = []
    for section, keys in document.items():
        for key, value in keys.items():
            name = f"{section}.{key}"
            if name in _USED or value in (None, False, -1) or name.endswith("_stage_less_layers"):
                continue
            if name in _LOST:
                reason = f"{LOST}: {_LOST[name]}"
            elif section.partition(".")[0] in _INERT_SECTIONS:
                reason = INERT
            else:
                reason = "is not a key that moeplan knows; it may change memory or time"
            found.append(Unused(name, str(value)[:200], reason))
    replicas = document.get("parallelism", {}).get("data_parallel_replicate_degree", 1)
    shards = document.get("parallelism", {}).get("data_parallel_shard_degree", -1)
    if replicas > 1 and shards != 1:
        name = "parallelism.data_parallel_replicate_degree"
        found.append(Unused(name, str(replicas), f"{LOST}: the plan shards over the whole data-parallel group"))
    return sorted(found, key=lambda item: not item.matters)
