"""Mixture of experts: the expert grid, dispatchers and the overlap of expert communication."""

from __future__ import annotations

import numpy as np

from moeplan.search.facts import Facts
from moeplan.search.rules.base import Finding, View, listed, rule, undivided
from moeplan.search.rules.pipeline import chunks_per_rank, trained_mtp


@rule("ep etp", "ep etp", "Megatron-LM arguments.py: expert parallelism needs num_experts")
def expert_parallelism_needs_experts(facts: Facts, view: View) -> Finding:
    """A dense model has no experts to spread."""
    return Finding(
        ((view["ep"] > 1) | (view["etp"] > 1)) & (not facts.is_moe),
        lambda row: f"{facts.model} has no routed experts to spread over ep={row['ep']}, etp={row['etp']}",
        lambda row: "use ep=1 and etp=1",
    )


@rule("ep", "ep", "Megatron-LM arguments.py, moe_layer.py: num_experts % ep == 0")
def experts_divide_by_ep(facts: Facts, view: View) -> Finding:
    """ep divides the routed experts."""
    return Finding(
        undivided(facts.experts, view["ep"]),
        lambda row: f"{listed(facts.experts)} experts do not divide over ep={row['ep']} ranks",
    )


@rule("etp", "etp", "Megatron-Core transformer_config.py: biases in experts only with etp == 1")
def expert_bias_needs_whole_experts(facts: Facts, view: View) -> Finding:
    """Experts with biases are not cut."""
    return Finding(
        (view["etp"] > 1) & facts.expert_bias,
        lambda row: f"{facts.model}'s experts have biases, which Megatron-Core cannot cut over etp={row['etp']}",
        lambda row: "use etp=1",
    )


@rule("top_k", "top_k", "a token meets each expert at most once")
def top_k_within_experts(facts: Facts, view: View) -> Finding:
    """top_k is at most the number of experts, and needs experts."""
    most = min(facts.experts, default=0)
    return Finding(
        view["top_k"] > most,
        lambda row: f"top_k={row['top_k']} of {most} routed experts",
        lambda row: f"use 1 to {most}" if most else "leave moe.top_k unset: the model is dense",
    )


@rule("dispatcher tp ep", "dispatcher ep", "Megatron-Core token_dispatcher.py: flex with DeepEP needs tp * ep > 1")
def deepep_needs_ranks(facts: Facts, view: View) -> Finding:
    """DeepEP's kernels exchange between ranks; there must be more than one."""
    return Finding(
        view.equals("dispatcher", "deepep") & (view["tp"] * view["ep"] <= 1) & facts.is_moe,
        lambda row: "the deepep dispatcher needs tp*ep above 1",
        lambda row: "use dispatcher: alltoall, or a larger ep",
    )


# DeepEP's README asks for Ampere (SM80), Hopper (SM90) or later data-centre parts with NVLink inside the node;
# Megatron-Bridge (flex_dispatcher_backend.py) allows deepep on Ampere, Hopper, B200 and B300, hybridep also on NVL72.
_FLEX_CAPABILITIES = (80, 90, 100, 103)
_DEEPEP_DOMAIN = 8


@rule("dispatcher gpus", "dispatcher", "DeepEP README; Megatron-Bridge flex_dispatcher_backend.py")
def dispatcher_runs_on_gpu(facts: Facts, view: View) -> Finding:
    """deepep and hybridep exist for NVIDIA data-centre GPUs with NVLink."""
    machine = facts.machine
    able = machine.compute_capability in _FLEX_CAPABILITIES and machine.nvlink_domain > 1
    too_wide = machine.nvlink_domain > _DEEPEP_DOMAIN
    broken = (view.equals("dispatcher", "deepep", "hybridep") & (not able)) | (
        view.equals("dispatcher", "deepep") & too_wide
    )
    return Finding(
        broken & facts.is_moe,
        lambda row: (
            f"the {row['dispatcher']} dispatcher does not run on {machine.name}"
            + ("" if not able else f", whose NVLink domain has {machine.nvlink_domain} GPUs")
        ),
        lambda row: "use dispatcher: hybridep" if able and too_wide else "use dispatcher: alltoall",
    )


@rule("dispatcher capacity_factor", "dispatcher capacity_factor", "Megatron-Core transformer_config.py: flex + deepep")
def capacity_not_with_deepep(facts: Facts, view: View) -> Finding:
    """DeepEP is dropless."""
    return Finding(
        view.equals("dispatcher", "deepep") & ~view.equals("capacity_factor", None),
        lambda row: "the deepep dispatcher drops no tokens and refuses a capacity factor",
        lambda row: "use dispatcher: alltoall, or leave moe.capacity_factor unset",
    )


@rule(
    "overlap_ep ep pp vpp pipeline_layout dispatcher recompute recompute_modules precision mtp_layers",
    "overlap_ep",
    "Megatron-Core transformer_config.py: overlap_moe_expert_parallel_comm",
)
def ep_overlap_allowed(facts: Facts, view: View) -> Finding:
    """Overlapped expert communication has the framework's own list of needs."""
    needs = {
        "ep above 1": view["ep"] > 1,
        "vpp above 1 where pp is": (view["pp"] == 1) | (chunks_per_rank(view) > 1),
        "the alltoall, deepep or hybridep dispatcher": ~view.equals("dispatcher", "allgather"),
        "no full recompute": ~view.equals("recompute", "full"),
        "no recompute of the moe module": ~view.test("recompute_modules", lambda modules: "moe" in modules),
        "16-bit parameters": ~view.equals("precision", "fp32", "tf32"),
        "at most one multi-token-prediction layer": view.test(
            "mtp_layers", lambda declared: trained_mtp(facts, declared) <= 1
        ),
    }
    met = np.all(np.array(list(needs.values())), axis=0)
    unmet = [name for name, mask in needs.items() if not mask[:1].all()]
    return Finding(
        view.equals("overlap_ep", True) & ~met,
        lambda row: f"overlap.ep needs {', '.join(unmet)}",
        lambda row: "set overlap.ep: false, or meet that",
    )
