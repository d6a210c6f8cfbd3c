"""The Mixture-of-Experts block: router, dispatch, grouped expert GEMMs, combine, and shared experts beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from moeplan.operators.base import Array, Shard, Weight, matrix, vector
from moeplan.operators.mlp import DenseMLP
from moeplan.operators.saved import Saved, Step, element_bytes, gemm_bytes, quantized_gradient
from moeplan.operators.work import Collective, Gemm, Traffic, Work, dense


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
        expert_input: Width that experts read and write where it is not ``hidden`` (latent MoE), or None; two
            projections lead there and back.
        latent_bias: Those two projections have biases.
        router_input: Width that the router's projection reads where layers of its own come before it, or None.
        output_bias: One bias over the block's output (JetMoe).
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
    latent_bias: bool = False
    router_input: int | None = None
    output_bias: bool = False

    @property
    def router_width(self) -> int:
        """Logits per token."""
        return self.experts + self.identity_experts

    def active_share(self, top_k: int | None = None) -> float:
        """Share of the routed parameters that one token meets; an expectation where some experts are identity."""
        return min((top_k or self.top_k) / self.router_width, 1.0)

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
            matrix("router", "router", self.router_width, self.router_input or self.hidden),
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
        if self.expert_input is not None:
            found += [
                matrix("latent_down", "other", width, self.hidden),
                matrix("latent_up", "other", self.hidden, width),
            ]
            if self.latent_bias:
                found.append(vector("latent.bias", "other", width + self.hidden))
        if self.output_bias:
            found.append(vector("bias", "other", self.hidden))
        if self.shared is not None:
            found += self.shared.weights(shard)
            if self.shared_gate:
                found.append(matrix("shared_experts.gate", "shared_experts", 1, self.hidden))
        return found

    def work(self, shard: Shard) -> list[Work]:
        """Routing, exchange, grouped expert GEMMs on the fullest rank, and the shared experts."""
        found = self._routing(shard) + self._exchange(shard) + self._experts(shard)
        if self.shared is not None:
            found += self.shared.work(shard)
        return found

    def chosen(self, shard: Shard) -> Array:
        """Routed experts per token that do arithmetic: the candidate's own ``top_k`` or the model's."""
        declared = shard.value("top_k", np.nan)
        top_k = np.where(np.isnan(declared), float(self.top_k), declared)
        # Identity experts take their share of the choices and compute nothing.
        return top_k * self.experts / self.router_width

    def fullest(self, shard: Shard) -> Array:
        """Tokens on the fullest expert-parallel rank over the mean.

        A capacity factor drops what is above it; and no rank can receive more than every token once per expert that it
        holds.
        """
        capacity = shard.value("capacity_factor", np.nan)
        chosen = self.chosen(shard)
        most = shard.ep * np.minimum(self.local_experts(shard), chosen) / chosen
        imbalance = np.minimum(np.maximum(shard.value("load_imbalance", 1.0), 1.0), np.maximum(most, 1.0))
        return np.where(np.isnan(capacity), imbalance, np.minimum(imbalance, capacity))

    def received(self, shard: Shard) -> Array:
        """Token copies that the fullest rank's experts process in one micro batch."""
        return shard.sequence_tokens * self.chosen(shard) * shard.etp * self.fullest(shard)

    def _routing(self, shard: Shard) -> list[Work]:
        """Router in 16 bits, scores in fp32, and the movement of rows into expert order and back."""
        tokens = shard.sequence_tokens
        width = float(self.expert_input or self.hidden)
        copies = tokens * self.chosen(shard) * self.fullest(shard)
        rows = (tokens + copies) * width * shard.value("activation_bytes", 2.0)
        scores = tokens * self.router_width * 4.0
        # After the exchange, rows of several local experts are sorted by expert and sorted back; the fused kernels of
        # DeepEP and HybridEP write them in place (Megatron-LM moe/token_dispatcher.py, moe/fused_a2a.py).
        fused = shard.value("dispatcher.deepep") + shard.value("dispatcher.hybridep")
        sorting = (self.local_experts(shard) > 1) & (shard.ep > 1) & (fused == 0)
        sorted_rows = np.where(sorting, 4.0 * self.received(shard) * width * shard.value("activation_bytes", 2.0), 0.0)
        moved = np.where(fused > 0, rows, 2.0 * rows)
        moe = ("moe",)
        found: list[Work] = [
            dense("router", tokens, self.router_width, self.router_input or self.hidden, quantized=False, replay=moe),
            Traffic("router.scores", 8.0 * scores, 6.0 * scores, 12.0, "expert", replay=moe),
            Traffic("permute", moved + sorted_rows, moved + sorted_rows, 6.0, "permute", replay=moe),
        ]
        if self.expert_input is not None:
            found += [
                dense("latent.down", tokens, width, self.hidden, replay=moe),
                dense("latent.up", tokens, self.hidden, width, replay=moe),
            ]
        return found

    def _exchange(self, shard: Shard) -> list[Work]:
        """Dispatch and combine between expert ranks; the fullest rank's traffic sets the pace."""
        width = float(self.expert_input or self.hidden)
        tokens = shard.sequence_tokens
        size = shard.value("activation_bytes", 2.0)
        everyone = shard.value("dispatcher.allgather")
        sent = tokens * self.chosen(shard) * self.fullest(shard) * width * size * (1 - everyone)
        gathered = tokens * shard.ep * width * size * everyone
        spread = self.received(shard) * width * size * (shard.etp > 1)
        copies = self.chosen(shard)
        load = self.fullest(shard)
        moe = ("moe",)
        return [
            Collective("dispatch", "dispatch", "ep", sent, tokens=tokens * load, copies=copies, replay=moe),
            Collective("combine", "dispatch", "ep", sent, tokens=tokens * load, copies=copies, replay=moe),
            Collective("dispatch.gather", "all_gather", "ep", gathered, replay=moe),
            Collective("combine.scatter", "reduce_scatter", "ep", gathered, replay=moe),
            Collective("experts.gather", "all_gather", "etp", spread, replay=moe),
            Collective("experts.scatter", "reduce_scatter", "etp", spread, replay=moe),
        ]

    def _experts(self, shard: Shard) -> list[Work]:
        """Grouped GEMMs over the local experts and the activation between them."""
        width = float(self.expert_input or self.hidden)
        ffn = self.expert_ffn / shard.etp
        groups = self.local_experts(shard)
        received = self.received(shard)
        per_expert = received / groups
        inner = received * ffn * shard.value("activation_bytes", 2.0)
        accesses = (3.0, 5.0) if self.gated else (2.0, 3.0)
        rows = ffn * (2 if self.gated else 1)
        found: list[Work] = [
            Gemm("experts.linear_fc1", per_expert, rows, width * np.ones(1), groups, grouped=True, replay=("moe",)),
            Traffic("experts.activation", accesses[0] * inner, accesses[1] * inner, 2.0, "expert", ("moe", "moe_act")),
            Gemm("experts.linear_fc2", per_expert, width * np.ones(1), ffn, groups, grouped=True, replay=("moe",)),
        ]
        if self.expert_bias:
            # Added expert by expert and concatenated, weighted by the router's probabilities after the second GEMM
            # (Megatron-LM moe/experts.py, _apply_bias): four accesses forward, three backward.
            outputs = received * (rows + width) * shard.value("activation_bytes", 2.0)
            found.append(Traffic("experts.bias", 4.0 * outputs, 3.0 * outputs, 4.0, "expert", ("moe",)))
            # Clamped outside of the fused activation: two clamps and a concatenation, read and written, and backward
            # through each (Megatron-LM core/fusions/fused_bias_geglu.py, weighted_bias_quick_geglu_impl).
            found.append(Traffic("experts.clamp", 8.0 * inner, 10.0 * inner, 3.0, "expert", ("moe", "moe_act")))
        return found

    def held(self, shard: Shard) -> Array:
        """Token copies that the fullest rank holds for its experts; a capacity factor pads every expert to it.

        Megatron-Core ``--moe-pad-expert-input-to-capacity``; the capacity is rounded up per expert (``get_capacity``).
        """
        capacity = shard.value("capacity_factor", np.nan)
        balanced = shard.sequence_tokens * self.chosen(shard)
        padded = np.ceil(balanced * np.nan_to_num(capacity) / self.experts) * self.experts
        # No rank can receive more than every token once per expert that it holds.
        most = np.maximum(shard.ep * np.minimum(self.local_experts(shard) / self.chosen(shard), 1.0), 1.0)
        dropless = balanced * np.minimum(shard.value("load_imbalance", 1.0), most)
        return np.where(np.isnan(capacity), dropless, padded) * shard.etp

    def steps(self, shard: Shard) -> list[Step]:
        """Router and its scores, the shared experts, then dispatched rows through both grouped GEMMs, then combine."""
        entering = shard.sequence_tokens * self.hidden
        size = element_bytes(shard)
        # A checkpoint around the whole block keeps its input; recomputing the norm instead rebuilds it.
        hidden = Saved("hidden states", size * entering, ("layernorm",), offload="mlp_norm")
        found = [Step("router", (hidden, *self._scores(shard)), size * entering + 8.0 * self._routed_scores(shard))]
        if self.expert_input is not None:
            # Latent MoE: projections into the experts' width and back, around the exchange.
            latent = gemm_bytes(shard) * shard.sequence_tokens * (self.hidden + float(self.expert_input))
            found.append(Step("latent projections", (Saved("inputs", latent, ("moe",)),), latent))
        if self.shared is not None:
            found += self.shared.steps(shard)
            if self.shared_gate:
                gate = Saved("gated output", 2.0 * size * entering, ("shared_experts", "moe"))
                found.append(Step("shared_experts.gate", (gate,), 2.0 * size * entering))
        return found + self._expert_steps(shard)

    def _routed_scores(self, shard: Shard) -> Array:
        return shard.sequence_tokens * self.router_width

    def _scores(self, shard: Shard) -> tuple[Saved, ...]:
        """What routing keeps: indices, the routing map, and probabilities in the router's precision.

        Megatron-Core: 20 bytes per choice, one byte of map and the probability per logit, and for sigmoid scores 4 more
        per logit (hooks on ``moe_utils.py`` and ``router.py``). Models with sigmoid scores train their router in fp32
        (``--moe-router-dtype fp32`` in DeepSeek-V3's recipes). Hugging Face: fp32 scores, 12 bytes per choice, and for
        sigmoid scores an fp32 copy of the router's input and weight in place of the 16-bit input.
        """
        tokens, logits = shard.sequence_tokens, self._routed_scores(shard)
        chosen = self._choices(shard)
        eager = shard.value("eager")
        sigmoid = float(self.score_function == "sigmoid")
        core = tokens * 20.0 * chosen + logits * (1.0 + self._probability_bytes) + sigmoid * 4.0 * (logits + tokens)
        own = 4.0 if self.shared is not None else 2.0  # the shared experts keep the 16-bit input beside it
        copies = sigmoid * (4.0 * self.router_width * self.hidden + own * tokens * self.hidden)
        plain = 4.0 * logits + 12.0 * tokens * chosen + 4.0 * tokens + copies
        # Transformer Engine's fused permutation keeps a map of 2 * experts + 1 32-bit rows per token (permutation.py).
        row_map = shard.value("fused_norm") * 4.0 * (2.0 * logits + tokens)
        return (Saved("scores", np.where(eager > 0, plain, core + row_map), ("moe",)),)

    @property
    def _probability_bytes(self) -> float:
        return 4.0 if self.score_function == "sigmoid" else 2.0

    def _choices(self, shard: Shard) -> Array:
        declared = shard.value("top_k", np.nan)
        return np.where(np.isnan(declared), float(self.top_k), declared)

    def _expert_steps(self, shard: Shard) -> list[Step]:
        """Rows in expert order: input of the first GEMM, input of the activation, input of the second GEMM.

        Probabilities multiply the activation (weighted SwiGLU), so that combining keeps nothing. Hugging Face's grouped
        path keeps gathered rows, gate and up, both activations, the unweighted and the weighted output, and the sort's
        indices, per row; and the offsets of the experts.
        """
        size, kept_size = element_bytes(shard), gemm_bytes(shard)
        eager = shard.value("eager") > 0
        width = float(self.expert_input or self.hidden)
        rows = self.held(shard)
        sent = shard.sequence_tokens * self.chosen(shard)
        inner = rows * self.expert_ffn / shard.etp
        halves = 2.0 if self.gated else 1.0
        # All-to-all returns the rows that this rank sent; all-gather reduces over every rank's tokens.
        everyone = shard.value("dispatcher.allgather")
        exchanged = np.where(everyone > 0, shard.sequence_tokens * shard.ep * shard.etp, sent)
        dispatched, returned = size * rows * width, size * exchanged * width
        probabilities = self._probability_bytes * rows
        indices = 28.0 * rows + 4.0 * self.local_experts(shard)
        everything = ("moe",)
        mask = Saved("dropout mask", shard.value("dropout") * shard.sequence_tokens * self.hidden)
        return [
            Step(
                "experts.linear_fc1",
                (
                    Saved("fc1 input", np.where(eager, size, kept_size) * rows * width, everything, "expert_fc1"),
                    Saved("indices", np.where(eager, indices, 0.0), everything),
                ),
                size * halves * inner + quantized_gradient(shard, halves * inner) + dispatched + returned,
            ),
            Step(
                "experts.activation",
                (
                    Saved("fc1 output", size * halves * inner, everything, "moe_act"),
                    Saved("probabilities", np.where(eager, 0.0, probabilities), everything),
                ),
                size * (halves + 1.0) * inner,
            ),
            Step(
                "experts.linear_fc2",
                (
                    Saved("fc2 input", np.where(eager, size, kept_size) * inner, ("moe", "moe_act"), "moe_act"),
                    Saved("activation", np.where(eager, size * inner, 0.0), everything),
                    Saved("output", np.where(eager, dispatched, 0.0), everything),
                ),
                dispatched + size * inner + quantized_gradient(shard, rows * width),
            ),
            Step("combine", (mask,), dispatched + returned),
        ]
