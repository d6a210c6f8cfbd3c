"""How fast kernels run: matrix products, attention and memory-bound kernels, as functions of shape and GPU.

A GEMM of ``m x n x k`` takes the larger of its memory time and

    2 m n k / (peak * share) * (1 + depth / k) * (1 + wave * sms * 128^2 / (m n)) + launch

``share`` is what a large GEMM sustains of the dense peak (clocks under full power, pipeline bubbles). ``depth`` is the
prologue and epilogue of a tile in units of the contracted dimension: its time is fixed, so in a precision that is
twice as fast it weighs twice. ``wave`` is the mean idle share of the last wave of 128 x 128 tiles (half a wave if
tiles were scheduled in lock step). All three are fitted per generation (see ``coefficients.json``); peak,
multiprocessors and bandwidth are the GPU's own, which is how the numbers transfer to GPUs that nobody measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from moeplan.estimator.machine import Machine
from moeplan.estimator.precision import precision
from moeplan.estimator.time.coefficients import coefficients, of_generation
from moeplan.operators.base import Array

TILE = 128.0 * 128.0

_BEFORE_HOPPER = ("volta", "turing", "ampere", "ada")

# What the best published GEMMs reach of a dense peak when power does not limit them (operator_efficiency.json: 0.80).
_MOST_SUSTAINED = 0.85


@dataclass(frozen=True)
class Kernels:
    """Kernel times on one machine.

    Attributes:
        machine: The GPU.
        factors: Calibration factors on speed by name (``gemm``, ``attention``, ``hbm``); absent ones are 1.
    """

    machine: Machine
    factors: Mapping[str, float]

    def speed(self, name: str) -> float:
        """A calibration factor; 1 where none was given."""
        return float(self.factors.get(name, 1.0))

    @property
    def launch_s(self) -> float:
        """Gap between two dependent kernels on the device."""
        return float(coefficients()["launch_us"]) * 1e-6

    def memory_rate(self, pattern: str) -> float:
        """Bytes per second that a memory-bound kernel moves."""
        share = of_generation("memory_share", self.machine.generation)[pattern]
        return self.machine.hbm_gb_per_s * 1e9 * share * self.speed("hbm")

    def peak(self, name: str) -> float:
        """Dense peak in FLOP/s of a precision; a precision without a peak of its own runs at the 16-bit one."""
        peaks = self.machine.peak_tflops
        kind = precision(name).compute
        tflops = peaks.get(kind) or (peaks.get("fp8") if kind == "mxfp8" else None)
        tflops = tflops or peaks.get("bf16") or peaks.get("fp16") or peaks.get("fp32") or 1.0
        return float(tflops) * 1e12

    def share(self, name: str) -> float:
        """Share of the dense peak that a large GEMM sustains in a precision."""
        kind = precision(name).compute
        fitted = of_generation("gemm_share", self.machine.generation)
        # Block scaling runs on the same tensor cores at the same rate: MXFP8 differs in what quantization costs.
        kind = "fp8" if kind == "mxfp8" and kind not in fitted else kind
        # 16-bit products of racks beat those of the B200 that the share was measured on by more than power explains.
        wide = coefficients()["power"]["superchip_bf16"] if kind in ("bf16", "fp16") and self.machine.superchip else 1.0
        # A GPU with power to spare for its arithmetic (H20) reaches its peak's limit, not more.
        return min(float(fitted.get(kind, fitted["bf16"])) * self.power() * wide, _MOST_SUSTAINED)

    def power(self) -> float:
        """Sustained share of the peak over that of the GPU that the share was fitted on.

        Power limits what a large GEMM sustains, so the FLOP/s of a multiprocessor follow a power of its watts, whatever
        clock the peak is stated at: weakly on Hopper (torchtitan's published runs: an H100 at 500 W loses a tenth, not
        two sevenths), about in proportion on Blackwell (NVIDIA's runs on boards of 1,000 to 1,400 W).
        """
        data = coefficients()["power"]
        reference = data["reference"].get(self.machine.generation)
        if math.isnan(self.machine.board_watts) or reference is None:
            return 1.0
        units = self.machine.sms / reference["sms"]
        exponent = data["exponent"].get(self.machine.generation, data["exponent"]["default"])
        watts = (self.machine.board_watts / reference["watts"] / units) ** exponent
        clocks = self.peak("bf16") / (reference["tflops"] * 1e12) / units
        # Superchips share their power budget with the host processor beside them.
        shared = float(data["superchip"]) if self.machine.superchip else 1.0
        return shared * float(watts / clocks)

    def gemm_s(
        self,
        m: Array,
        n: Array,
        k: Array,
        groups: Array,
        kind: str,
        section: str,
        moved: Array,
        weight: bool = False,
        burst: bool = False,
    ) -> Array:
        """Seconds of ``groups`` products ``[m, k] x [k, n]`` in precision ``kind``.

        Args:
            m: Rows per product.
            n: Columns per product.
            k: Contracted dimension.
            groups: Products.
            kind: Precision that the tensor cores run in.
            section: ``gemm`` or ``grouped_gemm``: which fitted shape terms hold.
            moved: Bytes read and written in all.
            weight: A weight gradient, which also accumulates into the gradient buffer.
            burst: A 16-bit product of a low-precision run: between products that draw less power it runs at higher
                clocks (the measured B200 shapes lie in two regimes, 1,090 and 1,430 TFLOPS).
        """
        shape = of_generation(section, self.machine.generation)
        peak = self.peak(kind)
        depth = shape["depth"] * peak / self.peak("bf16")
        sustained = self.share(kind)
        if burst:
            sustained = min(sustained * float(coefficients()["power"]["burst"]), _MOST_SUSTAINED)
        share = sustained * shape["share"] * (shape["weight_gradient"] if weight else 1.0) * self.speed("gemm")
        tiles = 1 + shape["wave"] * self.machine.sms * TILE / np.maximum(m * n, 1.0)
        arithmetic = 2 * m * n * k * groups / (peak * share) * (1 + depth / np.maximum(k, 1.0)) * tiles
        return np.maximum(arithmetic, moved / self.memory_rate("gemm")) + self.launch_s

    def attention_s(
        self, flops: Array, blocks: Array, qk_dim: float, backward: bool, eager: Array | float = 0.0
    ) -> Array:
        """Seconds of attention.

        Args:
            flops: FLOPs over the pairs that the mask keeps.
            blocks: Blocks of 128 queries times heads, which multiprocessors share.
            qk_dim: Width of a head: wider than 128 spills registers.
            backward: The backward kernel.
            eager: 1 where PyTorch's own attention runs (FlashAttention-2, which uses no instruction newer than
                Ampere's) instead of cuDNN's.
        """
        shape = of_generation("attention_backward" if backward else "attention_forward", self.machine.generation)
        share = shape["share"] * (shape["wide"] if qk_dim > 128 else 1.0) * self.speed("attention")
        share *= min(1.0, (qk_dim / 128) ** shape["narrow"])
        since = "before_hopper" if self.machine.generation in _BEFORE_HOPPER else "since_hopper"
        share = share * (1 - eager * (1 - coefficients()["eager_framework"]["attention"][since]))
        tail = 1 + shape["wave"] * self.machine.sms / np.maximum(blocks, 1.0)
        seconds: Array = flops / (self.peak("bf16") * share * self.power()) * tail + shape["launch_us"] * 1e-6
        return seconds

    def traffic_s(self, moved: Array, kernels: float, pattern: str) -> Array:
        """Seconds of memory-bound kernels that move ``moved`` bytes."""
        return np.where(moved > 0, moved / self.memory_rate(pattern) + kernels * self.launch_s, 0.0)
