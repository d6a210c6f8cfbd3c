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
        whole: Saved when nothing is recomputed or offloaded: what rebuilding a layer brings back.
    """

    kept: Array
    kept_full: Array
    transient: Array
    transient_full: Array
    whole: Array


def layer_steps(layer: Layer, shard: Shard) -> list[tuple[int, Step]]:
    """Every step of a layer in forward order, with the index of its operator."""
    return [(index, step) for index, operator in enumerate(layer.operators) for step in operator.steps(shard)]


@dataclass(frozen=True)
class Point:
    """One step of a layer's backward pass.

    Attributes:
        name: The step.
        kept: Bytes that it saves under the selective switches.
        whole: Bytes that it saves without any.
        climb: Its height above what the whole layer keeps.
        climb_full: Its height above nothing, when the whole layer has been rebuilt first.
    """

    name: str
    kept: Array
    whole: Array
    climb: Array
    climb_full: Array


def walk(layer: Layer, shard: Shard, hidden: int) -> list[Point]:
    """Walk a layer's backward pass; the points come in forward order.

    At a step, everything saved by later steps is free again, everything saved by it and before it is alive, what its
    own operator recomputes has been rebuilt, and the gradient of the residual stream waits beside it.

    Args:
        layer: The layer; the embedding and the head are layers too.
        shard: The cut.
        hidden: Width of the residual stream.
    """
    steps = layer_steps(layer, shard)
    zero = np.zeros_like(shard.tokens)
    kept = [sum((tensor.kept(shard) for tensor in step.saved), zero) for _, step in steps]
    whole = [sum((tensor.bytes for tensor in step.saved), zero) for _, step in steps]
    residual = zero if _plain(layer) else _entering(shard, hidden)
    points = []
    released = zero
    for position in range(len(steps) - 1, -1, -1):
        owner, step = steps[position]
        rebuilt = zero
        for earlier in range(position + 1):
            if steps[earlier][0] == owner:
                rebuilt = rebuilt + whole[earlier] - kept[earlier]
        above = step.backward + residual
        points.append(
            Point(
                name=step.name,
                kept=kept[position],
                whole=whole[position],
                climb=above + rebuilt - released,
                climb_full=above + sum(whole[: position + 1], zero),
            )
        )
        released = released + kept[position]
    return points[::-1]


def layer_memory(layer: Layer, shard: Shard, hidden: int) -> LayerMemory:
    """What a layer keeps, and the highest point of its :func:`walk`."""
    points = walk(layer, shard, hidden)
    zero = np.zeros_like(shard.tokens)
    kept = sum((point.kept for point in points), zero)
    climb = np.max([point.climb for point in points] + [zero], axis=0)
    whole = sum((point.whole for point in points), zero)
    if _plain(layer):
        # Megatron-Core checkpoints decoder layers only.
        return LayerMemory(kept, kept, climb, climb, whole)
    # A recomputed layer keeps its input; the rebuilt fused norm holds that same tensor, eager ones a copy.
    entering = _entering(shard, hidden) + zero
    climb_full = np.max([point.climb_full for point in points] + [zero], axis=0)
    own = np.where(shard.value("eager") > 0, 0.0, entering)
    return LayerMemory(kept, entering, climb, np.maximum(climb_full - own, 0.0), whole)


def _plain(layer: Layer) -> bool:
    return any(isinstance(operator, Embedding | Head) for operator in layer.operators)


def _entering(shard: Shard, hidden: int) -> Array:
    return element_bytes(shard) * shard.sequence_tokens * hidden
