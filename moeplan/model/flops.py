"""Model FLOPs by Megatron's convention: what training a token needs, whatever is recomputed, padded or dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from moeplan.model.architecture import Architecture, Layer
from moeplan.operators.base import Shard, unsharded
from moeplan.operators.work import AttentionCore, Gemm, Scan, Work

# Forward, data gradient and weight gradient (Megatron-LM megatron/training/training.py,
# num_floating_point_operations: three passes of two FLOPs per multiply-add).
_PASSES = 3.0
_PER_MULTIPLY_ADD = 2.0


def model_flops_per_token(
    architecture: Architecture, sequence_length: int, top_k: int | None = None, mtp_layers: int | None = None
) -> float:
    """FLOPs of one training step per token.

    Counted are the projections, the causal half of attention, the experts that a token meets, the head, and every
    multi-token-prediction depth with one more pass through the head. Router, norms and recomputation are not.
    Source: Megatron-LM ``megatron/training/training.py`` (num_floating_point_operations).

    Args:
        architecture: The model.
        sequence_length: Tokens per sequence, which attention grows with.
        top_k: Routed experts per token, the model's own by default.
        mtp_layers: Multi-token-prediction layers trained, the model's own number by default.
    """
    shard = unsharded(1, sequence_length)
    shard = Shard(
        shard.tp,
        shard.cp,
        shard.ep,
        shard.etp,
        shard.micro_batch_size,
        shard.sequence_length,
        {} if top_k is None else {"top_k": np.full(1, float(top_k))},
    )
    depths = 0
    if architecture.mtp_layer is not None:
        depths = architecture.mtp_layers if mtp_layers is None else mtp_layers
    head = _layer_flops(Layer((architecture.final_norm, architecture.head)), shard)
    total = head * (1 + depths)
    for layer, repeats in Counter(architecture.layers).items():
        total += repeats * _layer_flops(layer, shard)
    if architecture.mtp_layer is not None and depths:
        total += depths * _layer_flops(architecture.mtp_layer, shard)
    return _PASSES * total / sequence_length


def _layer_flops(layer: Layer, shard: Shard) -> float:
    return sum(_forward_flops(operator.work(shard)) for operator in layer.operators)


def _forward_flops(items: Sequence[Work]) -> float:
    flops = 0.0
    for item in items:
        if isinstance(item, Gemm) and item.name != "router":
            flops += _PER_MULTIPLY_ADD * _scalar(item.tokens * item.outputs * item.inputs * item.groups)
        elif isinstance(item, AttentionCore):
            pairs = _scalar(item.sequences * item.heads * item.queries * item.keys)
            flops += _PER_MULTIPLY_ADD * pairs * (item.qk_dim + item.v_dim)
        elif isinstance(item, Scan):
            flops += _scalar(item.flops)
    return flops


def _scalar(value: np.typing.NDArray[np.float64]) -> float:
    return float(np.max(value))
