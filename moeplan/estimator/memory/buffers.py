"""Memory that is neither state nor activation: workspaces, gather buffers, pipeline messages, and what lies outside."""

from __future__ import annotations

import numpy as np

from moeplan.estimator.machine import Machine
from moeplan.estimator.precision import precision
from moeplan.estimator.shard import of_levels
from moeplan.estimator.stages import Structure
from moeplan.estimator.table import Table
from moeplan.model.architecture import Architecture, Layer
from moeplan.operators.attention import Attention, LatentAttention
from moeplan.operators.base import Array, Shard
from moeplan.operators.saved import element_bytes

MIB = float(1 << 20)
GIB = float(1 << 30)

# Transformer Engine pytorch/module/base.py get_cublas_workspace_size_bytes: 32 MiB from compute capability 9 on, 4 MiB
# before. PyTorch aten/src/ATen/cuda/CublasHandlePool.cpp: 32 MiB on Hopper and 8 MiB + 128 KiB elsewhere, once for the
# thread that runs forward and once for autograd's (a workspace belongs to a handle, a handle to a thread).
_TE_WORKSPACE = (4.0 * MIB, 32.0 * MIB)
_TORCH_WORKSPACE = (8.125 * MIB, 32.0 * MIB)
_TORCH_THREADS = 2.0
# Grouped linears spread over four streams, each with a workspace (get_multi_stream_cublas_workspace).
_GROUPED_STREAMS = 4.0


def workspaces(machine: Machine, table: Table, structure: Structure) -> Array:
    """GEMM workspaces in the allocator, in bytes; shape (rows, moments). ``table`` holds ``_pipeline``."""
    recent = int(machine.compute_capability >= 90)
    hopper = int(machine.compute_capability == 90)
    megatron = of_levels(table, "framework", lambda name: float(name == "megatron"))
    counts = structure.counts[table["_pipeline"].astype(np.int64)]
    moe = np.array([part.moe is not None for part in structure.parts])
    head = np.arange(len(structure.parts)) == len(structure.parts) - 1
    has_moe = (counts[:, :, moe] > 0).any(axis=2)
    has_head = (counts[:, :, head] > 0).any(axis=2)
    te = megatron[:, None] * _TE_WORKSPACE[recent] * (1.0 + _GROUPED_STREAMS * has_moe)
    # PyTorch's own GEMMs run in the head and the router; Hugging Face's layers run nothing else.
    torch: Array = _TORCH_THREADS * _TORCH_WORKSPACE[hopper] * np.maximum(has_head | has_moe, (megatron == 0)[:, None])
    return te + torch


def rotary_width(parts: tuple[Layer, ...]) -> float:
    """Features that rotary embedding turns in one head, 0 without attention."""
    for part in parts:
        for operator in part.operators:
            if isinstance(operator, LatentAttention):
                return float(operator.qk_rope_head_dim)
            if isinstance(operator, Attention):
                return float(operator.head_dim)
    return 0.0


def stage_buffers(architecture: Architecture, table: Table, shard: Shard, structure: Structure) -> Array:
    """Tensors that a stage holds once, whatever its layers; bytes of shape (rows, moments).

    - fp32 rotary frequencies of the local sequence, kept with the graph of every micro batch but one storage;
    - the head's gathered input under sequence parallelism, in Megatron-Core's persistent ``GlobalMemoryBuffer``;
    - on stages after the first, the gradient that was sent last, which 1F1B's loop still names while the next micro
      batch runs (``schedules.py``, ``input_tensor_grad``); interleaved schedules also post the next receives early.
    """
    pipeline = table["_pipeline"].astype(np.int64)
    rope, gathered, message = (tensor[:, None] for tensor in stage_tensors(architecture, table, shard, structure))
    has_head, messages = stage_counts(structure)
    total: Array = rope + has_head[pipeline] * gathered + (table["pp"] > 1)[:, None] * message * messages[pipeline]
    return total


def stage_tensors(
    architecture: Architecture, table: Table, shard: Shard, structure: Structure
) -> tuple[Array, Array, Array]:
    """The tensors of :func:`stage_buffers`: rotary frequencies, the head's gathered input, a message; (rows,) each."""
    size = element_bytes(shard)
    rope = 4.0 * table["sequence_length"] / table["cp"] * rotary_width(structure.parts)
    megatron = (1.0 - shard.value("eager")) * (shard.tp > 1) * shard.value("sp")
    gathered = megatron * size * shard.tokens * architecture.hidden
    return rope, gathered, size * shard.sequence_tokens * architecture.hidden


def stage_counts(structure: Structure) -> tuple[Array, Array]:
    """How many of the head's gathered input and of messages a stage holds; shape (pipelines, moments) each."""
    later = structure.stage > 0
    interleaved = (structure.chunk_layers < structure.counts[:, :, :-2].sum(axis=2)) * 2.0
    has_head = np.where(structure.counts[:, :, -1] > 0, 1.0, 0.0)
    return has_head, np.asarray(later + interleaved, np.float64)


def sharding_buffers(table: Table, largest_layer: Array, root: Array, trained: Array) -> Array:
    """Gathered parameters and unreduced gradients of ZeRO-2, ZeRO-3 and FSDP2; bytes of shape (rows, moments).

    Args:
        table: Candidates.
        largest_layer: Parameters of the largest layer before data-parallel sharding; shape (rows, moments).
        root: Parameters of embedding, final norm and head on the stage; same shape.
        trained: All parameters on the stage; same shape.

    Megatron-FSDP keeps the running unit and the prefetched one gathered in 16 bits, and the unreduced gradients of one
    unit beside those being reduced (``param_and_grad_buffer.py``, double buffers); the root unit stays gathered.
    FSDP2 (PyTorch ``_fsdp_collectives.py``) copies a unit out of the flat gathered buffer, so that one more lives for a
    moment, and copies 16-bit gradients into fp32 reduce-scatter inputs, of which the last one is still in flight.
    DeepSpeed reduces in buckets of 5e8 elements, two of them with overlap, and gathers up to 1e9 live parameters with a
    prefetch bucket of 5e7 (``zero/config.py`` defaults).
    """
    stage = table["sharding"][:, None]
    deepspeed = of_levels(table, "framework", lambda name: float(name == "deepspeed"))[:, None] > 0
    size = np.minimum(of_levels(table, "precision", lambda name: precision(name).parameter), 2.0)[:, None]
    copies = of_levels(table, "precision", lambda name: precision(name).weight_copies)[:, None]
    overlap = (1.0 + table["overlap_grad_reduce"])[:, None]
    prefetch = (1.0 + table["overlap_param_gather"])[:, None]
    fsdp2 = of_levels(table, "framework", lambda name: float(name == "fsdp2"))[:, None]
    units = np.where(stage >= 3, ((size + copies) * prefetch + fsdp2 * size) * largest_layer + size * root, 0.0)
    unreduced = np.where(fsdp2 > 0, size + 4.0 * overlap, size * overlap)
    units += np.where(stage >= 2, unreduced * largest_layer, 0.0)
    buckets = np.where(stage >= 2, size * overlap * np.minimum(5e8, trained), 0.0)
    buckets += np.where(stage >= 3, size * np.minimum(1e9 + 5e7, trained), 0.0)
    return np.where(deepspeed, buckets, units)


OUTSIDE_COLUMNS: tuple[str, ...] = (
    "gpus",
    "tp",
    "cp",
    "pp",
    "ep",
    "etp",
    "dispatcher",
    "micro_batch_size",
    "sequence_length",
)
"""Columns that :func:`outside` reads."""


def outside(architecture: Architecture, machine: Machine, table: Table) -> Array:
    """Bytes outside PyTorch's allocator, of shape (rows,): the sum of :func:`outside_terms`."""
    total: Array = sum(outside_terms(architecture, machine, table).values(), np.zeros(1))
    return total


def outside_terms(architecture: Architecture, machine: Machine, table: Table) -> dict[str, Array]:
    """What a rank holds outside PyTorch's allocator, by name, in bytes; shape (rows,).

    - CUDA context, cuBLAS, cuDNN and Transformer Engine kernels: 0.7 GiB, within the 0.5 to 0.8 GiB that nvidia-smi
      shows beside the allocator for a process on Ampere to Blackwell that has run GEMMs and attention.
    - NCCL: a communicator registers 4 MiB (NCCL_BUFFSIZE) per channel and direction: with 16 channels 128 MiB. Zhang
      and Su (arXiv:2502.07846) put all of a rank's communication buffers at 0.8 to 2.0 GB.
    """
    per_stage = table["gpus"] / table["pp"]
    expert = table["ep"] * table["etp"]
    groups = (
        (table["tp"] > 1) * 1.0
        + (table["cp"] > 1)
        + (table["pp"] > 1)
        + (per_stage > table["tp"])
        + (expert > 1)
        + ((per_stage > expert) & (expert > 1))
    )
    return {
        "driver context": np.full(table.rows, 0.7 * GIB),
        "NCCL": groups * 128.0 * MIB,
        "dispatch buffers": _dispatch_buffers(architecture, machine, table),
    }


def _dispatch_buffers(architecture: Architecture, machine: Machine, table: Table) -> Array:
    """Exchange buffers of the fused dispatchers, in bytes; shape (rows,).

    DeepEP sizes its own (``csrc/config.hpp``, ``get_nvl_buffer_size_hint`` and ``get_rdma_buffer_size_hint``): per
    channel (half of 20 SMs) and NVLink peer 288 chunked tokens, and per channel and remote node twice 128, each token
    with its row, 128 indices and weights and 128 scales. HybridEP holds what all ranks might send to one, rows and
    probabilities, shared by dispatch and combine (``csrc/hybrid_ep``, ``max_num_of_tokens_for_experts``).
    """
    deep = of_levels(table, "dispatcher", lambda name: float(name == "deepep"))
    hybrid = of_levels(table, "dispatcher", lambda name: float(name == "hybridep"))
    moe = architecture.moe
    if moe is None or not (deep.any() or hybrid.any()):
        return np.zeros(table.rows)
    row_bytes = 2.0 * float(moe.expert_input or moe.hidden)
    ranks = table["ep"] * table["etp"]
    peers = np.minimum(ranks, 8.0)
    token = row_bytes + 128.0 * (8.0 + 4.0 + 4.0)
    channels = 10.0
    nodes = np.where(ranks > 8, ranks / 8.0, 0.0)
    deep_bytes = channels * token * (peers * 288.0 + nodes * 2.0 * 128.0)
    tokens = table["micro_batch_size"] * table["sequence_length"] / table["cp"] / table["tp"]
    local_domain = np.minimum(ranks, float(max(machine.nvlink_domain, 1)))
    hybrid_bytes = tokens * ranks * (row_bytes + 4.0 * moe.experts / ranks * local_domain)
    return (ranks > 1) * (deep * deep_bytes + hybrid * hybrid_bytes)


def optimizer_temporaries(table: Table, optimizer: Array) -> Array | None:
    """What the optimizer step allocates while it runs, in bytes, or None where no candidate's does.

    PyTorch's default ``foreach`` Adam makes one more tensor per parameter shard (FSDP2): half of its two moments.
    Megatron-Core's fused Adam wants fp32 gradients: a 16-bit gradient buffer is copied to fp32 for the rank's shard,
    4 bytes beside the 12 of the states (``distrib_optimizer.py``, ``_copy_model_grads_to_main_grads``), unless the
    optimizer is precision-aware.

    Args:
        table: Candidates.
        optimizer: Bytes of the rank's optimizer states; shape (rows, moments).
    """
    fsdp = of_levels(table, "framework", lambda name: float(name == "fsdp2"))
    megatron = of_levels(table, "framework", lambda name: float(name == "megatron"))
    narrow = of_levels(table, "gradient_dtype", lambda name: float(name != "fp32"))
    copied = megatron * narrow * of_levels(table, "state_dtype", lambda name: float(name == "fp32")) / 3.0
    share = 0.5 * fsdp + copied
    return share[:, None] * optimizer if share.any() else None


def reserved(allocated: Array, factors_fragmentation: float) -> Array:
    """What the caching allocator holds when ``allocated`` is in use."""
    return allocated * (1.0 + FRAGMENTATION * factors_fragmentation)


FRAGMENTATION = 0.048
"""Reserved over allocated at the peak, less one: the middle of 1.020 to 1.079 on ten stages of Megatron-Core runs on
B200 without expandable segments (tests/reference/memory_measured.json)."""
