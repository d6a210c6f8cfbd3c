"""What an operator does in one micro batch, as items that a machine model can price: shapes, bytes, groups, no seconds.

Operators return these from ``work(shard)``. Every array has the shard's shape (candidates,) or (1,). An item describes
the forward pass; its backward follows by the rule of its class (a GEMM has a data and a weight gradient, an
all-gather's backward is a reduce-scatter, ...).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

from moeplan.operators.base import Array, Shard

Group: TypeAlias = Literal["tp", "cp", "ep", "etp"]
Kind: TypeAlias = Literal["all_gather", "reduce_scatter", "all_reduce", "all_to_all", "ring", "dispatch"]

ONE = np.ones(1)


@dataclass(frozen=True, slots=True)
class Gemm:
    """A matrix product ``[tokens, inputs] x [inputs, outputs]``, ``groups`` of them in one grouped kernel.

    Attributes:
        name: What the breakdown calls it.
        tokens: Rows per group.
        outputs: Output features.
        inputs: Contracted features.
        groups: Products in one call: the experts of a rank; 1 for a dense GEMM.
        grouped: One grouped kernel over experts.
        quantized: Runs in the plan's GEMM precision; False stays in 16 bits (router, output head).
        weight_gradient: Backward computes a weight gradient.
        replay: Recomputation modules that run it again.
    """

    name: str
    tokens: Array
    outputs: Array
    inputs: Array
    groups: Array
    grouped: bool = False
    quantized: bool = True
    weight_gradient: bool = True
    replay: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AttentionCore:
    """Softmax attention over ``sequences`` sequences on one rank, causal.

    Attributes:
        name: What the breakdown calls it.
        sequences: Sequences in the micro batch.
        heads: Query heads on the rank.
        kv_heads: Key/value heads on the rank.
        queries: Query positions per sequence on the rank.
        keys: Mean number of keys that a query sees.
        qk_dim: Width of a query/key head.
        v_dim: Width of a value head.
        replay: Recomputation modules that run it again.
    """

    name: str
    sequences: Array
    heads: Array
    kv_heads: Array
    queries: Array
    keys: Array
    qk_dim: float
    v_dim: float
    replay: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Traffic:
    """Memory-bound kernels: norms, activations, rotary embedding, permutation, loss.

    Attributes:
        name: What the breakdown calls it.
        forward: Bytes read and written in forward.
        backward: Bytes read and written in backward.
        kernels: Kernels launched in forward (backward launches half as many again).
        pattern: ``stream`` for contiguous access, ``permute`` for gathers and scatters of rows, ``expert`` for routing
            and the experts' activation, ``loss`` for reductions over the vocabulary; each has its own share of the
            memory bandwidth.
        replay: Recomputation modules that run it again.
    """

    name: str
    forward: Array
    backward: Array
    kernels: float = 1.0
    pattern: Literal["stream", "permute", "expert", "loss"] = "stream"
    replay: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Scan:
    """A recurrence over the sequence in 16 bits (state-space and linear-attention mixers).

    Attributes:
        name: What the breakdown calls it.
        flops: Forward FLOPs; backward has twice as many.
        traffic: Forward bytes; backward moves twice as many.
    """

    name: str
    flops: Array
    traffic: Array
    replay: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Collective:
    """Communication of one micro batch inside a group.

    Attributes:
        name: What the breakdown calls it.
        kind: ``all_gather`` and ``reduce_scatter`` of ``payload`` bytes in all, ``all_reduce`` of ``payload`` bytes,
            ``all_to_all`` of ``payload`` bytes per rank (its own share included), ``ring`` of ``payload`` bytes per
            neighbour step, ``dispatch`` for the expert exchange, which the chosen dispatcher carries.
        group: Ranks that take part.
        payload: Bytes; 0 where the candidate does not need it.
        forward: Times that forward runs it.
        backward: Times that backward runs it (mirrored, same bytes).
        hidden_backward: Of those, how many run beside the GEMM that does not need them (Megatron's asynchronous
            input gather and gradient scatter of a column-parallel linear layer).
        tokens: For ``dispatch``: tokens that leave a rank before they are multiplied by ``top_k``.
        copies: For ``dispatch``: experts per token.
        replay: Recomputation modules that run it again.
    """

    name: str
    kind: Kind
    group: Group
    payload: Array
    forward: float = 1.0
    backward: float = 1.0
    hidden_backward: float = 0.0
    tokens: Array = field(default_factory=lambda: ONE)
    copies: Array = field(default_factory=lambda: ONE)
    replay: tuple[str, ...] = ()


Work: TypeAlias = Gemm | AttentionCore | Traffic | Scan | Collective


def dense(
    name: str,
    tokens: Array,
    outputs: Array | float,
    inputs: Array | float,
    *,
    quantized: bool = True,
    replay: tuple[str, ...] = (),
) -> Gemm:
    """A single GEMM."""
    return Gemm(name, tokens, outputs * ONE, inputs * ONE, ONE, quantized=quantized, replay=replay)


def column_parallel(name: str, shard: Shard, hidden: float, replay: tuple[str, ...] = ()) -> list[Collective]:
    """Communication before a column-parallel linear layer.

    With sequence parallelism its input is gathered in forward; backward gathers it again beside the data gradient and
    scatters the input's gradient beside the weight gradient. Without, backward all-reduces the input's gradient beside
    the weight gradient. Source: Megatron-LM ``megatron/core/tensor_parallel/layers.py``
    (LinearWithGradAccumulationAndAsyncCommunication).
    """
    payload = activation(shard, hidden) * (shard.tp > 1)
    sp = shard.value("sp")
    return [
        Collective(f"{name}.gather", "all_gather", "tp", payload * sp, 1.0, 2.0, 2.0, replay=replay),
        Collective(f"{name}.reduce", "all_reduce", "tp", payload * (1 - sp), 0.0, 1.0, 1.0),
    ]


def row_parallel(name: str, shard: Shard, hidden: float, replay: tuple[str, ...] = ()) -> list[Collective]:
    """Communication after a row-parallel linear layer: its output is scattered or all-reduced, backward gathers it."""
    payload = activation(shard, hidden) * (shard.tp > 1)
    sp = shard.value("sp")
    return [
        Collective(f"{name}.scatter", "reduce_scatter", "tp", payload * sp, replay=replay),
        Collective(f"{name}.reduce", "all_reduce", "tp", payload * (1 - sp), 1.0, 0.0, replay=replay),
    ]


def activation(shard: Shard, width: Array | float) -> Array:
    """Bytes of a [tokens, width] activation on one rank, uncut by tensor parallelism."""
    return shard.tokens * width * shard.value("activation_bytes", 2.0)


def elementwise(
    name: str,
    elements: Array,
    shard: Shard,
    reads: tuple[float, float],
    kernels: float = 1.0,
    replay: tuple[str, ...] = (),
) -> Traffic:
    """Streaming kernels over ``elements``: ``reads`` is (forward, backward) accesses (reads and writes) per element."""
    size = shard.value("activation_bytes", 2.0)
    return Traffic(name, elements * size * reads[0], elements * size * reads[1], kernels, replay=replay)


def attention_core(
    shard: Shard, heads: Array, kv_heads: Array, qk_dim: float, v_dim: float, window: int | None
) -> list[Work]:
    """Attention itself and the traffic of context parallelism, by the three ways that Megatron-Core offers.

    ``p2p`` passes keys and values round a ring beside the attention of the block before; ``a2a`` trades sequence for
    heads (DeepSpeed Ulysses, arXiv:2309.14509); ``allgather`` collects all keys and values first. Unfused attention
    computes the full square and moves the scores: two 16-bit and one fp32 pass, masked softmax fused
    (Megatron-LM ``megatron/core/transformer/dot_product_attention.py``).
    """
    length = shard.sequence_length
    seen = (
        length / 2 if window is None else np.where(length > window, window - window * window / (2 * length), length / 2)
    )
    unfused = 1 - shard.value("flash_attention", 1.0)
    size = shard.value("activation_bytes", 2.0)
    ulysses = shard.value("cp_comm.a2a") * (shard.cp > 1)
    local = np.where(ulysses > 0, shard.cp, 1.0)
    scores = shard.micro_batch_size * heads * (length / shard.cp) * length * unfused
    kept = shard.tokens * kv_heads * (qk_dim + v_dim) * size
    traded = shard.tokens * heads * (qk_dim + v_dim) * size + kept
    parallel = shard.cp > 1
    ring = shard.value("cp_comm.p2p") * parallel
    gathered = shard.value("cp_comm.allgather") * parallel
    core = ("core_attn",)
    return [
        Collective("attention.exchange", "all_to_all", "cp", traded * ulysses),
        Collective("attention.ring", "ring", "cp", kept * ring, 1.0, 2.0, 2.0, replay=core),
        Collective("attention.gather", "all_gather", "cp", kept * shard.cp * gathered, replay=core),
        AttentionCore(
            "core_attention",
            shard.micro_batch_size,
            np.maximum(heads / local, 1.0),
            np.maximum(kv_heads / local, 1.0),
            length / shard.cp * local,
            np.where(unfused > 0, length, seen),
            qk_dim,
            v_dim,
            core,
        ),
        Traffic("attention.softmax", 8.0 * scores, 12.0 * scores, 4.0, replay=core),
    ]
