"""The dense feed-forward block."""

from __future__ import annotations

from dataclasses import dataclass

from moeplan.operators.base import Component, Shard, Weight, matrix, vector
from moeplan.operators.work import Work, column_parallel, dense, elementwise, row_parallel


@dataclass(frozen=True, slots=True)
class DenseMLP:
    """A feed-forward block cut over ``tp``: gated (SwiGLU-like, three matrices) or plain (two).

    Attributes:
        hidden: Width of the residual stream.
        ffn: Inner width.
        gated: Gate and up projection side by side in one matrix.
        bias: Biases on both projections.
        component: Where reports count it (``shared_experts`` inside a MoE block).
    """

    hidden: int
    ffn: int
    gated: bool = True
    bias: bool = False
    component: Component = "dense_mlp"

    def weights(self, shard: Shard) -> list[Weight]:
        """Both projections, cut over ``tp``; the output bias is replicated."""
        ffn = self.ffn / shard.tp
        rows = ffn * (2 if self.gated else 1)
        found = [
            matrix("linear_fc1", self.component, rows, self.hidden),
            matrix("linear_fc2", self.component, self.hidden, ffn),
        ]
        if self.bias:
            found.append(vector("linear_fc1.bias", self.component, rows))
            found.append(vector("linear_fc2.bias", self.component, self.hidden))
        return found

    def work(self, shard: Shard) -> list[Work]:
        """Two projections around the activation, and what tensor parallelism sends."""
        ffn = self.ffn / shard.tp
        tokens = shard.tokens
        replay = ("shared_experts", "moe") if self.component == "shared_experts" else ("mlp",)
        name = "shared_experts" if self.component == "shared_experts" else "mlp"
        # SwiGLU reads two inputs and writes one output; its backward reads three and writes two.
        accesses = (3.0, 5.0) if self.gated else (2.0, 3.0)
        return [
            *column_parallel(f"{name}.linear_fc1", shard, self.hidden, replay),
            dense(f"{name}.linear_fc1", tokens, ffn * (2 if self.gated else 1), self.hidden, replay=replay),
            elementwise(f"{name}.activation", tokens * ffn, shard, accesses, replay=replay),
            dense(f"{name}.linear_fc2", tokens, self.hidden, ffn, replay=replay),
            *row_parallel(f"{name}.linear_fc2", shard, self.hidden, replay),
        ]
