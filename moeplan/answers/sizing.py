"""The sizing calculator: how much memory a Mixture of Experts known by its counts needs to train, part by part.

Closed forms over the whole model, on however many GPUs; ``estimate`` and ``search`` price real layers on real GPUs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from moeplan.answers.documents import Document
from moeplan.errors import PlanError, nearest
from moeplan.estimator.precision import GRADIENT_BYTES, OPTIMIZER_MOMENTS, STATE_BYTES

GIB = float(1 << 30)
_GIGABYTE = 1e9

# Bytes of one element.
DTYPE_BYTES: Mapping[str, float] = {"fp32": 4.0, "tf32": 4.0, "fp16": 2.0, "bf16": 2.0, "fp8": 1.0}

# The worked example of the sizing article, and what it prints for it.
_EXAMPLE = {
    "experts": 64,
    "expert_parameters": 1e9,
    "shared_parameters": 10e9,
    "batch_size": 4096,
    "active_ratio": 0.25,
    "output_dim": 1024,
}


class SizingMemory(Document):
    """Parts of the training memory in GiB; they add up to the total."""

    parameters_gib: float
    gradients_gib: float
    optimizer_gib: float
    activations_gib: float
    buffers_gib: float
    total_gib: float


class Sizing(Document):
    """What one configuration of the calculator needs."""

    experts: int
    expert_parameters: int
    shared_parameters: int
    batch_size: int
    active_ratio: float
    output_dim: int
    dtype: str
    optimizer: str
    activation_dtype: str
    parameters: int
    """All of them: shared + experts * expert_parameters."""
    active_parameters: int
    """That one token meets: shared + active_ratio * experts * expert_parameters."""
    parameters_gb: float
    """Decimal gigabytes of the parameters, as articles print them."""
    tokens_per_expert: float
    """batch_size * active_ratio / experts."""
    activation_bytes_per_expert: float
    """tokens_per_expert * output_dim * bytes of the activation type."""
    memory: SizingMemory
    gpus_needed: int | None = None
    """The fewest GPUs of the type asked for that hold the total, when it is spread evenly; null when none was named."""


class SizingDocument(Document):
    """The calculator's answer: one configuration, and all of them where several were asked."""

    schema_version: Literal[1] = 1
    result: Sizing
    results: tuple[Sizing, ...] = Field(default=())
    """Every combination of the batch sizes and active ratios given, the first of which is ``result``."""
    notes: tuple[str, ...] = ()


def calculate(
    *,
    experts: float,
    expert_parameters: float,
    shared_parameters: float = 0,
    batch_size: float | Sequence[float] = 4096,
    active_ratio: float | Sequence[float] = 1.0,
    output_dim: float = 1024,
    dtype: str = "bf16",
    optimizer: str = "adam",
    activation_dtype: str = "fp32",
    gpu: str | Mapping[str, Any] | None = None,
) -> SizingDocument:
    """Size a counted Mixture of Experts.

    Args:
        experts: Routed experts.
        expert_parameters: Parameters of one expert.
        shared_parameters: Parameters that every token meets.
        batch_size: Tokens in the batch, or several to compare.
        active_ratio: Part of the experts that a token meets, or several to compare.
        output_dim: Width of an expert's output.
        dtype: Type of parameters; 16-bit and 8-bit types train in mixed precision with a float32 master copy.
        optimizer: adam, adamw, sgd, muon or lion.
        activation_dtype: Type of the saved activations.
        gpu: GPU type to count how many are needed at least.

    Raises:
        PlanError: A value is out of range or a name unknown.
    """
    routed = _whole("experts", experts, 1, 1_000_000)
    per_expert = _whole("expert_parameters", expert_parameters, 1, 10**17)
    shared = _whole("shared_parameters", shared_parameters, 0, 10**17)
    width = _whole("output_dim", output_dim, 1, 10**9)
    for name, value, known in (
        ("dtype", dtype, DTYPE_BYTES),
        ("activation_dtype", activation_dtype, DTYPE_BYTES),
        ("optimizer", optimizer, OPTIMIZER_MOMENTS),
    ):
        if value not in known:
            raise PlanError(name, f"is {value!r}", nearest(str(value), known, f"choose from {', '.join(known)}"))
    batches = [_whole("batch_size", value, 1, 10**12) for value in _listed(batch_size)]
    ratios = [_ratio(value) for value in _listed(active_ratio)]
    usable = _usable_gib(gpu)
    results = tuple(
        _size(routed, per_expert, shared, batch, ratio, width, dtype, optimizer, activation_dtype, usable)
        for batch, ratio in itertools.product(batches, ratios)
    )
    return SizingDocument(result=results[0], results=results, notes=_notes(results[0]))


def _size(
    experts: int,
    per_expert: int,
    shared: int,
    batch: int,
    ratio: float,
    output_dim: int,
    dtype: str,
    optimizer: str,
    activation_dtype: str,
    usable_gib: float | None,
) -> Sizing:
    total = shared + experts * per_expert
    mixed = DTYPE_BYTES[dtype] < 4
    tokens = batch * ratio / experts
    activation = tokens * output_dim * DTYPE_BYTES[activation_dtype]
    # Mixed precision (Micikevicius et al. 2018; Rajbhandari et al. 2020, section 3.1): gradients in the parameters'
    # type (never under 16 bits), a float32 master copy beside the optimizer's float32 moments.
    gradient = GRADIENT_BYTES["bf16"] if mixed else GRADIENT_BYTES["fp32"]
    state = OPTIMIZER_MOMENTS[optimizer] * STATE_BYTES["fp32"] + (4.0 if mixed else 0.0)
    # Gradient accumulation in float32 (a copy only where gradients are not), and what the all-to-all sends and gets.
    accumulation = 4.0 * total if mixed else 0.0
    exchange = 2 * tokens * experts * output_dim * DTYPE_BYTES[dtype]
    parts = {
        "parameters_gib": total * DTYPE_BYTES[dtype] / GIB,
        "gradients_gib": total * gradient / GIB,
        "optimizer_gib": total * state / GIB,
        "activations_gib": activation * experts / GIB,
        "buffers_gib": (accumulation + exchange) / GIB,
    }
    whole = sum(parts.values())
    return Sizing(
        experts=experts,
        expert_parameters=per_expert,
        shared_parameters=shared,
        batch_size=batch,
        active_ratio=ratio,
        output_dim=output_dim,
        dtype=dtype,
        optimizer=optimizer,
        activation_dtype=activation_dtype,
        parameters=total,
        active_parameters=shared + round(ratio * experts * per_expert),
        parameters_gb=total * DTYPE_BYTES[dtype] / _GIGABYTE,
        tokens_per_expert=tokens,
        activation_bytes_per_expert=activation,
        memory=SizingMemory(**parts, total_gib=whole),
        gpus_needed=math.ceil(whole / usable_gib) if usable_gib is not None else None,
    )


def _notes(sizing: Sizing) -> tuple[str, ...]:
    routed = sizing.batch_size * sizing.active_ratio
    notes = [
        "whole model, before any sharding: 'moeplan search' and 'moeplan estimate' divide it over GPUs",
        "tokens per expert is batch * active ratio / experts; where every token visits active ratio * experts of "
        f"them, an expert sees batch * active ratio = {routed:,.6g} tokens",
        "activations are the experts' outputs only; a real layer keeps more ('moeplan estimate' counts it)",
    ]
    if all(getattr(sizing, name) == value for name, value in _EXAMPLE.items()):
        notes.append(
            "the article's worked example prints 0.143 GB for these parameters: at 2 bytes each they are 148 GB "
            "(137.8 GiB), it divides by 1024 once too often; its 64 KB (0.064 MB) of activations per expert holds; its "
            "sample total (12.8 GB = 0.143 + 8.2 + 4.0 + 0.457) follows from none of its formulas"
        )
    return tuple(notes)


def _usable_gib(gpu: str | Mapping[str, Any] | None) -> float | None:
    if gpu is None:
        return None
    from moeplan.hardware import load_gpu

    return load_gpu(gpu).usable_gib


def _listed(value: Any) -> list[Any]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    if not values or len(values) > 1000:
        raise PlanError("calculate", f"{len(values)} values are given", "give 1 to 1000")
    return values


def _whole(name: str, value: Any, least: int, most: int) -> int:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value != int(value) or not least <= value <= most:
        raise PlanError(name, f"is {value!r}", f"give a whole number from {least} to {most:.3g}")
    return int(value)


def _ratio(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise PlanError("active_ratio", f"is {value!r}", "give a number above 0 and at most 1")
    return float(value)
