"""Softmax attention: grouped-query (multi-head and sliding-window are special cases) and multi-head latent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from moeplan.operators.base import Array, Shard, Weight, matrix, vector
from moeplan.operators.saved import (
    Saved,
    Step,
    element_bytes,
    gathered,
    gemm_bytes,
    norm_tensors,
    quantized_gradient,
    scattered,
)
from moeplan.operators.work import Work, attention_core, column_parallel, dense, elementwise, row_parallel


@dataclass(frozen=True, slots=True)
class Attention:
    """Grouped-query attention.

    Attributes:
        hidden: Width of the residual stream.
        heads: Query heads.
        kv_heads: Key/value heads; ``heads`` for multi-head attention.
        head_dim: Width of a query/key head.
        v_head_dim: Width of a value head; ``head_dim`` in nearly every model.
        window: Tokens that a query sees, or None for all before it.
        qkv_bias: Biases on the query, key and value projections.
        output_bias: Bias on the output projection.
        qk_norm: A norm over each head (weight [head_dim]), over the full width, or none.
        sinks: One learned sink logit per query head.
        output_gate: The query projection also yields a gate of the output's width (Qwen3-Next).
        head_gate: A projection yields one gate per query head.
        qk_norm_bias: The norms over each head are LayerNorms with a bias.
    """

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    v_head_dim: int
    window: int | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: Literal["head", "full"] | None = None
    sinks: bool = False
    output_gate: bool = False
    head_gate: bool = False
    qk_norm_bias: bool = False

    def weights(self, shard: Shard) -> list[Weight]:
        """The parameters on one rank. Key/value heads are replicated once ``tp`` exceeds them (Megatron-Core)."""
        heads = self.heads / shard.tp
        kv_heads = np.maximum(self.kv_heads / shard.tp, 1.0)
        queries = heads * (self.head_dim + (self.v_head_dim if self.output_gate else 0))
        rows = queries + kv_heads * (self.head_dim + self.v_head_dim)
        found = [
            matrix("linear_qkv", "attention", rows, self.hidden),
            matrix("linear_proj", "attention", self.hidden, heads * self.v_head_dim),
        ]
        if self.qkv_bias:
            found.append(vector("linear_qkv.bias", "attention", rows))
        if self.output_bias:
            found.append(vector("linear_proj.bias", "attention", self.hidden))
        if self.sinks:
            found.append(vector("sinks", "attention", heads))
        if self.head_gate:
            found.append(matrix("linear_gate", "attention", heads, self.hidden))
        if self.qk_norm == "head":
            found.append(vector("qk_layernorm", "norms", (4 if self.qk_norm_bias else 2) * self.head_dim))
        elif self.qk_norm == "full":
            found.append(vector("qk_layernorm", "norms", heads * self.head_dim + kv_heads * self.head_dim))
        return found

    def work(self, shard: Shard) -> list[Work]:
        """Projections, rotary embedding, attention over the local heads, and what parallelism sends."""
        heads = self.heads / shard.tp
        kv_heads = np.maximum(self.kv_heads / shard.tp, 1.0)
        queries = heads * (self.head_dim + (self.v_head_dim if self.output_gate else 0))
        keys_values = kv_heads * (self.head_dim + self.v_head_dim)
        tokens = shard.tokens
        rotated = tokens * (heads + kv_heads) * self.head_dim
        found: list[Work] = [
            *column_parallel("linear_qkv", shard, self.hidden),
            dense("linear_qkv", tokens, queries + keys_values, self.hidden),
            elementwise("rotary", rotated, shard, (2.0, 2.0), 2.0),
            *attention_core(shard, heads, kv_heads, self.head_dim, self.v_head_dim, self.window),
        ]
        if self.qk_norm is not None:
            found.append(elementwise("qk_layernorm", rotated, shard, (2.0, 3.0), 2.0))
        if self.output_gate:
            found.append(elementwise("output_gate", tokens * heads * self.v_head_dim, shard, (3.0, 5.0), 2.0))
        found.append(dense("linear_proj", tokens, self.hidden, heads * self.v_head_dim))
        return found + list(row_parallel("linear_proj", shard, self.hidden))

    def steps(self, shard: Shard) -> list[Step]:
        """The projection's input, what attention reads and returns, and the output projection's input.

        Transformer Engine's fused attention keeps q, k, v, the output and fp32 row statistics. Megatron-Core's own
        rotary code also keeps its fp32 tables, and the value as a view that holds the whole mixed projection.
        """
        size = element_bytes(shard)
        heads = self.heads / shard.tp
        kv_heads = np.maximum(self.kv_heads / shard.tp, 1.0)
        tokens = shard.tokens
        queries, keys = tokens * heads * self.head_dim, tokens * kv_heads * self.head_dim
        values, out = tokens * kv_heads * self.v_head_dim, tokens * heads * self.v_head_dim
        mixed = queries + keys + values + (out if self.output_gate else 0.0)
        unfused = 1.0 - shard.value("fused_rope", 1.0)
        entering = shard.sequence_tokens * self.hidden
        tables = 8.0 * shard.sequence_length / shard.cp * self.head_dim * unfused
        found = [
            Step(
                "linear_qkv",
                (
                    Saved("qkv input", gemm_bytes(shard) * entering, offload="qkv_linear"),
                    Saved("rotary tables", tables),
                ),
                size * mixed
                + quantized_gradient(shard, mixed)
                + gathered(shard, self.hidden)
                + size * tokens * self.hidden
                + scattered(shard, self.hidden),
            )
        ]
        if self.qk_norm is not None:
            # The key's input is a view of the mixed projection where that stays alive anyway.
            rows = tokens * (heads + kv_heads) if self.qk_norm == "head" else 2.0 * tokens
            normed = norm_tensors(shard, "q/k norm input", queries + keys * (1.0 - unfused), rows)
            found.append(Step("qk_layernorm", (normed,), 2.0 * size * (queries + keys)))
        if self.output_gate:
            found.append(Step("output_gate", (Saved("gate and output", 2.0 * size * out),), 3.0 * size * out))
        values_kept = values + unfused * (queries + keys)
        found.append(core_step(shard, (queries, keys, values_kept, out), heads, self.window))
        found.append(projection_step(shard, out, self.hidden))
        return found


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """Multi-head latent attention of DeepSeek-V2 and V3 (arXiv:2405.04434, section 2.1).

    Attributes:
        hidden: Width of the residual stream.
        heads: Attention heads.
        q_lora_rank: Rank of the query compression, or None where queries are projected directly.
        kv_lora_rank: Rank of the joint key/value compression.
        qk_nope_head_dim: Width of a head's part without position.
        qk_rope_head_dim: Width of a head's rotary part (one shared key).
        v_head_dim: Width of a value head.
        attention_bias: Biases on the down projections and the output.
        head_gate: A projection yields one gate per head (Ling).
        window: Tokens that a query sees: those that a sparse-attention indexer selects, or None for all before it.
    """

    hidden: int
    heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    attention_bias: bool = False
    window: int | None = None
    head_gate: bool = False

    def weights(self, shard: Shard) -> list[Weight]:
        """The parameters on one rank: down projections are replicated over ``tp`` (Megatron-Core's TE spec)."""
        heads = self.heads / shard.tp
        qk_dim = self.qk_nope_head_dim + self.qk_rope_head_dim
        found = []
        if self.q_lora_rank is None:
            found.append(matrix("linear_q_proj", "attention", heads * qk_dim, self.hidden))
        else:
            found += [
                matrix("linear_q_down_proj", "attention", self.q_lora_rank, self.hidden),
                vector("q_layernorm", "norms", self.q_lora_rank),
                matrix("linear_q_up_proj", "attention", heads * qk_dim, self.q_lora_rank),
            ]
        found += [
            matrix("linear_kv_down_proj", "attention", self.kv_lora_rank + self.qk_rope_head_dim, self.hidden),
            vector("kv_layernorm", "norms", self.kv_lora_rank),
            matrix(
                "linear_kv_up_proj", "attention", heads * (self.qk_nope_head_dim + self.v_head_dim), self.kv_lora_rank
            ),
            matrix("linear_proj", "attention", self.hidden, heads * self.v_head_dim),
        ]
        if self.head_gate:
            found.append(matrix("linear_gate", "attention", heads, self.hidden))
        if self.attention_bias:
            if self.q_lora_rank is not None:
                found.append(vector("linear_q_down_proj.bias", "attention", self.q_lora_rank))
            found.append(vector("linear_kv_down_proj.bias", "attention", self.kv_lora_rank + self.qk_rope_head_dim))
            found.append(vector("linear_proj.bias", "attention", self.hidden))
        return found

    def work(self, shard: Shard) -> list[Work]:
        """Compression on the rank's share of the sequence, expansion and attention over the local heads."""
        heads = self.heads / shard.tp
        qk_dim = self.qk_nope_head_dim + self.qk_rope_head_dim
        tokens, local = shard.tokens, shard.sequence_tokens
        up = ("mla_up_proj",)
        found: list[Work] = []
        if self.q_lora_rank is None:
            found += column_parallel("linear_q_proj", shard, self.hidden)
            found.append(dense("linear_q_proj", tokens, heads * qk_dim, self.hidden))
        else:
            found += [
                dense("linear_q_down_proj", local, self.q_lora_rank, self.hidden),
                elementwise("q_layernorm", local * self.q_lora_rank, shard, (2.0, 3.0)),
                *column_parallel("linear_q_up_proj", shard, self.q_lora_rank, up),
                dense("linear_q_up_proj", tokens, heads * qk_dim, self.q_lora_rank, replay=up),
            ]
        expanded = heads * (self.qk_nope_head_dim + self.v_head_dim)
        compressed = self.kv_lora_rank + self.qk_rope_head_dim
        found += [
            dense("linear_kv_down_proj", local, compressed, self.hidden),
            elementwise("kv_layernorm", local * self.kv_lora_rank, shard, (2.0, 3.0)),
            *column_parallel("linear_kv_up_proj", shard, compressed, up),
            dense("linear_kv_up_proj", tokens, expanded, self.kv_lora_rank, replay=up),
            # Queries and keys are rotated and assembled from their two parts (fused_mla_rope in Megatron-Core).
            elementwise("rotary", tokens * heads * 2 * qk_dim, shard, (2.0, 2.0), 2.0, up),
            *attention_core(shard, heads, heads, qk_dim, self.v_head_dim, self.window),
            dense("linear_proj", tokens, self.hidden, heads * self.v_head_dim),
        ]
        return found + list(row_parallel("linear_proj", shard, self.hidden))

    def steps(self, shard: Shard) -> list[Step]:
        """Compressed queries and keys/values with their norms, the expanded heads, and the output.

        Nothing is absorbed in training: keys and values are made per head. Recomputing ``mla_up_proj`` rebuilds them
        from the compressed tensors (Megatron-Core ``multi_latent_attention.py``, ``qkv_up_checkpoint``).
        """
        size, kept_size = element_bytes(shard), gemm_bytes(shard)
        eager, low = shard.value("eager"), shard.value("low_precision")
        heads = self.heads / shard.tp
        tokens, local = shard.tokens, shard.sequence_tokens
        qk_dim = self.qk_nope_head_dim + self.qk_rope_head_dim
        queries, values = tokens * heads * qk_dim, tokens * heads * self.v_head_dim
        entering = local * self.hidden
        compressed = float(self.q_lora_rank or 0)
        latent = float(self.kv_lora_rank)
        # Each down projection quantises the shared input for itself; in 16 bits both keep the same tensor.
        copies = 1.0 + low * (self.q_lora_rank is not None)
        unfused = 1.0 - shard.value("fused_rope", 1.0)
        # The latent part of the joint projection is a view, which keeps the rotary key beside it alive. Hugging Face's
        # eager norm keeps a copy instead.
        joint = norm_tensors(shard, "compressed k/v", local * latent, local)
        joint_bytes = joint.bytes + (1.0 - eager) * size * local * self.qk_rope_head_dim
        tables = 4.0 * shard.sequence_length / shard.cp * self.qk_rope_head_dim * unfused
        # Transformer Engine fuses these norms into the up projections, so that their outputs are rebuilt with them.
        modules = ("mla_up_proj",)
        kept_norm = 1.0 - shard.value("fused_norm", 1.0)
        normed = kept_size * local * (compressed + latent)
        expanded = size * (2.0 * queries + tokens * heads * (self.qk_nope_head_dim + self.v_head_dim))
        norms = [Saved("compressed k/v", joint_bytes)]
        if self.q_lora_rank is not None:
            norms.append(norm_tensors(shard, "compressed q", local * compressed, local))
        down = (
            Saved("hidden states", kept_size * copies * entering, ("layernorm",), offload="qkv_linear"),
            Saved("rotary frequencies", tables),
        )
        up = (
            Saved("up projection input", normed * (1.0 - kept_norm), modules),
            Saved("up projection input", normed * kept_norm),
            Saved("rotary tables", tables, modules),
        )
        # Heads of the value are narrower than those of query and key: Hugging Face pads v and keeps the padded output
        # and its unpadded copy.
        padding = eager * tokens * heads * (qk_dim - self.v_head_dim)
        padded = Saved("padded output", size * eager * (values + padding))
        core = core_step(shard, (queries, queries, values + padding, values + padding), heads, None, modules)
        core = Step(core.name, (*core.saved, padded), core.backward)
        return [
            Step("linear_down_proj", down, size * (local * (compressed + latent) + entering)),
            Step("latent_layernorm", tuple(norms), 2.0 * size * local * (compressed + latent)),
            Step("linear_up_proj", up, expanded + quantized_gradient(shard, expanded / size)),
            core,
            projection_step(shard, values, self.hidden),
        ]


def core_step(
    shard: Shard,
    elements: tuple[Array, Array, Array, Array],
    heads: Array,
    window: int | None,
    modules: tuple[str, ...] = (),
) -> Step:
    """Attention proper.

    Args:
        shard: The cut.
        elements: Elements of query, key, value (as kept) and output on this rank.
        heads: Query heads on this rank.
        window: Sliding window, or None.
        modules: Recompute modules that rebuild query, key and value.
    """
    queries, keys, values, out = elements
    size = element_bytes(shard)
    flash = shard.value("flash_attention", 1.0)
    dropout = shard.value("dropout")
    sequence = shard.sequence_length
    # Without flash attention the probabilities are kept, and under dropout its mask and its output too
    # (Korthikanti et al. 2022, section 4.1: 2 + 1 + 2 bytes per score).
    scores = heads * shard.tokens * (sequence if window is None else np.minimum(window, sequence))
    probabilities = (1.0 - flash) * scores * (size + dropout * (size + 1.0))
    statistics = flash * 4.0 * shard.tokens * heads
    # All-to-all context parallelism keeps the output before its exchange as well (Transformer Engine >= 2.8).
    exchanged = shard.value("cp_comm.a2a") * (shard.cp > 1) * size * out
    saved = (
        Saved("query, key, value", size * (queries + keys + values), modules, offload="core_attn"),
        Saved("softmax statistics", statistics, ("core_attn",)),
        Saved("probabilities", probabilities, ("core_attn",)),
        Saved("output before exchange", exchanged, offload="core_attn"),
    )
    # Backward: gradients of output, query, key and value; flash kernels sum the query's in fp32. Ring exchanges hold
    # two buffers of keys and values and of their gradients; gathered ones hold the whole sequence's.
    ring = shard.value("cp_comm.p2p") * (shard.cp > 1) * 4.0 * size * (keys + values)
    whole = shard.value("cp_comm.allgather") * (shard.cp - 1.0) * 2.0 * size * (keys + values)
    swapped = shard.value("cp_comm.a2a") * (shard.cp > 1) * size * (queries + keys + values + out)
    backward = size * (out + queries + keys + values) + flash * 4.0 * queries + (1.0 - flash) * 2.0 * size * scores
    return Step("core_attention", saved, backward + ring + whole + swapped)


def projection_step(shard: Shard, out: Array, hidden: int) -> Step:
    """The output projection: its input is attention's output, which both keep as one tensor unless it is quantised."""
    size = element_bytes(shard)
    quantized = shard.value("low_precision") * gemm_bytes(shard) * out
    saved = (
        Saved("attention output", size * out + quantized, offload="attn_proj"),
        Saved("dropout mask", shard.value("dropout") * shard.sequence_tokens * hidden),
    )
    backward = size * out + gathered(shard, hidden) + quantized_gradient(shard, shard.tokens * hidden)
    return Step("linear_proj", saved, backward)
