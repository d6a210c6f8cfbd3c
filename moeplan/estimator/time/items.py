"""From work items to seconds, on one machine and the distinct ways to cut an operator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from moeplan.estimator.machine import Machine
from moeplan.estimator.precision import precision
from moeplan.estimator.shard import SHARD_COLUMNS, of_levels, shard_of
from moeplan.estimator.table import Table
from moeplan.estimator.time.coefficients import coefficients, of_generation
from moeplan.estimator.time.collectives import Limit, Links, Span
from moeplan.estimator.time.efficiency import Kernels
from moeplan.model.architecture import Architecture
from moeplan.operators.base import Array, Shard
from moeplan.operators.work import AttentionCore, Collective, Gemm, Scan, Traffic

_CASTS: Mapping[str, float] = {"fp8": 3.0, "mxfp8": 1.0, "nvfp4": 3.0}
"""Kernels that quantize one input of an expert (Transformer Engine's quantizers): one with block scales; with a scale
per tensor its largest element first and a transpose after."""

TIME_COLUMNS: tuple[str, ...] = (*SHARD_COLUMNS, "overlap_tp", "overlap_ep", "gradient_dtype")
"""Columns that the time of one layer depends on."""


@dataclass(frozen=True)
class Pricer:
    """Prices items on one machine for one table of distinct ways to cut a layer."""

    machine: Machine
    kernels: Kernels
    links: Links
    table: Table
    shard: Shard
    limit: Limit | None = None

    @classmethod
    def of(cls, machine: Machine, factors: Mapping[str, float], table: Table, limit: Limit | None = None) -> Pricer:
        """Bind a machine to a table that holds :data:`TIME_COLUMNS`."""
        shard = _per_micro_batch(shard_of(table))
        return cls(machine, Kernels(machine, factors), Links(machine, factors), table, shard, limit)

    def kernel(self, item: Gemm | AttentionCore | Traffic | Scan) -> tuple[Array, Array, Array]:
        """Forward and backward seconds of an item that computes, and the weight gradient's part of backward."""
        if isinstance(item, Gemm):
            return self._gemm(item)
        if isinstance(item, AttentionCore):
            return self._attention(item)
        zero = np.zeros(self.table.rows)
        if isinstance(item, Traffic):
            forward = self.kernels.traffic_s(item.forward, item.kernels, item.pattern)
            backward = self.kernels.traffic_s(item.backward, 1.5 * item.kernels, item.pattern)
            passes = self._passes(item.pattern)
            return zero + forward * passes, zero + backward * passes, zero
        rate = self.kernels.peak("bf16") * coefficients()["scan_share"]
        seconds = np.maximum(item.flops / rate, item.traffic / self.kernels.memory_rate("stream"))
        return zero + seconds, zero + 2 * seconds, zero

    def _passes(self, pattern: str) -> Array:
        """Times that memory-bound kernels move their tensors, over what fused kernels do."""
        data = coefficients()
        passes = np.ones(1)
        if pattern in ("permute", "expert"):
            passes = passes + self.eager_experts() * (data["eager_experts"]["passes"] - 1)
        if pattern in ("stream", "expert"):
            # Hugging Face's modules run operation by operation: an RMSNorm alone is five kernels over fp32 copies
            # (transformers, LlamaRMSNorm.forward), a rotary embedding six.
            passes = passes * (1 + self.unfused() * (data["eager_framework"]["passes"] - 1))
        return passes

    def unfused(self) -> Array:
        """1 where layers run operation by operation, 0 where Transformer Engine or torch.compile fuses them.

        A plan does not tell whether its framework compiles layers: the factor ``compiled`` does.
        """
        return self.shard.value("eager") * (1.0 - float(self.kernels.factors.get("compiled", 0.0)))

    def fusible(self) -> Array:
        """1 where software since NeMo 26.06 has a fused path of its own, with the whole step in one CUDA graph.

        MXFP8 on Blackwell with HybridEP (Megatron-Bridge perf_recipes/qwen/common.py,
        ``_enable_hybridep_full_iteration_mxfp8``).
        """
        return np.asarray(
            (self.machine.generation == "blackwell")
            * self.table.equals("precision", "mxfp8")
            * self.shard.value("dispatcher.hybridep")
            * self.shard.value("cuda_graphs")
        )

    def fused(self) -> Array:
        """How much of the fused path a row's software has: 0 to 1.

        On that path experts are one fused grouped MLP with buffers of fixed size (``moe_paged_stash``,
        ``use_transformer_engine_op_fuser``) and the exchange runs beside computation. A plan does not tell its
        software: the factor ``fused_moe`` does, 1 for software that has the path and 0 for software before; untold, it
        is the share of published runs that had it, and the uncertainty covers both.
        """
        untold = float(coefficients()["eager_experts"]["fused_by_default"])
        return self.fusible() * float(self.kernels.factors.get("fused_moe", untold))

    def eager_experts(self) -> Array:
        """1 where the host launches experts one by one, 0 where the fused path replays them."""
        return np.asarray(1.0 - self.fused())

    def overlapped_exchange(self) -> Array:
        """1 where the expert exchange of one micro batch runs beside the computation of another.

        Software before the fused path graphed layers one by one, without it (Megatron-Bridge
        scripts/performance/configs/qwen: ``moe_a2a_overlap`` is off wherever HybridEP and graphs are on).
        """
        return np.where(self.fusible() > 0, self.fused(), 1.0) * (self.table["overlap_ep"] > 0)

    def host_pace(self) -> float:
        """Host time over that of an x86 host: the Arm host of superchips (racks of 72) launches more slowly."""
        slow = float(coefficients()["host"]["arm"]) if self.machine.superchip else 1.0
        return slow * float(self.kernels.factors.get("host_overhead", 1.0))

    def waits_s(self, local_experts: Array, forward: Array, backward: Array) -> tuple[Array, Array]:
        """Seconds that eager experts wait for the host in forward and in backward.

        One round trip for the number of tokens per expert; then the host launches each local expert's products and the
        kernels that quantize their inputs, and sets the pace where it is slower than they run.

        Args:
            local_experts: Experts of the rank.
            forward: Kernel seconds of all local experts in forward.
            backward: The same in backward, which launches half as many kernels again.
        """
        data = coefficients()["eager_experts"]
        pace = self.host_pace() * 1e-6
        quantizing = of_levels(self.table, "precision", lambda name: _CASTS.get(precision(name).compute, 0.0))
        launch = data["expert_us"] * local_experts * (1.0 + quantizing) * pace
        trip, eager = data["wait_us"] * pace, self.eager_experts()
        first = trip + rounded_max(forward, launch) - forward
        second = trip + rounded_max(backward, 1.5 * launch) - backward
        return eager * first, eager * second

    def _gemm(self, item: Gemm) -> tuple[Array, Array, Array]:
        m, n, k, groups = item.tokens, item.outputs, item.inputs, item.groups
        section = "grouped_gemm" if item.grouped else "gemm"
        column = self.table.columns["precision"]
        size = (
            self.shard.value("gemm_input_bytes", 2.0) if item.quantized else self.shard.value("activation_bytes", 2.0)
        )
        wide = self.shard.value("activation_bytes", 2.0)
        gradient = np.where(self.table.equals("gradient_dtype", "fp32"), 8.0, 4.0)
        forward, backward, weight = (np.zeros(self.table.rows) for _ in range(3))
        for code, name in enumerate(column.levels):
            kind = name if item.quantized or not precision(name).low else "bf16"
            price = (groups, kind, section)
            inputs, weights, outputs = groups * m * k, groups * n * k, groups * m * n
            chosen = column.codes == code
            burst = bool(precision(name).low) and not item.quantized
            first = self.kernels.gemm_s(m, n, k, *price, (inputs + weights) * size + outputs * wide, burst=burst)
            data = self.kernels.gemm_s(m, k, n, *price, (outputs + weights) * size + inputs * wide, burst=burst)
            summed = (inputs + outputs) * size + weights * gradient
            grad = self.kernels.gemm_s(k, n, m, *price, summed, weight=True, burst=burst)
            cast, cast_back = self._quantization(name, inputs, outputs, wide) if item.quantized else (0.0, 0.0)
            # The fused path of experts quantizes inside the kernels before.
            apart = self.eager_experts() if item.grouped else 1.0
            forward = np.where(chosen, first + cast * apart, forward)
            backward = np.where(chosen, data + grad + cast_back * apart, backward)
            weight = np.where(chosen, grad, weight)
        return forward, backward, weight

    def _quantization(
        self, name: str, inputs: Array, outputs: Array, wide: Array
    ) -> tuple[Array | float, Array | float]:
        """Casts of a GEMM's input (forward) and of its output's gradient (backward), row- and column-wise.

        A cast reads the 16-bit tensor and writes it twice. The fitted factor counts what comes on top (the pass that
        finds the largest element, transposes, which Hopper's FP8 needs and Blackwell's does not) less what is fused
        into the kernel before (norm, activation).
        """
        facts = precision(name)
        if not facts.low:
            return 0.0, 0.0
        fitted = of_generation("quantization", self.machine.generation)
        fused = fitted.get(facts.compute, fitted["fp8"])
        per_element = (wide + 2 * facts.gemm_input) * fused
        rate = self.kernels.memory_rate("stream")
        return inputs * per_element / rate, outputs * per_element / rate

    def _attention(self, item: AttentionCore) -> tuple[Array, Array, Array]:
        pairs = item.sequences * item.heads * item.queries * item.keys
        flops = 2 * pairs * (item.qk_dim + item.v_dim)
        eager = self.shard.value("eager")
        blocks = item.sequences * item.heads * item.queries / 128
        forward = self.kernels.attention_s(flops, blocks, item.qk_dim, backward=False, eager=eager)
        backward = self.kernels.attention_s(2.5 * flops, blocks, item.qk_dim, backward=True, eager=eager)
        zero = np.zeros(self.table.rows)
        return zero + forward, zero + backward, zero

    def collective(self, item: Collective) -> Array:
        """Seconds of one run of a collective."""
        span = self.span(item.group)
        links = self.links
        if item.kind == "all_reduce":
            return links.ring_s(span, item.payload, 2.0)
        if item.kind == "all_to_all":
            return links.all_to_all_s(span, item.payload)
        if item.kind == "ring":
            return (span.size - 1) * links.neighbour_s(span, item.payload)
        if item.kind == "dispatch":
            return self._dispatch(item, span)
        return links.ring_s(span, item.payload)

    def _dispatch(self, item: Collective, span: Span) -> Array:
        row = item.payload / np.maximum(item.tokens * item.copies, 1.0)
        seconds = self.links.all_to_all_s(span, item.payload)
        for library in ("deepep", "hybridep"):
            chosen = self.shard.value(f"dispatcher.{library}") > 0
            if np.any(chosen):
                tokens = np.where(item.payload > 0, item.tokens, 0.0)
                seconds = np.where(
                    chosen,
                    self.links.dispatch_s(span, tokens, item.copies, row, library, self.limit, item.name == "combine"),
                    seconds,
                )
        return np.asarray(seconds)

    def span(self, group: str) -> Span:
        """The ranks of a group, as Megatron lays them out (tp-cp inside attention, etp-ep inside experts)."""
        shard = self.shard
        size, stride = {
            "tp": (shard.tp, np.ones(1)),
            "cp": (shard.cp, shard.tp),
            "etp": (shard.etp, np.ones(1)),
            "ep": (shard.ep, shard.etp),
        }[group]
        return self.links.span(size, stride)


def group_limit(architecture: Architecture) -> Limit | None:
    """The model's group-limited routing, or None."""
    groups, chosen = architecture.details.router_groups, architecture.details.router_group_top_k
    return Limit(groups, chosen) if groups and chosen and groups > 1 else None


def _per_micro_batch(shard: Shard) -> Shard:
    """Load imbalance as the exchange of one micro batch meets it.

    Imbalance is measured over many sequences; tokens of one sequence route alike, so an expert-parallel group that sees
    few sequences at a time fluctuates more: its excess grows with the square root of ``sequences`` over those it sees.
    """
    enough = coefficients()["routing"]["sequences"]
    seen = np.maximum(shard.micro_batch_size * shard.ep * shard.etp / (shard.tp * shard.cp), 1.0)
    excess = np.maximum(shard.value("load_imbalance", 1.0) - 1.0, 0.0) * np.sqrt(np.maximum(enough / seen, 1.0))
    return replace(shard, values={**shard.values, "load_imbalance": 1.0 + excess})


def rounded_max(device: Array, host: Array) -> Array:
    """The slower of device and host.

    Within a layer now one and now the other sets the pace, so it is rounded: a norm of order 6, 12 % above either
    where both take the same time.
    """
    slow = np.maximum(np.maximum(device, host), 1e-30)
    # Written out: repeated products are exact to the same bits wherever a row lies, powers need not be.
    square_d, square_h = (device / slow) ** 2, (host / slow) ** 2
    norm = slow * np.cbrt(np.sqrt(square_d * square_d * square_d + square_h * square_h * square_h))
    return np.asarray(np.maximum(norm, device))
