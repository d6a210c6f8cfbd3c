"""The columns of a candidate table: one flat name per value of a plan that the estimator reads."""

from __future__ import annotations

from typing import Any

# Name -> the value a plan has when it says nothing. The plan document (plan.py) maps its keys onto these names; the
# estimator reads nothing else about a candidate. None means "the model's or the framework's own".
DEFAULTS: dict[str, Any] = {
    "gpus": 8,
    "gpus_per_node": 8,
    "sequence_length": 4096,
    "micro_batch_size": 1,
    "global_batch_size": 8,
    "tp": 1,
    "sp": None,  # sequence parallelism; None: on where tp > 1
    "pp": 1,
    "vpp": 1,
    "cp": 1,
    "ep": 1,
    "etp": 1,
    "cp_comm": "p2p",  # p2p | a2a | allgather
    "pipeline_layout": None,
    "schedule": "1f1b",  # 1f1b (interleaved where vpp > 1) | zero_bubble | dualpipe
    "precision": "bf16",
    "optimizer": "adam",
    "sharding": 1,
    "state_dtype": "fp32",
    "gradient_dtype": "fp32",
    "offload_fraction": 0.0,
    "recompute": "none",  # none | selective | full
    "recompute_modules": (),
    "recompute_method": None,  # uniform | block; None: uniform over all layers, block where recompute_layers is given
    "recompute_layers": None,
    "offload_modules": (),  # fine-grained activation offloading
    "activation_offload_fraction": 1.0,
    "top_k": None,
    "dispatcher": "alltoall",
    "capacity_factor": None,
    "load_imbalance": 1.0,
    "mtp_layers": None,
    "fused_cross_entropy": True,
    "fused_gradient_accumulation": True,
    "flash_attention": True,
    "cuda_graphs": False,
    "dropout": False,  # attention and residual dropout: their masks are kept for backward
    "framework": "megatron",
    "overlap_grad_reduce": True,
    "overlap_param_gather": True,
    "overlap_tp": False,
    "overlap_ep": False,
}
