"""What an operator keeps for its backward pass and what it needs besides while that pass runs over it.

Sources of the formulas in the operators: Megatron-Core 0.16 model code and Transformer Engine 2.x modules, checked
against saved-tensor hooks on megatron-core and transformers code (tests/reference/activations.json).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from moeplan.operators.base import Array, Shard

NOTHING: Array = np.zeros(1)


@dataclass(frozen=True, slots=True)
class Saved:
    """One tensor that lives from a micro batch's forward pass to its backward pass.

    Attributes:
        name: What it is.
        bytes: Size on one rank, for one layer and one micro batch; shape (candidates,) or (1,).
        dropped_by: Recompute modules (Megatron-Core's names), each of which rebuilds it in backward instead.
        offload: Megatron-Core's name of the offload module that moves it to the host, or empty.
    """

    name: str
    bytes: Array
    dropped_by: tuple[str, ...] = ()
    offload: str = ""

    def kept(self, shard: Shard) -> Array:
        """Bytes that stay on the GPU under the shard's recompute and offload switches."""
        share: Array = np.ones(1)
        for module in self.dropped_by:
            share = share * (1.0 - shard.value(f"recompute.{module}"))
        if self.offload:
            share = share * (1.0 - shard.value(f"offload.{self.offload}"))
        return self.bytes * share


@dataclass(frozen=True, slots=True)
class Step:
    """One operation of a layer, in forward order.

    Attributes:
        name: Operation.
        saved: What it keeps for backward.
        backward: Bytes of temporaries while its backward runs: gradients in and out, gathered inputs, workspaces. What
            is saved by it and before it is not in this figure, nor is the gradient of the residual stream.
    """

    name: str
    saved: tuple[Saved, ...] = ()
    backward: Array = field(default_factory=lambda: NOTHING)


def total(steps: Iterable[Step]) -> Array:
    """Bytes that the steps save when nothing is recomputed or offloaded."""
    return np.asarray(sum((tensor.bytes for step in steps for tensor in step.saved), NOTHING))


def element_bytes(shard: Shard) -> Array:
    """Bytes of an unquantised activation."""
    return shard.value("activation_bytes", 2.0)


def gemm_bytes(shard: Shard) -> Array:
    """Bytes of an element that a GEMM keeps of its input: one in FP8, with block scales in MXFP8 and NVFP4."""
    return shard.value("gemm_input_bytes", 2.0)


def gathered(shard: Shard, width: Array | float) -> Array:
    """A tensor that sequence parallelism gathers over ``tp`` before a GEMM; nothing without it."""
    return shard.value("sp") * (shard.tp > 1) * element_bytes(shard) * shard.tokens * width


def scattered(shard: Shard, width: Array | float) -> Array:
    """The output of the reduce-scatter that sequence parallelism ends a GEMM's data gradient with."""
    return shard.value("sp") * (shard.tp > 1) * element_bytes(shard) * shard.sequence_tokens * width


def quantized_gradient(shard: Shard, elements: Array) -> Array:
    """Row-wise and column-wise low-precision copies of an output gradient (Transformer Engine quantises both)."""
    return shard.value("low_precision") * 2.0 * gemm_bytes(shard) * elements


def norm_tensors(shard: Shard, name: str, elements: Array, rows: Array, statistics: int = 1) -> Saved:
    """A norm's input and its fp32 statistics per row.

    Fused kernels keep the input and the reciprocal deviation (and the mean for LayerNorm). Hugging Face's eager RMSNorm
    keeps the fp32 copy of the input, the normalised tensor and the reciprocal deviation.
    """
    size = element_bytes(shard)
    eager = shard.value("eager")
    return Saved(name, (size + 4.0 * eager) * elements + 4.0 * statistics * rows)
