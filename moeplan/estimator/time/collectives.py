"""How long communication takes: latency plus bytes over the links that a group really spans.

Ranks are laid out as Megatron lays them (tp-cp-ep-dp-pp, innermost first), so a group is ``size`` ranks ``stride``
apart and ``local`` of them share an NVLink domain. Rings over several domains use every local member's NIC at once
(NCCL opens one ring per NIC), so their bus bandwidth is the smaller of NVLink's and ``local`` NICs'. Pairwise exchanges
send what stays in the domain over NVLink and the rest over the rank's own NIC, both at the same time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from moeplan.estimator.machine import Machine
from moeplan.estimator.time.coefficients import coefficients
from moeplan.operators.base import Array


@dataclass(frozen=True, slots=True)
class Span:
    """A communication group: ``size`` ranks, ``local`` of them in one NVLink domain; arrays of one shape."""

    size: Array
    local: Array


@dataclass(frozen=True, slots=True)
class Limit:
    """Group-limited routing: a token's experts come from ``chosen`` of ``groups`` equal groups."""

    groups: int
    chosen: int


@dataclass(frozen=True)
class Links:
    """Links of one machine, with the share of their peak that software reaches.

    Attributes:
        machine: The GPU and its links.
        factors: Calibration factors ``nvlink`` and ``nic`` on bandwidth.
    """

    machine: Machine
    factors: Mapping[str, float]

    @property
    def domain(self) -> float:
        """GPUs that the fast link connects, as jobs use them: a power of two (64 of the 72 of an NVL72 rack)."""
        size = self.machine.nvlink_domain if self.machine.nvlink_gb_per_s > 0 else self.machine.gpus_per_node
        return float(2 ** int(np.log2(max(size, 1))))

    def span(self, size: Array, stride: Array | float) -> Span:
        """The group of ``size`` ranks ``stride`` apart."""
        return Span(size, np.minimum(np.maximum(np.floor(self.domain / stride), 1.0), size))

    def fast(self, kind: str) -> float:
        """Bytes per second and direction of NVLink (PCIe where there is none) in one kind of exchange."""
        peak = self.machine.nvlink_gb_per_s or self.machine.pcie_gb_per_s
        shares = coefficients()["link_share"]
        link = "nvlink" if self.machine.nvlink_gb_per_s > 0 else "pcie"
        # Measured shares fall with the link's speed; a generation of its own overrides the rest.
        share = shares.get(f"{link} {self.machine.generation}", {}).get(kind, shares[link][kind])
        return float(peak) * 1e9 * float(share) * float(self.factors.get("nvlink", 1.0))

    def slow(self, kind: str) -> float:
        """Bytes per second and direction of one GPU's NIC in one kind of exchange."""
        share = coefficients()["link_share"]["nic"][kind]
        return self.machine.nic_gb_per_s * 1e9 * float(share) * float(self.factors.get("nic", 1.0))

    @property
    def host_rate(self) -> float:
        """Bytes per second and direction between a GPU and its host's memory."""
        share = coefficients()["link_share"]["pcie"]["host"]
        return (self.machine.host_gb_per_s or self.machine.pcie_gb_per_s) * 1e9 * float(share)

    def latency_s(self, span: Span) -> Array:
        """Start-up of a collective: a fixed part and one per doubling of the ranks on each level."""
        data = coefficients()["latency_us"]
        across = span.size / span.local
        inside = data["fixed"] + data["nvlink_step"] * np.log2(np.maximum(span.local, 1.0))
        total: Array = (inside + (across > 1) * data["nic_step"] * np.log2(np.maximum(across, 2.0))) * 1e-6
        return total

    def ring_s(self, span: Span, payload: Array, passes: float = 1.0) -> Array:
        """All-gather or reduce-scatter of ``payload`` bytes in all; ``passes`` is 2 for an all-reduce."""
        inside = self.fast("all_reduce" if passes > 1 else "ring")
        bus = np.where(span.local < span.size, np.minimum(inside, self.slow("ring") * span.local), inside)
        moved = passes * payload * (span.size - 1) / span.size
        return np.where((span.size > 1) & (payload > 0), moved / bus + passes * self.latency_s(span), 0.0)

    def all_to_all_s(self, span: Span, payload: Array) -> Array:
        """Pairwise exchange: every rank holds ``payload`` bytes and sends an equal part to each rank of the group."""
        inside = payload * (span.local - 1) / span.size / self.fast("all_to_all")
        outside = payload * (span.size - span.local) / span.size / self.slow("all_to_all")
        moved = np.maximum(inside, outside)
        return np.where((span.size > 1) & (payload > 0), moved + self.latency_s(span), 0.0)

    def neighbour_s(self, span: Span, payload: Array) -> Array:
        """One message of ``payload`` bytes to the next rank of the group; the slowest link sets the pace of a ring."""
        rate = np.where(span.local < span.size, self.slow("point_to_point"), self.fast("point_to_point"))
        fixed = coefficients()["latency_us"]["fixed"] * 1e-6
        return np.where((span.size > 1) & (payload > 0), payload / rate + fixed, 0.0)

    def dispatch_s(
        self,
        span: Span,
        tokens: Array,
        copies: Array,
        row_bytes: Array,
        library: str,
        limit: Limit | None = None,
        combine: bool = False,
    ) -> Array:
        """DeepEP's or HybridEP's exchange, which sends a token once to each domain and once to each rank in it.

        Args:
            span: The expert-parallel group.
            tokens: Tokens that a rank sends.
            copies: Experts per token.
            row_bytes: Bytes of one token.
            library: ``deepep`` or ``hybridep``.
            limit: Groups of experts and how many of them a token may use, where routing is limited so.
            combine: The way back, which adds up what it receives and is slower across the network.
        """
        domains = np.maximum(span.size / span.local, 1.0)
        outside = reached(domains, copies, limit) * (domains - 1) / domains
        inside = reached(span.size, copies, limit)
        network = self.slow(library) * (coefficients()["link_share"]["nic"]["combine"] if combine else 1.0)
        moved = np.maximum(inside / self.fast(library), outside / network)
        fixed = self.latency_s(span) + coefficients()["latency_us"][library] * 1e-6
        return np.where((span.size > 1) & (tokens > 0), tokens * row_bytes * moved + fixed, 0.0)


def distinct(boxes: Array, draws: Array) -> Array:
    """Expected number of different boxes that ``draws`` independent uniform choices hit."""
    return np.asarray(boxes * (1 - (1 - 1 / np.maximum(boxes, 1.0)) ** draws))


def reached(places: Array, copies: Array, limit: Limit | None) -> Array:
    """Expected number of ``places`` (ranks or domains of ranks) that a token's ``copies`` go to.

    Experts lie over the places in order, so a group of experts fills ``places / groups`` of them. Without a limit the
    choices are uniform; with one, a token uses ``chosen`` of the ``groups`` (arXiv:2412.19437, section 2.1.2) and
    spreads its copies evenly over those.
    """
    if limit is None or limit.chosen >= limit.groups:
        return distinct(places, copies)
    # Places of at least one whole group: drawn without replacement from the groups.
    whole = np.maximum(limit.groups / places, 1.0)
    missed = np.ones_like(whole)
    for draw in range(limit.chosen):
        missed = missed * np.maximum(limit.groups - whole - draw, 0.0) / (limit.groups - draw)
    coarse = places * (1 - missed)
    inner = places / limit.groups
    fine = limit.chosen * distinct(inner, copies / limit.chosen)
    return np.where(places > limit.groups, fine, coarse)
