"""What one layer keeps for backward, and how far above that its backward pass climbs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moeplan.model.architecture import Layer
from moeplan.operators.base import Array, Shard
from moeplan.operators.embedding import Embedding, Head
from moeplan.operators.saved import Step, element_bytes


@dataclass(frozen=True)
class LayerMemory:
    """Bytes of one layer and one micro batch; arrays of shape (candidates,).

    Attributes:
        kept: Saved from forward to backward under the selective recompute and offload switches.
        kept_full: Saved when the whole layer is recomputed: its input.
        transient: Highest point of its backward pass above ``kept`` of the whole layer.
        transient_full: The same above ``kept_full`` when the whole layer is rebuilt first.
    """

    kept: Array
    kept_full: Array
    transient: Array
    transient_full: Array


def layer_steps(layer: Layer, shard: Shard) -> list[tuple[int, Step]]:
    """Every step of a layer in forward order, with the index of its operator."""
    return [(index, step) for index, operator in enumerate(layer.operators) for step in operator.steps(shard)]


def layer_memory(layer: Layer, shard: Shard, hidden: int) -> LayerMemory:
    """Walk a layer's backward pass.

    At a step, everything saved by later steps is free again, everything saved by it and before it is alive, what its
    own operator recomputes has been rebuilt, and the gradient of the residual stream waits beside it. The layer's
    transient is the highest such point.

    Args:
        layer: The layer; the embedding and the head are layers too.
        shard: The cut.
        hidden: Width of the residual stream.
    """
    steps = layer_steps(layer, shard)
    shape = shard.tokens
    zero = np.zeros_like(shape)
    kept = [sum((tensor.kept(shard) for tensor in step.saved), zero) for _, step in steps]
    whole = [sum((tensor.bytes for tensor in step.saved), zero) for _, step in steps]
    total = sum(kept, zero)
    entering = element_bytes(shard) * shard.sequence_tokens * hidden
    plain = any(isinstance(operator, Embedding | Head) for operator in layer.operators)
    residual = zero if plain else entering
    transient, transient_full = zero, zero
    released = zero.copy()
    for position in range(len(steps) - 1, -1, -1):
        owner, step = steps[position]
        rebuilt = zero.copy()
        for earlier in range(position + 1):
            if steps[earlier][0] == owner:
                rebuilt = rebuilt + whole[earlier] - kept[earlier]
        above = step.backward + residual
        transient = np.maximum(transient, above + rebuilt - released)
        transient_full = np.maximum(transient_full, above + sum(whole[: position + 1], zero))
        released = released + kept[position]
    if plain:
        # Megatron-Core checkpoints decoder layers only.
        return LayerMemory(total, total, transient, transient)
    return LayerMemory(total, entering + zero, transient, transient_full)
