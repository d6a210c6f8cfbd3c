"""Activation recomputation, activation offloading and CUDA graphs."""

from __future__ import annotations

from moeplan.search.facts import Facts
from moeplan.search.rules.base import Finding, View, rule

_CONFIG = "Megatron-Core transformer_config.py"


def _absent(facts: Facts) -> dict[str, str]:
    """Recompute modules that the model lacks, with what it lacks."""
    lacking: dict[str, str] = {}
    if not facts.is_moe:
        lacking |= dict.fromkeys(("moe", "moe_act", "shared_experts"), "MoE layers")
    elif not facts.shared_experts:
        lacking["shared_experts"] = "shared experts"
    if not facts.latent:
        lacking["mla_up_proj"] = "latent attention"
    if not facts.dense_layers:
        lacking["mlp"] = "dense layers"
    return lacking


@rule("recompute recompute_modules", "recompute_modules", f"{_CONFIG}: recompute_modules")
def recompute_modules_exist(facts: Facts, view: View) -> Finding:
    """Every recomputed module is part of the model."""
    lacking = _absent(facts)
    return Finding(
        view.equals("recompute", "selective")
        & view.test("recompute_modules", lambda modules: any(module in lacking for module in modules)),
        lambda row: "; ".join(
            f"{facts.model} has no {lacking[module]} for recompute module {module}"
            for module in row["recompute_modules"]
            if module in lacking
        ),
        lambda row: (
            "use modules from "
            + ", ".join(
                module
                for module in ("core_attn", "moe_act", "layernorm", "mla_up_proj", "mlp", "moe", "shared_experts")
                if module not in lacking
            )
        ),
    )


@rule("recompute recompute_modules", "recompute_modules", f"{_CONFIG}: recompute_granularity")
def recompute_modules_need_selective(facts: Facts, view: View) -> Finding:
    """Modules belong to selective recompute, and only to it."""
    named = view.test("recompute_modules", bool)
    return Finding(
        named != view.equals("recompute", "selective"),
        lambda row: (
            "recompute.modules needs granularity: selective"
            if row["recompute_modules"]
            else "selective recompute names no modules"
        ),
        lambda row: "set recompute.granularity: selective with modules, or leave both out",
    )


@rule(
    "recompute recompute_method recompute_layers",
    "recompute_layers",
    f"{_CONFIG}: full needs method and num_layers, selective forbids both",
)
def recompute_layers_need_full(facts: Facts, view: View) -> Finding:
    """Method and layers belong to full recompute."""
    named = ~view.equals("recompute_method", None) | ~view.equals("recompute_layers", None)
    return Finding(
        named & ~view.equals("recompute", "full"),
        lambda row: f"recompute.method and layers have no meaning with granularity {row['recompute']}",
        lambda row: "set recompute.granularity: full, or leave them out",
    )


@rule("recompute cuda_graphs", "cuda_graphs recompute", f"{_CONFIG}: full recompute only with full-iteration graphs")
def graphs_without_full_recompute(facts: Facts, view: View) -> Finding:
    """Layer graphs cannot hold a fully recomputed layer."""
    return Finding(
        view.equals("cuda_graphs", True) & view.equals("recompute", "full"),
        lambda row: "per-layer CUDA graphs cannot be combined with full recompute",
        lambda row: "set kernels.cuda_graphs: false, or use selective recompute",
    )


_MOE_OFFLOADS = frozenset({"expert_fc1", "moe_act"})


@rule(
    "offload_modules recompute recompute_modules framework",
    "offload_modules",
    f"{_CONFIG}: offload_modules",
)
def offload_modules_allowed(facts: Facts, view: View) -> Finding:
    """Fine-grained activation offloading: Megatron only, parts that exist and are kept at all."""
    modules = "offload_modules"
    any_module = view.test(modules, bool)
    unpaired = view.test(modules, lambda names: "attn_proj" in names and "core_attn" not in names)
    of_experts = view.test(modules, lambda names: bool(_MOE_OFFLOADS & set(names)))
    moe_redone = view.test("recompute_modules", lambda names: "moe" in names)
    broken = (
        (any_module & ~view.equals("framework", "megatron"))
        | (any_module & view.equals("recompute", "full"))
        | unpaired
        | (of_experts & moe_redone)
        | (of_experts & (not facts.is_moe))
    )
    return Finding(
        broken,
        lambda row: (
            "activation offloading needs framework: megatron, no full recompute, core_attn beside attn_proj, "
            "and expert modules that exist and are not recomputed whole"
        ),
        lambda row: "leave activation_offload.modules empty, or meet that",
    )
