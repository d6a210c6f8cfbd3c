"""From table columns to the shard that operators are asked about."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeplan.estimator.precision import precision
from moeplan.estimator.table import Table
from moeplan.operators.base import Array, Shard

# Columns that the per-layer formulas read. Whatever is not named here (gpus, pp, sharding, ...) cannot change what an
# operator computes, keeps or sends per micro batch, so candidates that differ only there share one evaluation.
SHARD_COLUMNS: tuple[str, ...] = (
    "tp",
    "sp",
    "cp",
    "cp_comm",
    "ep",
    "etp",
    "micro_batch_size",
    "sequence_length",
    "precision",
    "recompute",
    "recompute_modules",
    "top_k",
    "dispatcher",
    "capacity_factor",
    "load_imbalance",
    "fused_cross_entropy",
    "flash_attention",
    "cuda_graphs",
    "dropout",
    "framework",
    "offload_modules",
    "activation_offload_fraction",
)

RECOMPUTE_MODULES: tuple[str, ...] = (
    "core_attn",
    "moe_act",
    "layernorm",
    "mla_up_proj",
    "mlp",
    "moe",
    "shared_experts",
)
"""Megatron-Core's names (``transformer_config.py``, recompute_modules)."""

DISPATCHERS: tuple[str, ...] = ("alltoall", "allgather", "deepep", "hybridep")
CP_COMMUNICATIONS: tuple[str, ...] = ("p2p", "a2a", "allgather")

OFFLOAD_MODULES: tuple[str, ...] = (
    "attn_norm",
    "qkv_linear",
    "core_attn",
    "attn_proj",
    "mlp_norm",
    "expert_fc1",
    "moe_act",
)
"""Megatron-Core's names (``transformer_config.py``, offload_modules)."""


def of_levels(table: Table, name: str, value: Callable[[Any], float]) -> Array:
    """A float64 array (rows,) computed once per level of a column."""
    column = table.columns[name]
    levels: NDArray[np.float64] = np.array([value(level) for level in column.levels], np.float64)
    return column.spread(levels)


def vocabulary_multiple(table: Table) -> Array:
    """What the vocabulary is padded to a multiple of: Megatron-LM pads to 128 times ``tp``, others do not pad."""
    megatron = of_levels(table, "framework", lambda level: float(level == "megatron"))
    return np.where(megatron > 0, 128.0 * table["tp"], 1.0)


def _holds(table: Table, name: str, item: str) -> Array:
    return of_levels(table, name, lambda level: float(item in (level or ())))


CUT_COLUMNS: tuple[str, ...] = ("tp", "ep", "etp", "framework", "precision")
"""Columns that weight shapes depend on: far fewer than those of activations, so far fewer distinct rows."""


def cut_of(table: Table) -> Shard:
    """The shard as weights see it; ``table`` needs :data:`CUT_COLUMNS` only."""
    tp = table["tp"]
    one = np.ones_like(tp)
    return Shard(
        tp=tp,
        cp=one,
        ep=table["ep"],
        etp=table["etp"],
        micro_batch_size=one,
        sequence_length=one,
        values={
            "vocabulary_multiple": vocabulary_multiple(table),
            "parameter_bytes": of_levels(table, "precision", lambda name: precision(name).parameter),
        },
    )


def shard_of(table: Table) -> Shard:
    """Build the shard of every row of ``table``, which must hold :data:`SHARD_COLUMNS`; arrays have shape (rows,).

    ``Shard.values`` holds, by name:

    - ``sp``: 1 where sequence parallelism is on (by default wherever ``tp`` > 1);
    - ``activation_bytes``, ``gemm_input_bytes``, ``parameter_bytes``, ``low_precision``: see
      :class:`~moeplan.estimator.precision.Precision`;
    - ``top_k``, ``capacity_factor``: NaN where the model's own or none holds;
    - ``load_imbalance``: tokens on the fullest expert-parallel rank over the mean;
    - ``dispatcher.<name>``, ``cp_comm.<name>``: 1 for the one in use;
    - ``recompute.<module>``: 1 where selective recomputation drops it, ``recompute.full``: 1 under full recomputation;
    - ``offload.<module>``: the fraction of that module's saved tensors that goes to the host;
    - ``fused_cross_entropy``, ``flash_attention``, ``cuda_graphs``, ``dropout``: 0 or 1;
    - ``eager``: 1 where layers run Hugging Face's eager code (``fsdp2``, ``deepspeed``) rather than Megatron-Core's;
    - ``fused_norm``, ``fused_rope``: 1 where Transformer Engine's modules run (a norm inside the projection that it
      feeds, rotary embedding without kept tables), 0 for Megatron-Core's local implementation;
    - ``vocabulary_multiple``: what the vocabulary is padded to a multiple of (Megatron-LM
      ``--make-vocab-size-divisible-by`` 128, times ``tp``).
    """
    values: dict[str, Array] = {}
    tp = table["tp"]
    values["sp"] = np.where(np.isnan(table["sp"]), 1.0, table["sp"]) * (tp > 1)
    values["activation_bytes"] = of_levels(table, "precision", lambda level: precision(level).activation)
    values["gemm_input_bytes"] = of_levels(table, "precision", lambda level: precision(level).gemm_input)
    values["parameter_bytes"] = of_levels(table, "precision", lambda level: precision(level).parameter)
    values["low_precision"] = of_levels(table, "precision", lambda level: precision(level).low)
    for name in ("top_k", "capacity_factor", "load_imbalance"):
        values[name] = table[name]
    for name in DISPATCHERS:
        values[f"dispatcher.{name}"] = table.equals("dispatcher", name).astype(np.float64)
    for name in CP_COMMUNICATIONS:
        values[f"cp_comm.{name}"] = table.equals("cp_comm", name).astype(np.float64)
    selective = table.equals("recompute", "selective").astype(np.float64)
    for module in RECOMPUTE_MODULES:
        values[f"recompute.{module}"] = selective * _holds(table, "recompute_modules", module)
    values["recompute.full"] = table.equals("recompute", "full").astype(np.float64)
    fraction = table["activation_offload_fraction"]
    for module in OFFLOAD_MODULES:
        values[f"offload.{module}"] = fraction * _holds(table, "offload_modules", module)
    for name in ("fused_cross_entropy", "flash_attention", "cuda_graphs", "dropout"):
        values[name] = table[name]
    values["eager"] = of_levels(table, "framework", lambda level: level != "megatron")
    values["fused_norm"] = 1.0 - values["eager"]
    values["fused_rope"] = np.ones_like(tp)
    values["vocabulary_multiple"] = vocabulary_multiple(table)
    return Shard(
        tp=tp,
        cp=table["cp"],
        ep=table["ep"],
        etp=table["etp"],
        micro_batch_size=table["micro_batch_size"],
        sequence_length=table["sequence_length"],
        values=values,
    )
