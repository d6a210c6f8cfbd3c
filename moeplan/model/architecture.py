"""The model as the rest of the house sees it: layers in order, each a tuple of operators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

from moeplan.model.details import ModelDetails
from moeplan.operators.attention import Attention, LatentAttention
from moeplan.operators.base import COMPONENTS, Component, Shard, Weight, unsharded
from moeplan.operators.compressed_attention import CompressedAttention
from moeplan.operators.counted import CountedExperts
from moeplan.operators.embedding import Embedding, Head, TokenPredictionProjection
from moeplan.operators.expert_attention import ExpertAttention
from moeplan.operators.extra import Extra
from moeplan.operators.indexer import Indexer
from moeplan.operators.mixer import Mixer
from moeplan.operators.mlp import DenseMLP
from moeplan.operators.moe import MoE
from moeplan.operators.norm import Norm

Operator: TypeAlias = (
    Attention
    | LatentAttention
    | CompressedAttention
    | ExpertAttention
    | Extra
    | Indexer
    | Mixer
    | DenseMLP
    | MoE
    | CountedExperts
    | Norm
    | Embedding
    | Head
    | TokenPredictionProjection
)


@dataclass(frozen=True)
class Layer:
    """One decoder layer: its operators in the order in which they run.

    Two equal layers are one kind: they are priced once and multiplied.
    """

    operators: tuple[Operator, ...]

    @property
    def moe(self) -> MoE | None:
        """The layer's MoE block, if it has one."""
        return next((operator for operator in self.operators if isinstance(operator, MoE)), None)

    def weights(self, shard: Shard) -> list[Weight]:
        """Every parameter tensor of the layer on one rank."""
        return [weight for operator in self.operators for weight in operator.weights(shard)]


@dataclass(frozen=True)
class Architecture:
    """A decoder-only model.

    Attributes:
        name: What the user called it.
        family: Hugging Face ``model_type``, or ``counted``.
        embedding: Where tokens enter.
        layers: The decoder layers in order.
        final_norm: The norm before the head.
        head: Output projection and loss.
        mtp_layer: One multi-token-prediction depth (projection, norms and a whole layer), or None.
        mtp_layers: The model's own number of such depths.
        max_sequence_length: ``max_position_embeddings``, or None when unknown.
        details: What launch files need beside the shapes.
    """

    name: str
    family: str
    embedding: Embedding
    layers: tuple[Layer, ...]
    final_norm: Norm
    head: Head
    mtp_layer: Layer | None = None
    mtp_layers: int = 0
    max_sequence_length: int | None = None
    details: ModelDetails = field(default_factory=ModelDetails)

    @cached_property
    def memo(self) -> dict[Hashable, Any]:
        """Scratch space of the estimator: what it has worked out about this model before, by question."""
        return {}

    @cached_property
    def kinds(self) -> tuple[Layer, ...]:
        """The distinct decoder layers, in order of first appearance."""
        return tuple(dict.fromkeys(self.layers))

    @cached_property
    def layer_kinds(self) -> tuple[int, ...]:
        """For each decoder layer, the index of its kind in :attr:`kinds`."""
        index = {layer: position for position, layer in enumerate(self.kinds)}
        return tuple(index[layer] for layer in self.layers)

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return self.embedding.hidden

    @cached_property
    def moe(self) -> MoE | None:
        """The MoE block of the first MoE layer (its ``experts`` and ``top_k`` name the active ratio), or None."""
        return next((layer.moe for layer in self.layers if layer.moe is not None), None)

    @cached_property
    def routing(self) -> tuple[int, float] | None:
        """Routed experts and experts per token of the first operator that routes (a counted model's too), or None."""
        operators = (operator for layer in self.kinds for operator in layer.operators)
        routed = next((operator for operator in operators if isinstance(operator, MoE | CountedExperts)), None)
        return (routed.experts, routed.top_k) if routed is not None else None

    @cached_property
    def components(self) -> dict[Component, int]:
        """Trainable parameters by component, multi-token prediction left out, as transformers' own classes count."""
        shard = unsharded()
        weights = [*self.embedding.weights(shard), *self.final_norm.weights(shard), *self.head.weights(shard)]
        for layer, repeats in Counter(self.layers).items():
            weights += layer.weights(shard) * repeats
        return _by_component(weights)

    @property
    def total_parameters(self) -> int:
        """Trainable parameters without multi-token prediction."""
        return sum(self.components.values())

    def active_parameters(self, top_k: int | None = None) -> int:
        """Parameters that one token meets: all but the routed experts, and ``top_k`` experts of each MoE layer."""
        inactive = 0.0
        for layer, repeats in Counter(self.layers).items():
            for operator in layer.operators:
                if isinstance(operator, MoE | CountedExperts | ExpertAttention):
                    routed = _by_component(operator.weights(unsharded()))["routed_experts"]
                    inactive += repeats * routed * (1 - operator.active_share(top_k))
        return self.total_parameters - round(inactive)

    @property
    def mtp_parameters(self) -> int:
        """Parameters of the multi-token-prediction layers, embedding and head shared with the model."""
        if self.mtp_layer is None:
            return 0
        return self.mtp_layers * sum(_by_component(self.mtp_layer.weights(unsharded())).values())


def _by_component(weights: Iterable[Weight]) -> dict[Component, int]:
    counts: dict[Component, float] = dict.fromkeys(COMPONENTS, 0.0)
    for weight in weights:
        counts[weight.component] += float(weight.elements[0])
    return {component: round(count) for component, count in counts.items()}
