"""A model's experts and their router in Megatron-LM's flags."""

from __future__ import annotations

from moeplan.launch.megatron_words import ModelFlags, number, pattern, refuse
from moeplan.model.architecture import Architecture
from moeplan.model.details import ModelDetails
from moeplan.operators.moe import MoE


def expert_flags(architecture: Architecture, top_k: int | None, found: ModelFlags) -> None:
    """Add the flags of the MoE block, if the model has one; ``top_k`` None: the model's own."""
    blocks = {layer.moe for layer in architecture.layers if layer.moe is not None}
    if not blocks:
        return
    if len(blocks) > 1:
        refuse(found, "gives all MoE layers the same experts, the model does not")
    moe, flags, details = next(iter(blocks)), found.flags, architecture.details
    flags["--num-experts"] = (str(moe.experts),)
    placed = [int(layer.moe is not None) for layer in architecture.layers]
    if 0 in placed:
        flags["--moe-layer-freq"] = (pattern(placed),)
    flags["--moe-ffn-hidden-size"] = (str(moe.expert_ffn),)
    if moe.shared is not None:
        flags["--moe-shared-expert-intermediate-size"] = (str(moe.shared.ffn),)
        if moe.shared_gate:
            flags["--moe-shared-expert-gate"] = ()
    if moe.expert_input is not None and moe.expert_input != moe.hidden:
        flags["--moe-latent-size"] = (str(moe.expert_input),)
    if moe.identity_experts:
        refuse(found, "has no experts without parameters")
    if moe.latent_bias or moe.output_bias or moe.router_input is not None:
        refuse(found, "has no flags for this MoE block's biases or router")
    chosen = top_k or moe.top_k
    flags["--moe-router-topk"] = (str(chosen),)
    _router(moe, details, chosen, found)


def _router(moe: MoE, details: ModelDetails, top_k: int, found: ModelFlags) -> None:
    flags = found.flags
    score = details.score_function if details.score_function != "softmax" else moe.score_function
    flags["--moe-router-score-function"] = (score,)
    # Softmax over all experts before the choice, not renormalised, is pre-softmax; renormalised, it equals softmax over
    # the chosen. With one expert per token only the former has a gradient (transformer_config.py).
    if score == "softmax" and (details.normalize_scores is False or top_k == 1):
        flags["--moe-router-pre-softmax"] = ()
    if details.router_groups and details.router_groups > 1 and details.router_group_top_k:
        flags["--moe-router-num-groups"] = (str(details.router_groups),)
        flags["--moe-router-group-topk"] = (str(details.router_group_top_k),)
    if details.routed_scaling not in (None, 1.0):
        flags["--moe-router-topk-scaling-factor"] = (number(details.routed_scaling or 1.0),)
    flags["--moe-router-dtype"] = ("fp32",)
    if (details.correction_bias or moe.correction_bias) and score != "softmax":
        flags["--moe-router-enable-expert-bias"] = ()
        flags["--moe-router-bias-update-rate"] = ("1e-3",)  # DeepSeek-V3 (arXiv:2412.19437, section 4.2)
        flags["--moe-router-load-balancing-type"] = ("seq_aux_loss",)
        coefficient = 1e-4 if details.aux_loss_coefficient is None else details.aux_loss_coefficient
    else:
        if details.correction_bias or moe.correction_bias:
            found.notes.append(
                "Megatron-Core balances softmax routers by a loss only: the model's expert bias is left out"
            )
        flags["--moe-router-load-balancing-type"] = ("aux_loss",)
        coefficient = 1e-3 if details.aux_loss_coefficient is None else details.aux_loss_coefficient
    flags["--moe-aux-loss-coeff"] = (number(coefficient),)
