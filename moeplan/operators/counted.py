"""A whole Mixture of Experts known only by its parameter counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moeplan.operators.base import Shard, Weight, matrix


@dataclass(frozen=True, slots=True)
class CountedExperts:
    """Experts and shared parameters without layers (sizing calculator).

    Attributes:
        hidden: Features of an expert's output.
        experts: Routed experts.
        top_k: Experts per token, ``active_ratio * experts``: a real number.
        expert_parameters: Parameters of one expert.
        shared_parameters: Parameters that every token meets.
    """

    hidden: int
    experts: int
    top_k: float
    expert_parameters: int
    shared_parameters: int

    def active_share(self, top_k: int | None = None) -> float:
        """Share of the routed experts' parameters that one token meets."""
        return min((top_k or self.top_k) / self.experts, 1.0)

    def weights(self, shard: Shard) -> list[Weight]:
        """Shared parameters cut over ``tp``, experts over ``ep`` and ``etp``."""
        found = []
        if self.shared_parameters:
            found.append(matrix("shared", "shared_experts", self.shared_parameters / shard.tp, 1.0))
        found.append(
            Weight(
                "experts",
                "routed_experts",
                self.expert_parameters / shard.etp,
                np.ones(1),
                self.experts / shard.ep,
                expert=True,
            )
        )
        return found
