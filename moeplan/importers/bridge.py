"""Megatron-Bridge launch scripts, read into plans: a recipe's name and ``section.key=value`` overrides.

What a recipe itself sets lies in its Python function; only what the script overrides is read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from moeplan.errors import PlanError
from moeplan.frameworks.bridge_keys import plan_values
from moeplan.frameworks.carried import read_carried
from moeplan.importers.assembling import Asked, dense_ranks, finish, with_hardware
from moeplan.importers.imported import INERT, LOST, Imported, Unused
from moeplan.importers.megatron_script import world
from moeplan.importers.megatron_unused import why_unused
from moeplan.importers.shell import read_script
from moeplan.importers.shell_words import is_unknown, shown

_OVERRIDE = re.compile(r"\+{0,2}([a-z_]+(?:\.\w+)+|mixed_precision)=(.*)", re.DOTALL)
# Keys that reach the plan beside those of ``frameworks/bridge_keys.py``'s tables, and those that every plan assumes.
_READ = frozenset(
    [
        "mixed_precision",
        "model.virtual_pipeline_model_parallel_size",
        "model.pipeline_model_parallel_layout",
        "model.account_for_embedding_in_pipeline_split",
        "model.account_for_loss_in_pipeline_split",
        "model.cp_comm_type",
        "model.recompute_granularity",
        "model.recompute_modules",
        "model.recompute_method",
        "model.fine_grained_activation_offloading",
        "model.offload_modules",
        "model.activation_offload_fraction",
        "model.attention_backend",
        "model.cuda_graph_impl",
        "model.moe_token_dispatcher_type",
        "model.moe_flex_dispatcher_backend",
        "model.moe_expert_capacity_factor",
        "model.moe_grouped_gemm",
        "model.moe_permute_fusion",
        "optimizer.optimizer",
        "optimizer.exp_avg_dtype",
        "optimizer.exp_avg_sq_dtype",
        "optimizer.optimizer_cpu_offload",
        "optimizer.optimizer_offload_fraction",
        "optimizer.use_distributed_optimizer",
        "optimizer.use_precision_aware_optimizer",
        "ddp.use_distributed_optimizer",
        "ddp.use_megatron_fsdp",
        "ddp.data_parallel_sharding_strategy",
        "ddp.grad_reduce_in_fp32",
        "dist.use_megatron_fsdp",
        "dataset.seq_length",
        "dataset.sequence_length",
    ]
)
_INERT_SECTIONS = ("checkpoint", "logger", "scheduler", "dataset", "rng", "tokenizer", "profiling", "env_vars", "dist")


def read_bridge(text: str, asked: Asked, where: str) -> Imported:
    """Read a Megatron-Bridge launch script (its text) into a plan.

    Raises:
        PlanError: It has no overrides, or lacks what neither it nor the user says.
    """
    script = read_script(text, asked.variables)
    words = max(script.commands, key=lambda found: sum(bool(_OVERRIDE.fullmatch(word)) for word in found), default=[])
    overrides = {}
    for word in words:
        match = _OVERRIDE.fullmatch(word)
        if match is not None and not is_unknown(match.group(2)):
            overrides[match.group(1)] = match.group(2)
    recipe = _recipe(words)
    if not overrides and recipe is None:
        raise PlanError(where, "has no Megatron-Bridge recipe and no section.key=value overrides", "name the script")
    try:
        said = plan_values(overrides)
    except ValueError as error:
        raise PlanError(where, f"an override has a wrong value: {error}", "correct it") from None
    carried = read_carried(text, where)
    values = carried.applied(said) if carried is not None else dict(said)
    if carried is None and asked.model is None:
        model = _model(recipe)
        values |= {"model": model} if model is not None else {}
    nodes, per_node = world(script)
    gpus = nodes * per_node if nodes and per_node else None
    # A launcher's number wins over the one carried: the script is read as it now stands.
    values = with_hardware({**values, **({"hardware.gpus": gpus} if gpus else {})}, asked, where)
    assumptions = []
    if carried is None:
        ranks = dense_ranks(values, where)
        values.setdefault("batch.micro_batch_size", 1)
        values.setdefault("batch.global_batch_size", values["batch.micro_batch_size"] * ranks)
        assumptions.append(
            f"what recipe {recipe or '(unnamed)'} sets and the script does not override keeps the plan's defaults"
        )
    return Imported(finish(values, where), tuple(_unused(overrides)), (*assumptions, *script.notes))


def _recipe(words: Sequence[str]) -> str | None:
    for index, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name in ("--recipe", "-r"):
            found = value if equals else words[index + 1] if index + 1 < len(words) else ""
            return None if is_unknown(found) or not found else found
    return None


def _model(recipe: str | None) -> str | None:
    """The catalog model that a recipe's name begins with."""
    from moeplan.launch.bridge_recipes import bridge_model
    from moeplan.model import load_model, model_names

    if recipe is None:
        return None
    best: tuple[int, str] | None = None
    for name in model_names():
        model = bridge_model(load_model(name))
        if model is not None and recipe.startswith(f"{model.name}_") and len(model.name) > (best or (0, ""))[0]:
            best = (len(model.name), name)
    return best[1] if best is not None else None


def _unused(overrides: dict[str, str]) -> list[Unused]:
    from moeplan.frameworks import bridge_keys

    read = _READ | set(bridge_keys._INTEGERS) | set(bridge_keys._TRUTHS)
    found = []
    for name, value in overrides.items():
        if name in read:
            continue
        section, _, key = name.partition(".")
        # Bridge's keys are Megatron-LM's arguments by another spelling.
        reason: str | None = INERT if section in _INERT_SECTIONS else why_unused(key.replace("_", "-"), (value,))
        if reason is not None and not reason.startswith((INERT, LOST)):
            reason = "is not a key that moeplan knows; it may change memory or time"
        if reason is not None and value not in ("false", "null"):
            found.append(Unused(name, shown(value), reason))
    return sorted(found, key=lambda item: not item.matters)
