"""The Mixture-of-Experts block: router, dispatch, grouped expert GEMMs, combine, and shared experts beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from moeplan.operators.base import Array, Shard, Weight, matrix, vector
from moeplan.operators.mlp import DenseMLP


@dataclass(frozen=True, slots=True)
class MoE:
    """Routed experts with an optional shared one.

    Attributes:
        hidden: Width of the residual stream.
        experts: Routed experts that hold parameters.
        top_k: Routed experts per token (the model's own; a candidate's ``top_k`` column may override it).
        expert_ffn: Inner width of one routed expert.
        shared: The shared experts as one fused block, or None.
        shared_gate: A sigmoid gate [1, hidden] on the shared output (Qwen).
        gated: Experts are SwiGLU-like (three matrices) rather than plain (two).
        expert_bias: Biases inside the experts.
        router_bias: Bias on the router's logits.
        correction_bias: A trained per-expert score bias that the model counts as a parameter (not a buffer).
        score_function: What turns logits into scores.
        identity_experts: Experts without parameters that top-k may choose (LongCat).
        expert_input: Width that experts read and write where it is not ``hidden`` (latent MoE), or None.
    """

    hidden: int
    experts: int
    top_k: int
    expert_ffn: int
    shared: DenseMLP | None = None
    shared_gate: bool = False
    gated: bool = True
    expert_bias: bool = False
    router_bias: bool = False
    correction_bias: bool = False
    score_function: Literal["softmax", "sigmoid"] = "softmax"
    identity_experts: int = 0
    expert_input: int | None = None

    @property
    def router_width(self) -> int:
        """Logits per token."""
        return self.experts + self.identity_experts

    def local_experts(self, shard: Shard) -> Array:
        """Routed experts held by one rank."""
        return self.experts / shard.ep

    def weights(self, shard: Shard) -> list[Weight]:
        """Router and shared experts on the attention grid, routed experts on the expert grid."""
        width = float(self.expert_input or self.hidden)
        ffn = self.expert_ffn / shard.etp
        rows = ffn * (2 if self.gated else 1)
        copies = self.local_experts(shard)
        ones = np.ones(1)
        found = [
            matrix("router", "router", self.router_width, self.hidden),
            Weight("experts.linear_fc1", "routed_experts", rows, width * ones, copies, expert=True),
            Weight("experts.linear_fc2", "routed_experts", width * ones, ffn, copies, expert=True),
        ]
        if self.router_bias:
            found.append(vector("router.bias", "router", self.router_width))
        if self.correction_bias:
            found.append(vector("router.expert_bias", "router", self.router_width))
        if self.expert_bias:
            found += [
                Weight("experts.linear_fc1.bias", "routed_experts", rows, ones, copies, expert=True, gemm=False),
                Weight(
                    "experts.linear_fc2.bias", "routed_experts", width * ones, ones, copies, expert=True, gemm=False
                ),
            ]
        if self.shared is not None:
            found += self.shared.weights(shard)
            if self.shared_gate:
                found.append(matrix("shared_experts.gate", "shared_experts", 1, self.hidden))
        return found
