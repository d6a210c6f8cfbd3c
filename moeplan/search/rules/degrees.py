"""Degrees against the world and against the model's widths."""

from __future__ import annotations

import numpy as np

from moeplan.search.facts import Facts
from moeplan.search.rules.base import Finding, View, listed, rule, undivided


@rule("gpus tp pp cp", "tp pp cp", "Megatron-LM arguments.py: world_size % (tp * pp * cp) == 0")
def attention_degrees_divide_gpus(facts: Facts, view: View) -> Finding:
    """tp*pp*cp divides the GPUs."""
    return Finding(
        view.dp % 1 != 0,
        lambda row: (
            f"tp*pp*cp = {row['tp'] * row['pp'] * row['cp']} does not divide {row['gpus']} GPUs, "
            "so no whole number of data-parallel replicas is left"
        ),
    )


@rule("gpus pp ep etp", "ep etp pp", "Megatron-Core parallel_state.py: world_size % (etp * ep * pp) == 0")
def expert_degrees_divide_gpus(facts: Facts, view: View) -> Finding:
    """etp*ep*pp divides the GPUs: the expert grid factorizes the same gpus/pp ranks as the attention grid."""
    return Finding(
        view.edp % 1 != 0,
        lambda row: (
            f"etp*ep*pp = {row['etp'] * row['ep'] * row['pp']} does not divide {row['gpus']} GPUs, "
            "so the expert grid cannot be built"
        ),
    )


@rule("gpus gpus_per_node", "gpus", "whole hosts: a job gets all GPUs of a host, or runs inside one")
def gpus_fill_nodes(facts: Facts, view: View) -> Finding:
    """Beyond one host the GPUs come in whole hosts."""
    gpus, node = view["gpus"], view["gpus_per_node"]
    return Finding(
        (gpus > node) & (gpus % node != 0),
        lambda row: f"{row['gpus']} GPUs are not a whole number of hosts of {row['gpus_per_node']}",
        lambda row: (
            f"use {row['gpus'] // row['gpus_per_node'] * row['gpus_per_node']} or "
            f"{(row['gpus'] // row['gpus_per_node'] + 1) * row['gpus_per_node']} GPUs"
        ),
    )


@rule("tp", "tp", "Megatron-Core transformer_config.py: num_attention_heads % tp == 0")
def heads_divide_by_tp(facts: Facts, view: View) -> Finding:
    """tp divides the attention heads."""
    return Finding(
        undivided(facts.heads, view["tp"]),
        lambda row: f"{listed(facts.heads)} attention heads do not divide over tp={row['tp']}",
    )


@rule("tp", "tp", "Megatron-Core transformer_config.py: kv_groups % tp == 0 or tp % kv_groups == 0")
def kv_heads_match_tp(facts: Facts, view: View) -> Finding:
    """tp divides the key/value heads, or they divide tp (each head is then held by several ranks)."""
    tp = view["tp"]
    broken = np.zeros(tp.shape, np.bool_)
    for groups in facts.kv_heads:
        broken |= (groups % tp != 0) & (tp % groups != 0)
    return Finding(
        broken,
        lambda row: f"{listed(facts.kv_heads)} key/value heads and tp={row['tp']}: neither divides the other",
    )


@rule("tp", "tp", "Megatron-Core tensor_parallel/layers.py: divide(output_size, tp)")
def widths_divide_by_tp(facts: Facts, view: View) -> Finding:
    """tp divides the hidden width and the dense and shared feed-forward widths."""
    sizes = (facts.hidden, *facts.dense_ffn)
    return Finding(
        undivided(sizes, view["tp"]),
        lambda row: (
            f"a width of {next(s for s in sizes if s % row['tp'])} (hidden or feed-forward) does not divide "
            f"over tp={row['tp']}"
        ),
    )


@rule("etp", "etp", "Megatron-Core tensor_parallel/layers.py: divide(moe_ffn_hidden_size, etp)")
def expert_width_divides_by_etp(facts: Facts, view: View) -> Finding:
    """etp divides the experts' inner width."""
    return Finding(
        undivided(facts.expert_ffn, view["etp"]),
        lambda row: f"experts of inner width {listed(facts.expert_ffn)} do not divide over etp={row['etp']}",
    )


@rule("tp sp", "sp", "Megatron-Core model_parallel_config.py and moe_layer.py: MoE with tp > 1 needs sequence parallel")
def moe_with_tp_needs_sp(facts: Facts, view: View) -> Finding:
    """MoE layers with tp > 1 train only with sequence parallelism."""
    return Finding(
        (view["tp"] > 1) & ~view.sequence_parallel & facts.is_moe,
        lambda row: f"MoE layers with tp={row['tp']} fail at the first forward pass without sequence parallelism",
        lambda row: "leave parallel.sp unset, or set it to true",
    )


@rule("tp sp", "sp", "Megatron-Core model_parallel_config.py: sequence parallelism requires tp > 1")
def sp_needs_tp(facts: Facts, view: View) -> Finding:
    """Sequence parallelism cuts over the tp group, so it needs one."""
    return Finding(
        (view["tp"] == 1) & view.test("sp", lambda level: level is True),
        lambda row: "sequence parallelism without tensor parallelism has no group to cut over",
        lambda row: "leave parallel.sp unset, or use tp of 2 or more",
    )


@rule("cp cp_comm tp", "cp_comm cp tp", "Transformer Engine's all-to-all (Ulysses) context parallelism cuts over heads")
def cp_a2a_heads(facts: Facts, view: View) -> Finding:
    """All-to-all context parallelism cuts the heads over tp*cp."""
    kv_heads = facts.kv_heads or facts.heads
    asked = view.equals("cp_comm", "a2a") & (view["cp"] > 1)
    degree = view["tp"] * view["cp"]
    return Finding(
        asked & undivided((*facts.heads, *kv_heads), degree),
        lambda row: (
            f"a2a context parallelism cuts {listed(facts.heads)} heads ({listed(kv_heads)} key/value) over "
            f"tp*cp = {row['tp'] * row['cp']}, which does not divide them"
        ),
    )


@rule("tp sp overlap_tp", "overlap_tp", "Megatron-LM arguments.py: tp_comm_overlap requires sequence parallelism")
def tp_overlap_needs_sp(facts: Facts, view: View) -> Finding:
    """Overlapped tensor-parallel collectives are those of sequence parallelism. (Without tp the flag is moot.)"""
    return Finding(
        view.equals("overlap_tp", True) & (view["tp"] > 1) & ~view.sequence_parallel,
        lambda row: "overlap.tp hides sequence parallelism's collectives, which this plan does not have",
        lambda row: "set overlap.tp: false, or parallel.sp: true",
    )
