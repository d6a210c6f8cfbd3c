"""From operators to layers: one micro batch, forward and backward, with the overlap rules of communication applied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from moeplan.estimator.machine import Machine
from moeplan.estimator.shard import OFFLOAD_MODULES
from moeplan.estimator.table import Codes, Column, Table
from moeplan.estimator.time.coefficients import coefficients
from moeplan.estimator.time.collectives import Limit
from moeplan.estimator.time.items import TIME_COLUMNS, Pricer, rounded_max
from moeplan.model.architecture import Layer, Operator
from moeplan.operators.attention import Attention, LatentAttention
from moeplan.operators.base import Array, Shard
from moeplan.operators.counted import CountedExperts
from moeplan.operators.embedding import Embedding, Head, TokenPredictionProjection
from moeplan.operators.mlp import DenseMLP
from moeplan.operators.moe import MoE
from moeplan.operators.norm import Norm
from moeplan.operators.work import Collective, Traffic, Work

GROUPS = ("tp", "cp", "ep", "etp")

_DENSE = (
    "tp",
    "sp",
    "cp",
    "micro_batch_size",
    "sequence_length",
    "precision",
    "gradient_dtype",
    "recompute",
    "recompute_modules",
    "framework",
)
_EXPERTS = ("ep", "etp", "top_k", "dispatcher", "capacity_factor", "load_imbalance", "cuda_graphs")


def columns_of(operator: Operator) -> tuple[str, ...]:
    """Columns that an operator's time depends on: candidates that agree in them share one evaluation."""
    if isinstance(operator, Norm | DenseMLP | Embedding | TokenPredictionProjection):
        return _DENSE
    if isinstance(operator, Attention | LatentAttention):
        return (*_DENSE, "cp_comm", "flash_attention")
    if isinstance(operator, Head):
        return (*_DENSE, "fused_cross_entropy")
    if isinstance(operator, MoE | CountedExperts):
        return (*_DENSE, *_EXPERTS)
    return TIME_COLUMNS


@dataclass
class OperatorTime:
    """Seconds of one operator and one micro batch; arrays of shape (rows,).

    Attributes:
        forward: Kernels of the forward pass.
        backward: Kernels of the backward pass, without replays.
        weight: Of ``backward``, the weight gradients.
        replay: Forward kernels and communication that selective recomputation runs again.
        replay_full: The same under full recomputation.
        launches: Host time in forward, in launches of a module.
        attention: Of ``forward``, attention itself: what a context-parallel ring hides behind.
        sent: By group: communication of forward, of backward, and of backward beside kernels.
        named: Kernel seconds, forward plus backward, by item.
    """

    forward: Array
    backward: Array
    weight: Array
    replay: Array
    replay_full: Array
    launches: Array
    attention: Array
    sent: dict[str, tuple[Array, Array, Array]] = field(default_factory=dict)
    named: dict[str, Array] = field(default_factory=dict)

    @classmethod
    def nothing(cls, rows: int) -> OperatorTime:
        """No time at all."""
        zeros = np.zeros((7, rows))
        return cls(zeros[0], zeros[1], zeros[2], zeros[3], zeros[4], zeros[5], zeros[6])

    def take(self, index: Codes, named: bool) -> OperatorTime:
        """The rows at ``index``; the names only where they are asked for."""
        taken = OperatorTime(
            np.take(self.forward, index),
            np.take(self.backward, index),
            np.take(self.weight, index),
            np.take(self.replay, index),
            np.take(self.replay_full, index),
            np.take(self.launches, index),
            np.take(self.attention, index),
        )
        for group, (forward, backward, hidden) in self.sent.items():
            taken.sent[group] = np.take(forward, index), np.take(backward, index), np.take(hidden, index)
        if named:
            taken.named = {name: np.take(seconds, index) for name, seconds in self.named.items()}
        return taken

    def absorb(self, other: OperatorTime) -> None:
        """Add another operator's time."""
        self.forward += other.forward
        self.backward += other.backward
        self.weight += other.weight
        self.replay += other.replay
        self.replay_full += other.replay_full
        self.launches += other.launches
        self.attention += other.attention
        for group, parts in other.sent.items():
            self.send(group, *parts)
        for name, seconds in other.named.items():
            self.named[name] = self.named.get(name, 0.0) + seconds

    def send(self, group: str, forward: Array, backward: Array, hidden: Array) -> None:
        """Add communication of a group."""
        if group in self.sent:
            before = self.sent[group]
            forward, backward, hidden = before[0] + forward, before[1] + backward, before[2] + hidden
        self.sent[group] = forward, backward, hidden


def operator_time(pricer: Pricer, operator: Operator) -> OperatorTime:
    """Price one operator on every row of the pricer's table."""
    total = OperatorTime.nothing(pricer.table.rows)
    shard = pricer.shard
    full = shard.value("recompute.full")
    experts = np.zeros(pricer.table.rows), np.zeros(pricer.table.rows)
    for item in operator.work(shard):
        replayed = _replayed(item, shard)
        if isinstance(item, Collective):
            seconds = pricer.collective(item)
            total.send(
                item.group,
                item.forward * seconds,
                (item.backward - item.hidden_backward) * seconds,
                item.hidden_backward * seconds,
            )
            total.launches += np.where(item.payload > 0, 2.0, 0.0)
            total.replay += replayed * (item.forward * seconds)
            total.replay_full += full * (item.forward * seconds)
            continue
        forward, backward, weight = pricer.kernel(item)
        total.forward += forward
        total.backward += backward
        total.weight += weight
        total.replay += replayed * forward
        total.replay_full += full * forward
        total.launches += _launches(item)
        if item.name.startswith("experts."):
            experts = (experts[0] + forward, experts[1] + backward)
        if item.name == "core_attention":
            total.attention += forward
        total.named[item.name] = total.named.get(item.name, 0.0) + forward + backward
    if isinstance(operator, MoE):
        first, second = pricer.waits_s(operator.local_experts(shard), *experts)
        total.forward += first
        total.backward += second
        total.named["experts.wait"] = np.zeros(pricer.table.rows) + first + second
    return total


@dataclass
class LayerTime:
    """Seconds of one layer and one micro batch; arrays of shape (rows,).

    Attributes:
        forward: Kernels of the forward pass, stretched to the host's pace.
        backward: Kernels of the backward pass, without replays.
        weight: Of ``backward``, the weight gradients (what zero-bubble schedules move).
        replay: Forward kernels and communication that selective recomputation runs again.
        replay_full: The same under full recomputation.
        exposed_forward: Communication in forward that nothing hides.
        exposed_backward: The same in backward.
        hidden: Expert exchange, forward and backward, that another micro batch hides.
        operators: Kernel seconds (forward plus backward) by item; only where asked for.
        groups: Exposed communication by group.
    """

    forward: Array
    backward: Array
    weight: Array
    replay: Array
    replay_full: Array
    exposed_forward: Array
    exposed_backward: Array
    hidden: Array
    operators: dict[str, Array]
    groups: dict[str, Array]


def layer_times(
    parts: tuple[Layer, ...],
    machine: Machine,
    table: Table,
    factors: Mapping[str, float],
    limit: Limit | None = None,
    named: bool = False,
) -> tuple[list[LayerTime], Codes, Table]:
    """Price every part on the distinct rows of a table.

    Each operator is priced on the distinct rows of the columns it depends on, once however many parts hold it.

    Args:
        parts: The layers to price.
        machine: The GPU and its links.
        table: Candidates.
        factors: Calibration factors.
        limit: The model's group-limited routing.
        named: Keep kernel seconds by item.

    Returns:
        One :class:`LayerTime` per part over the distinct rows, the distinct row of each table row, the distinct table.
    """
    distinct, index = table.distinct(TIME_COLUMNS)
    pricer = Pricer.of(machine, factors, distinct, limit)
    cuts: dict[tuple[str, ...], tuple[Pricer, Codes]] = {}
    priced: dict[Operator, OperatorTime] = {}
    gathered: dict[tuple[Operator, ...], OperatorTime] = {}
    times = []
    for part in parts:
        total = OperatorTime.nothing(distinct.rows)
        # Operators of the same columns are added before they are gathered, which moves fewer rows.
        for names, group in _by_columns(part).items():
            if names not in cuts:
                cuts[names] = _cut(machine, factors, distinct, names, limit)
            own, rows = cuts[names]
            if group not in gathered:
                together = OperatorTime.nothing(own.table.rows)
                for operator in group:
                    if operator not in priced:
                        priced[operator] = operator_time(own, operator)
                    together.absorb(priced[operator])
                gathered[group] = together.take(rows, named)
            total.absorb(gathered[group])
        times.append(_settled(pricer, total, _offloaded_bytes(pricer.shard, part)))
    return times, index, distinct


def _offloaded_bytes(shard: Shard, part: Layer) -> Array:
    """Saved activations of one layer that wait for backward in host memory (Megatron's fine-grained offloading)."""
    switches = {name: shard.value(f"offload.{name}") for name in OFFLOAD_MODULES}
    active = {name for name, share in switches.items() if np.any(share > 0)}
    found = np.zeros(1)
    if active:
        for operator in part.operators:
            for step in operator.steps(shard):
                for tensor in step.saved:
                    if tensor.offload in active:
                        found = found + tensor.bytes * switches[tensor.offload]
    return found


def _by_columns(part: Layer) -> dict[tuple[str, ...], tuple[Operator, ...]]:
    """A layer's operators by the columns they depend on, in order."""
    found: dict[tuple[str, ...], tuple[Operator, ...]] = {}
    for operator in part.operators:
        names = columns_of(operator)
        found[names] = (*found.get(names, ()), operator)
    return found


def _cut(
    machine: Machine, factors: Mapping[str, float], table: Table, names: tuple[str, ...], limit: Limit | None
) -> tuple[Pricer, Codes]:
    """A pricer on the distinct rows of some columns, the others held constant, and the row of each table row."""
    distinct, rows = table.distinct(names)
    rest = {
        name: Column.constant(table.columns[name].levels[0], distinct.rows)
        for name in TIME_COLUMNS
        if name not in names
    }
    return Pricer.of(machine, factors, distinct.with_columns(rest), limit), rows


def _replayed(item: Work, shard: Shard) -> Array:
    """1 where selective recomputation runs the item again."""
    found = np.zeros(1)
    for module in item.replay:
        found = np.maximum(found, shard.value(f"recompute.{module}"))
    return found


def _launches(item: Work) -> Array | float:
    """Host time of an item in forward, in launches of a Transformer Engine module.

    Routing, permutation and loss are chains of small ATen kernels, which cost the host about a quarter each.
    """
    if not isinstance(item, Traffic):
        return 2.0
    small = 1.0 if item.pattern == "stream" else 0.25
    return np.where(item.forward > 0, small * item.kernels, 0.0)


def _settled(pricer: Pricer, time: OperatorTime, offloaded: Array) -> LayerTime:
    """Stretch kernels to the host's pace, then expose what communication they cannot hide.

    Offloaded activations cross PCIe beside kernels, out in forward and back in backward; copy engines take no
    multiprocessors, but the copies use memory bandwidth, which always shows.
    """
    launch_s = coefficients()["host"]["kernel_us"] * 1e-6 * pricer.host_pace()
    eager = pricer.shard.value("cuda_graphs") == 0
    # Backward launches half as many kernels again (data and weight gradients against one product).
    forward = _paced(time.forward, time.launches * launch_s, eager)
    backward = _paced(time.backward, 1.5 * time.launches * launch_s, eager)
    named = dict(time.named)
    if named:
        named["host"] = (forward - time.forward) + (backward - time.backward)
    exposed_forward, exposed_backward = np.zeros_like(forward), np.zeros_like(forward)
    groups = {}
    hidden = np.zeros_like(forward)
    for group, sent in time.sent.items():
        first, second = _exposed(pricer, group, sent, time, (forward, backward))
        exposed_forward += first
        exposed_backward += second
        groups[group] = first + second
        if group == "ep":
            hidden = sent[0] + sent[1] + sent[2] - first - second
    if np.any(offloaded > 0):
        wire, memory = offloaded / pricer.links.host_rate, offloaded / pricer.kernels.memory_rate("stream")
        first, second = (np.maximum(wire - kernels, 0.0) + memory for kernels in (forward, backward))
        exposed_forward += first
        exposed_backward += second
        groups["host"] = first + second
    return LayerTime(
        forward,
        backward,
        time.weight,
        time.replay,
        time.replay_full,
        exposed_forward,
        exposed_backward,
        hidden,
        named,
        groups,
    )


def _paced(device: Array, host: Array, eager: Array) -> Array:
    """Kernels at the host's pace where CUDA graphs do not replay them."""
    return np.where(eager, rounded_max(device, host), device)


def _exposed(
    pricer: Pricer,
    group: str,
    sent: tuple[Array, Array, Array],
    time: OperatorTime,
    kernels: tuple[Array, Array],
) -> tuple[Array, Array]:
    """What stays exposed of a group's communication in forward and backward (rules: see the package's docstring)."""
    rules = coefficients()["overlap"]
    forward, backward, hidden = sent
    if group == "tp":
        behind = np.minimum(hidden, _SHARE_OF_BACKWARD * kernels[1])
        share = np.where(pricer.table["overlap_tp"] > 0, rules["tp_exposed"], 1.0)
        return forward * share, backward * share + (hidden - behind + rules["tp_backward"] * behind)
    if group == "ep":
        both = kernels[0] + kernels[1]
        whole = forward + backward
        kept = np.maximum(whole - both, 0.0) + rules["ep_exposed"] * np.minimum(whole, both)
        ratio = 1 - pricer.overlapped_exchange() * (1 - kept / np.maximum(whole, 1e-12))
        return forward * ratio, backward * ratio
    if group == "cp":
        # The ring passes the next block beside the attention of this one; backward's attention takes longer.
        leak = rules["interference"]
        ring = pricer.shard.value("cp_comm.p2p") > 0
        passed = np.maximum(forward - time.attention, leak * forward)
        behind = np.minimum(hidden, _SHARE_OF_BACKWARD * kernels[1])
        return np.where(ring, passed, forward), backward + (hidden - behind + rules["tp_backward"] * behind)
    return forward, backward


# Kernels of backward that need no communicated input: the weight gradients and the data gradients beside them.
_SHARE_OF_BACKWARD = 0.7
