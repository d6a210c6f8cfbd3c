"""When nothing fits: the smallest changes that would."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moeplan.errors import PlanError
from moeplan.estimator.machine import Machine
from moeplan.estimator.table import Table
from moeplan.search.engine import search
from moeplan.search.facts import facts
from moeplan.search.layouts import legal_rows
from moeplan.search.objectives import GIB
from moeplan.search.request import SearchRequest, Winner
from moeplan.search.space import load_space

# Doublings of the cluster that are tried: a model that needs more than 64 times the GPUs asks for another question.
_DOUBLINGS = 6
_CHANGE = "_change"


@dataclass(frozen=True)
class Change:
    """A change that makes a plan fit.

    Attributes:
        what: In words, for a report.
        values: Columns and their new values.
        row: The whole candidate after the change.
        headroom_bytes: Memory then left.
        tokens_per_s: Throughput then.
    """

    what: str
    values: Mapping[str, Any]
    row: Mapping[str, Any]
    headroom_bytes: float
    tokens_per_s: float


def changes(request: SearchRequest, miss: Winner) -> list[Change]:
    """Single changes that make one near miss fit, the least intrusive first.

    First what only costs time (recompute, smaller micro batches, more sharding), then what changes number formats, then
    shorter sequences.
    """
    variants = _variants(miss.row)
    table = Table.of_rows([{**miss.row, **values, _CHANGE: index} for index, (_, values) in enumerate(variants)])
    table = legal_rows(facts(request.architecture, request.machine), table)
    if not table.rows:
        return []
    kept = table["_change"].astype(int)
    priced = Table({name: column for name, column in table.columns.items() if name != _CHANGE}, table.rows)
    prices = request.price(priced)
    return [
        Change(
            what=variants[kept[row]][0],
            values=variants[kept[row]][1],
            row=priced.row(row),
            headroom_bytes=float(prices.headroom_bytes[row]),
            tokens_per_s=float(prices.tokens_per_s[row]),
        )
        for row in map(int, np.flatnonzero(prices.fits))
    ]


def _variants(row: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Changes worth trying, in the order in which one would like to make them."""
    found: list[tuple[str, dict[str, Any]]] = []
    smaller = [size for size in (1 << p for p in range(16, -1, -1)) if size < row["micro_batch_size"]]
    found += [(f"micro_batch_size {size}", {"micro_batch_size": size}) for size in smaller]
    plain = {"recompute_method": None, "recompute_layers": None}
    for modules in (("layernorm", "moe_act"), ("core_attn",), ("moe",), ("core_attn", "moe")):
        merged = tuple(dict.fromkeys((*row["recompute_modules"], *modules)))
        if row["recompute"] != "full" and merged != tuple(row["recompute_modules"]):
            cell = {"recompute": "selective", "recompute_modules": merged, **plain}
            found.append((f"recompute {', '.join(merged)}", cell))
    if row["recompute"] != "full" or row["recompute_layers"] is not None:
        found.append(("full recompute", {"recompute": "full", "recompute_modules": (), **plain}))
    stages = [stage for stage in (1, 2, 3) if stage > row["sharding"]]
    found += [(f"sharding {stage}", {"sharding": stage}) for stage in stages]
    if row["offload_fraction"] < 1:
        found.append(("optimizer state in host memory", {"offload_fraction": 1.0}))
    if row["gradient_dtype"] == "fp32":
        found.append(("bf16 gradients", {"gradient_dtype": "bf16"}))
    if row["state_dtype"] == "fp32":
        found.append(("bf16 optimizer state", {"state_dtype": "bf16"}))
        found.append(("bf16 gradients and state", {"state_dtype": "bf16", "gradient_dtype": "bf16"}))
    length = int(row["sequence_length"]) // 2
    while length >= 512:
        found.append((f"sequence_length {length}", {"sequence_length": length}))
        length //= 2
    return found


def more_gpus(request: SearchRequest) -> Change | None:
    """The smallest doubling of the cluster on which something fits, found by searching again.

    The knobs are those of the ``quick`` space and full recompute is among them, so what does not fit there fits hardly
    anywhere.
    """
    base = dict(request.base)
    quick = load_space("quick")
    for doubling in range(1, _DOUBLINGS + 1):
        gpus = int(request.base["gpus"]) << doubling
        # The batch grows with the cluster, as weak scaling does, so that data parallelism can use the new GPUs.
        grown = {**base, "gpus": gpus, "global_batch_size": int(base["global_batch_size"]) << doubling}
        again = replace(
            request, base=grown, space=quick, sampler="exhaustive", storage=None, top=1, progress=None, timeout_s=None
        )
        try:
            best = search(again).best
        except PlanError as error:
            if error.where != "search":
                raise
            continue
        if best is not None:
            return Change(f"{gpus} GPUs", {"gpus": gpus}, best.row, best.headroom_bytes, best.tokens_per_s)
    return None


def larger_gpu(request: SearchRequest, miss: Winner, machines: Iterable[Machine]) -> Machine | None:
    """Of the GPUs offered, the one with the least memory that would hold a near miss as it is, or None."""
    margin_bytes = request.machine.usable_gib * GIB - miss.device_bytes - miss.headroom_bytes
    able = [machine for machine in machines if machine.usable_gib * GIB >= miss.device_bytes + margin_bytes]
    return min(able, key=lambda machine: (machine.usable_gib, machine.name), default=None)
