"""The recurrent mixers, one function each: shapes as the model's own code in transformers 5.23 declares them.

FLOPs of the recurrences follow Megatron-LM (``megatron/training/training.py``, ``mamba_layer_flops`` and the gated
delta net of ``num_floating_point_operations``): two per multiply-add, forward pass.
"""

from __future__ import annotations

from moeplan.operators.mixer import Mixer, MixerVector, Projection


def _biases(*projections: Projection) -> tuple[MixerVector, ...]:
    return tuple(MixerVector(f"{p.name}.bias", p.rows, cut=p.cut == "rows") for p in projections)


def mamba(
    hidden: int,
    inner: int,
    state: int,
    conv: int,
    rank: int,
    *,
    conv_bias: bool = True,
    bias: bool = False,
    norms: bool = False,
) -> Mixer:
    """Mamba-1 (arXiv:2312.00752); ``norms`` adds Jamba's norms on the step, B and C.

    Args:
        hidden: Width of the residual stream.
        inner: Channels of the recurrence.
        state: State size of a channel.
        conv: Taps of the causal convolution.
        rank: Rank of the time-step projection.
        conv_bias: The convolution has a bias.
        bias: The input and output projections have biases.
        norms: RMSNorms over the time step, B and C.
    """
    in_proj = Projection("in_proj", 2 * inner, hidden)
    out_proj = Projection("out_proj", hidden, inner, "columns")
    vectors = [
        MixerVector("conv1d.weight", inner * conv),
        MixerVector("dt_proj.bias", inner),
        MixerVector("A_log", inner * state),
        MixerVector("D", inner),
    ]
    if conv_bias:
        vectors.append(MixerVector("conv1d.bias", inner))
    if norms:
        vectors.append(MixerVector("norms", rank + 2 * state, cut=False, component="norms"))
    return Mixer(
        kind="mamba",
        hidden=hidden,
        projections=(
            in_proj,
            Projection("x_proj", rank + 2 * state, inner, "columns"),
            Projection("dt_proj", inner, rank),
            out_proj,
        ),
        vectors=(*vectors, *(_biases(in_proj, out_proj) if bias else ())),
        heads=inner,
        inner=inner,
        scan_flops=2.0 * inner * conv + 7.0 * inner * state,
        kept=4 * inner + rank + 2 * state,
    )


def mamba2(
    hidden: int,
    heads: int,
    head_dim: int,
    state: int,
    groups: int,
    conv: int,
    *,
    conv_bias: bool = True,
    bias: bool = False,
    gated_norm: bool = True,
) -> Mixer:
    """Mamba-2 (arXiv:2405.21060): one input projection for gate, x, B, C and the step.

    Args:
        hidden: Width of the residual stream.
        heads: Heads of the recurrence.
        head_dim: Channels of a head.
        state: State size.
        groups: Groups that share B and C.
        conv: Taps of the causal convolution.
        conv_bias: The convolution has a bias.
        bias: The projections have biases.
        gated_norm: An RMSNorm before the output projection.
    """
    inner = heads * head_dim
    mixed = inner + 2 * groups * state
    in_proj = Projection("in_proj", inner + mixed + heads, hidden)
    out_proj = Projection("out_proj", hidden, inner, "columns")
    vectors = [
        MixerVector("conv1d.weight", mixed * conv),
        MixerVector("dt_bias", heads),
        MixerVector("A_log", heads),
        MixerVector("D", heads),
    ]
    if conv_bias:
        vectors.append(MixerVector("conv1d.bias", mixed))
    if gated_norm:
        vectors.append(MixerVector("norm", inner, component="norms"))
    return Mixer(
        kind="mamba2",
        hidden=hidden,
        projections=(in_proj, out_proj),
        vectors=(*vectors, *(_biases(in_proj, out_proj) if bias else ())),
        heads=heads,
        inner=inner,
        # Megatron-LM's mamba_layer_flops counts the scan as 7 * inner * state and leaves the convolution out.
        scan_flops=7.0 * inner * state,
        kept=2 * inner + mixed + heads,
    )


def gated_delta_net(
    hidden: int, key_heads: int, value_heads: int, key_dim: int, value_dim: int, conv: int, *, gate: bool = True
) -> Mixer:
    """Gated DeltaNet (arXiv:2412.06464) as Qwen3-Next has it.

    Args:
        hidden: Width of the residual stream.
        key_heads: Query and key heads.
        value_heads: Value heads.
        key_dim: Width of a key head.
        value_dim: Width of a value head.
        conv: Taps of the causal convolution over queries, keys and values.
        gate: The input projection also yields an output gate.
    """
    keys, values = key_heads * key_dim, value_heads * value_dim
    mixed = 2 * keys + values
    return Mixer(
        kind="gated_delta_net",
        hidden=hidden,
        projections=(
            Projection("in_proj_qkvz", mixed + (values if gate else 0), hidden),
            Projection("in_proj_ba", 2 * value_heads, hidden),
            Projection("out_proj", hidden, values, "columns"),
        ),
        vectors=(
            MixerVector("conv1d.weight", mixed * conv),
            MixerVector("dt_bias", value_heads),
            MixerVector("A_log", value_heads),
            MixerVector("norm", value_dim, cut=False, component="norms"),
        ),
        heads=key_heads,
        inner=values,
        # Convolution, then four products with the state per value head: K K^T, V K^T, the update, and S q.
        scan_flops=2.0 * conv * mixed + 2.0 * 4.0 * value_heads * value_dim * key_dim,
        kept=2 * mixed + 2 * values + 2 * value_heads,
    )


def kimi_delta(hidden: int, heads: int, head_dim: int, conv: int, *, low_rank_gates: bool = True) -> Mixer:
    """Kimi delta attention (arXiv:2510.26692): a gated delta net whose decay is per channel.

    Args:
        hidden: Width of the residual stream.
        heads: Heads of queries, keys and values alike.
        head_dim: Width of a head.
        conv: Taps of the causal convolution over queries, keys and values.
        low_rank_gates: The forget and output gates go through ``head_dim`` features (Kimi); otherwise they are full
            matrices (Ling).
    """
    inner = heads * head_dim
    gates = [
        (
            Projection(f"{name}_a_proj", head_dim, hidden, "none"),
            Projection(f"{name}_b_proj", inner, head_dim),
        )
        if low_rank_gates
        else (Projection(f"{name}_proj", inner, hidden),)
        for name in ("f", "g")
    ]
    return Mixer(
        kind="kimi_delta",
        hidden=hidden,
        projections=(
            Projection("qkv_proj", 3 * inner, hidden),
            Projection("b_proj", heads, hidden),
            *gates[0],
            *gates[1],
            Projection("o_proj", hidden, inner, "columns"),
        ),
        vectors=(
            MixerVector("conv1d.weight", 3 * inner * conv),
            MixerVector("dt_bias", inner),
            MixerVector("A_log", heads),
            MixerVector("o_norm", head_dim, cut=False, component="norms"),
        ),
        heads=heads,
        inner=inner,
        # As in the gated delta net: four products with the state per head.
        scan_flops=2.0 * conv * 3 * inner + 2.0 * 4.0 * inner * head_dim,
        kept=6 * inner + 2 * inner + heads,
    )


def lightning(hidden: int, heads: int, head_dim: int) -> Mixer:
    """Lightning attention (arXiv:2401.04658) of MiniMax-Text-01: linear with decay, normed and gated."""
    inner = heads * head_dim
    return Mixer(
        kind="lightning",
        hidden=hidden,
        projections=(
            Projection("qkv_proj", 3 * inner, hidden),
            Projection("output_gate", inner, hidden),
            Projection("out_proj", hidden, inner, "columns"),
        ),
        vectors=(MixerVector("norm", inner, component="norms"),),
        heads=heads,
        inner=inner,
        # The state takes one outer product and gives one product with the query, per head.
        scan_flops=2.0 * 2.0 * inner * head_dim,
        kept=5 * inner,
    )


def short_convolution(hidden: int, conv: int, *, bias: bool = False) -> Mixer:
    """LFM2's double-gated short convolution: B, C and x from one projection, C * conv(B * x) into the output."""
    in_proj = Projection("in_proj", 3 * hidden, hidden)
    out_proj = Projection("out_proj", hidden, hidden, "columns")
    vectors = [MixerVector("conv.weight", hidden * conv)]
    if bias:
        vectors += [MixerVector("conv.bias", hidden), *_biases(in_proj, out_proj)]
    return Mixer(
        kind="short_convolution",
        hidden=hidden,
        projections=(in_proj, out_proj),
        vectors=tuple(vectors),
        heads=hidden,
        inner=hidden,
        scan_flops=2.0 * hidden * conv + 2.0 * hidden,
        kept=4 * hidden,
    )
