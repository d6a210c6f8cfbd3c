"""What the legality rules need to know about a model and a machine, gathered once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from moeplan.estimator.machine import Machine
from moeplan.model.architecture import Architecture
from moeplan.operators.attention import LatentAttention
from moeplan.operators.mlp import DenseMLP
from moeplan.operators.moe import MoE


@dataclass(frozen=True)
class Facts:
    """A model and a machine as the rules see them.

    Attributes:
        machine: The GPU and its links.
        model: The model's name, for messages.
        layers: Decoder layers.
        hidden: Width of the residual stream.
        heads: Distinct numbers of attention heads over the layers.
        kv_heads: Distinct numbers of key/value heads (none for latent attention, which has no groups).
        dense_ffn: Distinct inner widths of dense and shared feed-forward blocks.
        expert_ffn: Distinct inner widths of routed experts.
        experts: Distinct numbers of routed experts; empty for a dense model.
        top_k: The model's own experts per token, 0 for a dense model.
        latent: Some layer has latent attention.
        dense_layers: Some layer has a dense feed-forward block of its own (outside MoE).
        shared_experts: Some MoE layer has shared experts.
        expert_bias: Some expert has biases.
        mtp_layers: The model's own multi-token-prediction layers.
        tied: Embedding and head share weights.
        max_sequence_length: Positions that the model was made for, or None.
    """

    machine: Machine
    model: str
    layers: int
    hidden: int
    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    dense_ffn: tuple[int, ...]
    expert_ffn: tuple[int, ...]
    experts: tuple[int, ...]
    top_k: int
    latent: bool
    dense_layers: bool
    shared_experts: bool
    expert_bias: bool
    mtp_layers: int
    tied: bool
    max_sequence_length: int | None

    @property
    def is_moe(self) -> bool:
        """Whether any layer routes tokens to experts."""
        return bool(self.experts)


def facts(architecture: Architecture, machine: Machine) -> Facts:
    """Gather the facts of one model on one machine."""
    layers = [*architecture.kinds, *([architecture.mtp_layer] if architecture.mtp_layer is not None else [])]
    operators = [operator for layer in layers for operator in layer.operators]
    moes = [operator for operator in operators if isinstance(operator, MoE)]
    dense = [operator for operator in operators if isinstance(operator, DenseMLP)]
    shared = [moe.shared for moe in moes if moe.shared is not None]
    return Facts(
        machine=machine,
        model=architecture.name,
        layers=len(architecture.layers),
        hidden=architecture.hidden,
        # Mixers of every kind name their heads alike, so a new one is covered without a change here.
        heads=_distinct(getattr(operator, "heads", 0) for operator in operators),
        kv_heads=_distinct(getattr(operator, "kv_heads", 0) for operator in operators),
        dense_ffn=_distinct(block.ffn for block in [*dense, *shared]),
        expert_ffn=_distinct(moe.expert_ffn for moe in moes),
        # A counted model's experts, and attention's, lie on the expert grid as those of MoE layers do.
        experts=_distinct(getattr(operator, "experts", 0) for operator in operators),
        top_k=round(architecture.routing[1]) if architecture.routing is not None else 0,
        latent=any(isinstance(operator, LatentAttention) for operator in operators),
        dense_layers=bool(dense),
        shared_experts=bool(shared),
        expert_bias=any(moe.expert_bias for moe in moes),
        mtp_layers=architecture.mtp_layers if architecture.mtp_layer is not None else 0,
        tied=architecture.head.tied,
        max_sequence_length=architecture.max_sequence_length,
    )


def _distinct(values: Iterable[int | None]) -> tuple[int, ...]:
    return tuple(sorted({int(value) for value in values if value}))
