"""What training runs on: the GPU, its node, its links and its price, from the catalog or from a user's file."""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from moeplan.documents import explain_validation, read_mapping
from moeplan.errors import PlanError, nearest
from moeplan.estimator.machine import Machine

CATALOG = Path(__file__).parent / "catalog" / "gpus"

# Bounds catch a slip of the unit (bytes for GB): far above any machine, far below what overflows an estimate.
Quantity = Annotated[float, Field(strict=True, gt=0, le=1e6, allow_inf_nan=False)]
QuantityOrZero = Annotated[float, Field(strict=True, ge=0, le=1e6, allow_inf_nan=False)]
Count = Annotated[int, Field(strict=True, ge=1, le=100_000)]
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._+()-]*$")]


class Document(BaseModel):
    """A part of a GPU file: frozen, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Peaks(Document):
    """Dense peak TFLOPS (10^12/s) per precision, without sparsity, FP32 accumulation; absent where unsupported.

    ``fp32`` is the rate outside tensor cores.
    """

    fp32: Quantity | None = None
    tf32: Quantity | None = None
    fp16: Quantity | None = None
    bf16: Quantity | None = None
    fp8: Quantity | None = None
    mxfp8: Quantity | None = None
    nvfp4: Quantity | None = None

    @model_validator(mode="after")
    def _some(self) -> Peaks:
        if not self.model_dump(exclude_none=True):
            raise ValueError("gives no precision; give at least one, such as bf16: 989")
        return self


class PriceRange(Document):
    """Rental price of one GPU for one hour, in US dollars."""

    low: Quantity
    high: Quantity

    @model_validator(mode="after")
    def _ordered(self) -> PriceRange:
        if self.low > self.high:
            raise ValueError(f"low is {self.low:g} and high is {self.high:g}; swap them")
        return self


class GPU(Document):
    """One GPU type and the system around it.

    Attributes:
        name: Its name; in the catalog also the name of its file.
        aliases: Other names that find it.
        vendor: Who makes it.
        generation: Micro-architecture; decides which measured efficiencies are transferred to it.
        compute_capability: NVIDIA's number, as 9.0; absent elsewhere.
        sms: Streaming multiprocessors, or compute units.
        memory_gb: Nominal memory, as it is sold.
        usable_gib: Memory as the driver reports it (``torch.cuda.get_device_properties(0).total_memory / 2**30``).
        dense_peak_tflops: Peak per precision, without sparsity.
        hbm_gb_per_s: Memory bandwidth, 10^9 bytes/s.
        nvlink_domain: GPUs that the fast link (NVLink, xGMI) connects; 1 for none, 72 in an NVL72 rack.
        nvlink_gb_per_s: Fast link, per GPU and direction; 0 for none.
        pcie_gb_per_s: Link to the host, per GPU and direction.
        host_gb_per_s: Link to the host's memory, where it is not PCIe (NVLink-C2C of a superchip).
        nic_gb_per_s: Network, per GPU and direction.
        gpus_per_node: GPUs in one host.
        usd_per_hour: Price range.
        board_watts: Power limit of the board; bounds sustained clocks.
        sources: Where each figure comes from, by the name of the figure.
    """

    name: Name
    aliases: tuple[Name, ...] = ()
    vendor: Literal["nvidia", "amd", "other"] = "other"
    generation: Literal[
        "volta", "turing", "ampere", "ada", "hopper", "blackwell", "cdna2", "cdna3", "cdna4", "other"
    ] = "other"
    compute_capability: Annotated[float, Field(strict=True, ge=1, le=100, allow_inf_nan=False)] | None = None
    sms: Count
    memory_gb: Quantity | None = None
    usable_gib: Quantity
    dense_peak_tflops: Peaks
    hbm_gb_per_s: Quantity
    nvlink_domain: Count = 1
    nvlink_gb_per_s: QuantityOrZero = 0.0
    pcie_gb_per_s: Quantity
    host_gb_per_s: Quantity | None = None
    nic_gb_per_s: Quantity
    gpus_per_node: Count = 8
    usd_per_hour: PriceRange | None = None
    board_watts: Quantity | None = None
    sources: dict[str, str] = {}

    @model_validator(mode="after")
    def _consistent(self) -> GPU:
        if (self.nvlink_domain > 1) != (self.nvlink_gb_per_s > 0):
            raise ValueError(
                f"nvlink_domain is {self.nvlink_domain} and nvlink_gb_per_s is {self.nvlink_gb_per_s:g}; "
                "give both, or neither (1 and 0)"
            )
        if self.memory_gb is not None and self.usable_gib > self.memory_gb:
            raise ValueError(
                f"usable_gib is {self.usable_gib:g}, more than memory_gb ({self.memory_gb:g}); "
                "usable_gib is what the driver reports"
            )
        stray = [key for key in self.sources if key not in type(self).model_fields]
        if stray:
            raise ValueError(
                f"sources names {stray[0]!r}, which is no figure; {nearest(stray[0], type(self).model_fields)}"
            )
        return self

    def machine(self, gpus_per_node: int | None = None) -> Machine:
        """The plain numbers that the estimator reads.

        Args:
            gpus_per_node: GPUs in one host, where it differs from the usual. A fast link that lives inside a node
                shrinks with it; one that spans nodes (NVL72) does not.

        Raises:
            PlanError: ``gpus_per_node`` is not a whole number from 1 on.
        """
        per_node = self.gpus_per_node if gpus_per_node is None else gpus_per_node
        if isinstance(per_node, bool) or not isinstance(per_node, int) or not 1 <= per_node <= 100_000:
            raise PlanError("hardware.gpus_per_node", f"is {per_node!r}", "give a whole number from 1 on")
        spans_nodes = self.nvlink_domain > self.gpus_per_node
        domain = self.nvlink_domain if spans_nodes else min(self.nvlink_domain, per_node)
        price = self.usd_per_hour
        return Machine(
            name=self.name,
            generation=self.generation,
            compute_capability=round(10 * self.compute_capability) if self.compute_capability is not None else 0,
            usable_gib=self.usable_gib,
            peak_tflops=self.dense_peak_tflops.model_dump(exclude_none=True),
            hbm_gb_per_s=self.hbm_gb_per_s,
            sms=self.sms,
            nvlink_domain=domain,
            nvlink_gb_per_s=self.nvlink_gb_per_s if domain > 1 else 0.0,
            pcie_gb_per_s=self.pcie_gb_per_s,
            host_gb_per_s=self.host_gb_per_s or 0.0,
            nic_gb_per_s=self.nic_gb_per_s,
            gpus_per_node=per_node,
            usd_per_hour=(price.low + price.high) / 2 if price is not None else math.nan,
            board_watts=self.board_watts if self.board_watts is not None else math.nan,
        )


def load_gpu(reference: str | os.PathLike[str] | Mapping[str, Any] | GPU) -> GPU:
    """Load a GPU.

    Args:
        reference: A catalog name or alias (case, spaces, underscores and dashes do not matter, nor do the maker's
            words: "NVIDIA A100-SXM4-80GB" is found), a path to a YAML or JSON file, or a mapping of the same keys.
            A file or mapping may start from another with ``like: h100-sxm-80gb`` and state only what differs.

    Raises:
        PlanError: There is no such GPU, or its description is not valid.
    """
    if isinstance(reference, GPU):
        return reference
    if isinstance(reference, Mapping):
        return _validated(reference, "hardware.gpu")
    if isinstance(reference, str) and not _is_path(reference):
        return _load_named(_find(reference))
    if not isinstance(reference, (str, os.PathLike)):
        raise PlanError("hardware.gpu", f"is {reference!r}", "give a catalog name, a path to a YAML file or a mapping")
    where = os.fspath(reference)
    return _validated(read_mapping(where), where)


def gpu_names() -> list[str]:
    """Names in the catalog, sorted."""
    return sorted(path.stem for path in CATALOG.glob("*.yaml"))


@functools.cache
def _load_named(name: str) -> GPU:
    path = CATALOG / f"{name}.yaml"
    return _validated(read_mapping(path), str(path))


def _validated(mapping: Mapping[str, Any], where: str) -> GPU:
    values = dict(mapping)
    base = values.pop("like", None)
    if base is not None:
        if not isinstance(base, str) or _is_path(base):
            raise PlanError(where, f"like is {base!r}", "name a GPU of the catalog")
        values = _merged(load_gpu(base).model_dump(exclude={"aliases", "sources"}, exclude_none=True), values)
    try:
        return GPU.model_validate(values)
    except ValidationError as error:
        raise explain_validation(error, where, GPU) from None


def _merged(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        inner = merged.get(key)
        merged[key] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, Mapping) else value
    return merged


def _is_path(reference: str) -> bool:
    return reference.lower().endswith((".yaml", ".yml", ".json")) or "/" in reference or os.sep in reference


def _fold(name: str) -> str:
    """``name`` as the catalog writes names: ``NVIDIA GeForce RTX 4090`` becomes ``rtx-4090``."""
    folded = re.sub(r"[\s_-]+", "-", name.strip().casefold()).strip("-")
    return re.sub(r"^(?:nvidia-|amd-|geforce-|tesla-|instinct-|radeon-)+", "", folded)


def _find(reference: str) -> str:
    """Catalog name behind a name or an alias."""
    folded = _fold(reference)
    if re.fullmatch(r"[a-z0-9.-]+", folded) and (CATALOG / f"{folded}.yaml").is_file():
        return folded
    aliases = _aliases()
    if folded in aliases:
        return aliases[folded]
    remedy = nearest(folded, [*gpu_names(), *aliases], "'moeplan gpus' lists them, a path to a YAML file adds one")
    raise PlanError("hardware.gpu", f"there is no GPU {reference!r} in the catalog", remedy)


@functools.cache
def _aliases() -> dict[str, str]:
    """Catalog name by alias. Only the ``aliases: [...]`` line of each file is read: parsing them all takes 0.1 s."""
    found = {}
    for path in CATALOG.glob("*.yaml"):
        line = re.search(r"^aliases: \[(.*)\]$", path.read_text(encoding="utf-8"), re.MULTILINE)
        if line:
            found.update({_fold(alias): path.stem for alias in line.group(1).split(",") if alias.strip()})
    return found
