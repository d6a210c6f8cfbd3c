"""A whole Mixture of Experts known only by its parameter counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moeplan.operators.base import Shard, Weight, matrix
from moeplan.operators.saved import Saved, Step, element_bytes
from moeplan.operators.work import Collective, Gemm, Work, dense


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

    def work(self, shard: Shard) -> list[Work]:
        """Two FLOPs per parameter and token that meets it; the exchange moves rows of ``hidden`` features."""
        declared = shard.value("top_k", np.nan)
        top_k = np.where(np.isnan(declared), self.top_k, declared)
        tokens = shard.sequence_tokens
        load = np.maximum(shard.value("load_imbalance", 1.0), 1.0)
        groups = self.experts / shard.ep
        received = tokens * top_k * shard.etp * load
        sent = tokens * top_k * load * self.hidden * shard.value("activation_bytes", 2.0)
        outputs = self.expert_parameters / self.hidden / shard.etp
        found: list[Work] = [
            Collective("dispatch", "dispatch", "ep", sent, tokens=tokens * load, copies=top_k),
            Collective("combine", "dispatch", "ep", sent, tokens=tokens * load, copies=top_k),
            Gemm("experts", received / groups, outputs, self.hidden * np.ones(1), groups, grouped=True),
        ]
        if self.shared_parameters:
            found.append(dense("shared", shard.tokens, self.shared_parameters / self.hidden / shard.tp, self.hidden))
        return found

    def steps(self, shard: Shard) -> list[Step]:
        """The output of every expert that a token meets: what a sizing article calls the activations."""
        declared = shard.value("top_k", np.nan)
        top_k = np.where(np.isnan(declared), self.top_k, declared)
        rows = shard.sequence_tokens * top_k * shard.etp * np.maximum(shard.value("load_imbalance", 1.0), 1.0)
        outputs = element_bytes(shard) * rows * self.hidden
        return [Step("experts", (Saved("outputs", outputs),), outputs)]
