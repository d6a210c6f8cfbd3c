"""Models, a machine and a pricer in closed form, for tests of the search that must not depend on the estimator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from moeplan.estimator.columns import DEFAULTS
from moeplan.estimator.machine import Machine
from moeplan.estimator.table import Table
from moeplan.model.architecture import Architecture, Layer
from moeplan.operators.attention import Attention, LatentAttention
from moeplan.operators.embedding import Embedding, Head, TokenPredictionProjection
from moeplan.operators.mlp import DenseMLP
from moeplan.operators.moe import MoE
from moeplan.operators.norm import Norm
from moeplan.search.request import SearchRequest
from moeplan.search.space import load_space


def mixtral() -> Architecture:
    """Mixtral 8x7B's shapes: 32 equal MoE layers, 32 heads, 8 key/value heads, 8 experts."""
    hidden = 4096
    layer = Layer((Norm(hidden), Attention(hidden, 32, 8, 128, 128), Norm(hidden), MoE(hidden, 8, 2, 14336)))
    return Architecture(
        "mixtral-8x7b", "mixtral", Embedding(32000, hidden), (layer,) * 32, Norm(hidden), Head(32000, hidden),
        max_sequence_length=32768,
    )  # fmt: skip


def deepseek() -> Architecture:
    """DeepSeek-V3's shapes: latent attention, 3 dense and 58 MoE layers, 256 experts, one shared, one MTP layer."""
    hidden = 7168
    attention = LatentAttention(hidden, 128, 1536, 512, 128, 64, 128)
    dense = Layer((Norm(hidden), attention, Norm(hidden), DenseMLP(hidden, 18432)))
    shared = DenseMLP(hidden, 2048, component="shared_experts")
    moe = Layer((Norm(hidden), attention, Norm(hidden), MoE(hidden, 256, 8, 2048, shared=shared)))
    mtp = Layer((TokenPredictionProjection(hidden), *moe.operators))
    return Architecture(
        "deepseek-v3", "deepseek_v3", Embedding(129280, hidden), (dense,) * 3 + (moe,) * 58, Norm(hidden),
        Head(129280, hidden), mtp, 1, 163840,
    )  # fmt: skip


def dense() -> Architecture:
    """Llama 3 8B's shapes: no experts."""
    hidden = 4096
    layer = Layer((Norm(hidden), Attention(hidden, 32, 8, 128, 128), Norm(hidden), DenseMLP(hidden, 14336)))
    return Architecture(
        "llama-3-8b", "llama", Embedding(128256, hidden), (layer,) * 32, Norm(hidden), Head(128256, hidden),
        max_sequence_length=8192,
    )  # fmt: skip


def h100(**changes: Any) -> Machine:
    """An H100 SXM; changes replace fields."""
    fields: dict[str, Any] = {
        "name": "h100-sxm-80gb",
        "generation": "hopper",
        "compute_capability": 90,
        "usable_gib": 79.1,
        "peak_tflops": {"fp32": 67.0, "tf32": 494.7, "fp16": 989.4, "bf16": 989.4, "fp8": 1978.9},
        "hbm_gb_per_s": 3350.0,
        "sms": 132,
        "nvlink_domain": 8,
        "nvlink_gb_per_s": 450.0,
        "pcie_gb_per_s": 55.0,
        "nic_gb_per_s": 50.0,
        "gpus_per_node": 8,
        "usd_per_hour": 2.5,
    }
    return Machine(**{**fields, **changes})


@dataclass
class ToyPrices:
    """The prices that a search reads."""

    fits: np.ndarray
    headroom_bytes: np.ndarray
    device_bytes: np.ndarray
    tokens_per_s: np.ndarray
    step_s: np.ndarray


def toy_prices(table: Table, memory_gib: float = 78.0) -> ToyPrices:
    """A pricer whose shape is that of the real one: sharding saves memory and costs time, bubbles, recompute."""
    gpus, tp, pp, cp, ep, etp = (table[name] for name in ("gpus", "tp", "pp", "cp", "ep", "etp"))
    size, vpp = table["micro_batch_size"], table["vpp"]
    levels = table.columns["recompute"]
    kept = np.take(
        np.array([{"none": 1.0, "selective": 0.7, "full": 0.1}[level] for level in levels.levels]), levels.codes
    )
    redone = 1.3 - 0.3 * kept
    micro_batches = table["global_batch_size"] * tp * pp * cp / (gpus * size)
    states = 90e9 / (pp * ep * etp) + 6e9 / (pp * tp) + 540e9 / gpus
    activations = 2.2e9 * size * 32 / (tp * cp) * kept / 8 * (1 + (pp - 1) / (pp * vpp))
    device = states + activations + 4e9
    slower = 1 + 0.08 * np.log2(tp) + 0.04 * np.log2(cp) + 0.03 * np.log2(ep) + 0.06 * np.log2(etp)
    step = redone * slower * (1 + (pp - 1) / (vpp * micro_batches)) / size**0.1 * 1e4 / gpus
    tokens = table["global_batch_size"] * table["sequence_length"] / step
    headroom = memory_gib * 2**30 - device
    return ToyPrices(headroom >= 0, headroom, device, tokens, step)


def request(
    architecture: Architecture | None = None, gpus: int = 64, space: Any = "quick", **changes: Any
) -> SearchRequest:
    """A search request with the toy pricer."""
    base = {**DEFAULTS, "gpus": gpus, "global_batch_size": 8 * gpus, **changes.pop("base", {})}
    return SearchRequest(
        architecture=architecture or mixtral(),
        machine=changes.pop("machine", h100()),
        base=base,
        space=load_space(space),
        pricer=changes.pop("pricer", toy_prices),
        **changes,
    )
