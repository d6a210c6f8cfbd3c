"""What each training precision costs in bytes, per framework. Every figure cites where it is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moeplan.errors import PlanError, nearest


@dataclass(frozen=True, slots=True)
class Precision:
    """Bytes per element of what a precision stores.

    Attributes:
        parameter: One model weight as the parameter buffer holds it.
        weight_copies: Further low-precision copies of a GEMM's weight that live over the whole step (Transformer Engine
            quantises a weight once per step and keeps the row-wise and the column-wise form for all micro batches).
        activation: One element of the residual stream, of attention and of every unquantised tensor.
        gemm_input: One element of a GEMM input kept for the weight gradient, scales included.
        compute: Name of the arithmetic peak in ``Machine.peak_tflops`` that GEMMs run at.
        collective: One element of a gathered or scattered parameter.
        low: 1.0 where GEMMs run in eight bits or fewer.
    """

    parameter: float
    weight_copies: float
    activation: float
    gemm_input: float
    compute: str
    collective: float
    low: float


# One scale byte (E8M0) per 32 elements (OCP Microscaling Formats v1.0, MXFP8); one FP8 scale per 16 elements (NVFP4).
_MX = 1 + 1 / 32
_NV = 0.5 + 1 / 16

# fp8 (per-tensor scaling) and mxfp8 keep bf16 parameters unless parameters are gathered in fp8, plus a
# row-wise copy for forward and a column-wise copy for the data gradient (Transformer Engine, Float8Tensor /
# MXFP8Tensor workspaces cached while ``is_first_microbatch`` is false).
PRECISIONS: Mapping[str, Precision] = {
    "fp32": Precision(4, 0, 4, 4, "fp32", 4, 0.0),
    "tf32": Precision(4, 0, 4, 4, "tf32", 4, 0.0),
    "fp16": Precision(2, 0, 2, 2, "fp16", 2, 0.0),
    "bf16": Precision(2, 0, 2, 2, "bf16", 2, 0.0),
    "fp8": Precision(2, 2, 2, 1, "fp8", 2, 1.0),
    "mxfp8": Precision(2, 2 * _MX, 2, _MX, "mxfp8", 2, 1.0),
    "nvfp4": Precision(2, 2 * _NV, 2, _NV, "nvfp4", 2, 1.0),
}

# Bytes of one optimizer moment (Megatron-Core --exp-avg-dtype).
STATE_BYTES: Mapping[str, float] = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "fp8": 1.0}
GRADIENT_BYTES: Mapping[str, float] = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0}

# Moments per parameter. Adafactor's factored second moment is a vector: nothing beside a matrix (arXiv:1804.04235).
# Muon keeps one momentum for matrices (Keller Jordan 2024; Megatron-LM's TensorParallelMuon); the rest goes to Adam,
# see ``memory/states.py``.
OPTIMIZER_MOMENTS: Mapping[str, float] = {"adam": 2.0, "adamw": 2.0, "sgd": 1.0, "muon": 1.0, "lion": 1.0}


def precision(name: str) -> Precision:
    """Return the facts of a precision.

    Raises:
        PlanError: The name is not known.
    """
    try:
        return PRECISIONS[name]
    except KeyError:
        remedy = nearest(str(name), PRECISIONS, f"one of {', '.join(PRECISIONS)}")
        raise PlanError("precision", f"unknown precision {name!r}", remedy) from None


def weight_copies(name: str, compute_capability: int) -> float:
    """Bytes per element of a weight's low-precision copies on a GPU.

    From compute capability 10 on, GEMMs with per-tensor scaling read the row-wise copy in either direction, so that
    Transformer Engine makes no transposed one (``is_non_tn_fp8_gemm_supported``); block formats scale along the
    contracted dimension and need both.
    """
    copies = precision(name).weight_copies
    return copies / 2 if name == "fp8" and compute_capability >= 100 else copies
