"""The machine in plain numbers, as the estimator reads it. ``hardware.py`` fills it from a GPU file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """One GPU type and the links around it. GB and TFLOPS are decimal, GiB is 2^30.

    Attributes:
        name: Catalog name.
        generation: Micro-architecture (volta, turing, ampere, ada, hopper, blackwell, cdna2, cdna3, cdna4, ...).
        compute_capability: CUDA compute capability times ten (90 for Hopper), 0 where there is none.
        usable_gib: Memory as the driver reports it.
        peak_tflops: Dense peak by precision (fp32, tf32, fp16, bf16, fp8, mxfp8, nvfp4); absent where unsupported.
        hbm_gb_per_s: Memory bandwidth.
        sms: Streaming multiprocessors (compute units).
        nvlink_domain: GPUs that the fast link connects (8, 72; 1 for none).
        nvlink_gb_per_s: Fast link, per GPU and direction; 0 for none.
        pcie_gb_per_s: PCIe, per GPU and direction.
        host_gb_per_s: Link to the host's memory, per GPU and direction, where it is not PCIe (NVLink-C2C); else 0.
        nic_gb_per_s: Network, per GPU and direction.
        gpus_per_node: GPUs in one host.
        usd_per_hour: Rental price of one GPU, middle of the catalog's range; NaN when unknown.
        board_watts: Power limit of the board, which bounds sustained clocks; NaN when unknown.
    """

    name: str
    generation: str
    compute_capability: int
    usable_gib: float
    peak_tflops: Mapping[str, float]
    hbm_gb_per_s: float
    sms: int
    nvlink_domain: int
    nvlink_gb_per_s: float
    pcie_gb_per_s: float
    nic_gb_per_s: float
    gpus_per_node: int
    usd_per_hour: float
    host_gb_per_s: float = 0.0
    board_watts: float = math.nan

    @property
    def superchip(self) -> bool:
        """Whether GPUs share a module with an Arm host, as in racks of 72 (whose NVLink reaches beyond a node's 8)."""
        return self.nvlink_domain > 8
