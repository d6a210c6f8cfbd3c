"""The dense feed-forward block."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moeplan.operators.base import Component, Shard, Weight, matrix, vector
from moeplan.operators.saved import Saved, Step, element_bytes, gathered, gemm_bytes, quantized_gradient, scattered
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

    def steps(self, shard: Shard) -> list[Step]:
        """The input, the first projection's output and the second one's input.

        Fused SwiGLU keeps only its input, the gate and up halves (Megatron-Core ``fusions/fused_bias_swiglu.py``);
        Hugging Face's eager code keeps gate, activated gate, up and their product. Recomputing ``mlp`` keeps the input
        of the checkpoint: Transformer Engine fuses the norm into the first projection, so that is the residual that the
        norm keeps anyway. The shared experts' input is the router's, which counts it.
        """
        shared = self.component == "shared_experts"
        modules = ("shared_experts", "moe") if shared else ("mlp",)
        name = "shared_experts" if shared else "mlp"
        size, kept_size = element_bytes(shard), gemm_bytes(shard)
        eager = shard.value("eager")
        low = shard.value("low_precision")
        inner = shard.tokens * self.ffn / shard.tp
        width = 2.0 if self.gated else 1.0
        entering = shard.sequence_tokens * self.hidden
        # Where norm and projection are one module a checkpoint around the block keeps nothing of its own.
        fused = shard.value("fused_norm", 1.0) * (1.0 - eager)
        first = Saved("fc1 input", kept_size * entering * fused, modules)
        plain = Saved("fc1 input", np.where(low > 0, kept_size, size) * entering * (1.0 - fused))
        if shared:
            # In eager code and Megatron-Core's local layers the input is the router's own tensor. Runs on Transformer
            # Engine hold one more: SimuMax v1.2's account of Megatron-Core on B200 counts it, and without it the
            # DeepSeek-V2 run of tests/reference/memory_measured.json is short by just that tensor in every MoE layer.
            own_input = np.where(low > 0, kept_size, size * fused)
            # It is the norm's output, so recomputing the norm discards it too.
            first = Saved("fc1 input", own_input * entering, (*modules, "layernorm"))
            plain = Saved("fc1 input", 0.0 * entering)
        own = width * inner * size * np.where(eager > 0, 1.5, 1.0) if self.gated else inner * size
        out = kept_size * inner
        mask = shard.value("dropout") * entering * (not shared)
        return [
            Step(
                f"{name}.linear_fc1",
                (first, plain),
                size * width * inner
                + quantized_gradient(shard, width * inner)
                + gathered(shard, self.hidden)
                + size * shard.tokens * self.hidden
                + scattered(shard, self.hidden),
            ),
            Step(f"{name}.activation", (Saved("fc1 output", own, modules),), size * (width + 1.0) * inner),
            Step(
                f"{name}.linear_fc2",
                # The mask of the dropout that follows the block; shared experts have none of their own.
                (Saved("fc2 input", out, modules), Saved("dropout mask", mask)),
                size * inner + gathered(shard, self.hidden) + quantized_gradient(shard, entering),
            ),
        ]
