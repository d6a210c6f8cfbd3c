"""The GPU catalog against published figures, physics, and a user's own files."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from moeplan.errors import PlanError
from moeplan.hardware import CATALOG, GPU, gpu_names, load_gpu

PUBLISHED = {gpu["name"]: gpu for gpu in json.loads((Path(__file__).parent / "reference" / "gpus.json").read_text())}
# Catalog name by the name in the published table. Left out: B100 (never shipped, usable memory unknown), and Gaudi,
# TPU and Ascend, which are not GPUs that the supported frameworks run on.
NAMES = {
    "V100-PCIE-16GB": "v100-pcie-16gb",
    "V100-SXM2-16GB": "v100-sxm-16gb",
    "V100-SXM2-32GB": "v100-sxm-32gb",
    "T4": "t4",
    "L4": "l4",
    "A10": "a10",
    "A10G": "a10g",
    "A30": "a30",
    "A40": "a40",
    "RTX A6000": "rtx-a6000",
    "RTX 3090": "rtx-3090",
    "RTX 4090": "rtx-4090",
    "RTX 5090": "rtx-5090",
    "A100-PCIe-40GB": "a100-pcie-40gb",
    "A100-PCIe-80GB": "a100-pcie-80gb",
    "A100-SXM4-40GB": "a100-sxm-40gb",
    "A100-SXM4-80GB": "a100-sxm-80gb",
    "A800-SXM-80GB": "a800-sxm-80gb",
    "H100-PCIe": "h100-pcie-80gb",
    "H100-SXM5": "h100-sxm-80gb",
    "H100-NVL": "h100-nvl-94gb",
    "H800-SXM": "h800-sxm-80gb",
    "H20": "h20-sxm-96gb",
    "H200-SXM": "h200-sxm-141gb",
    "GH200-96GB": "gh200-96gb",
    "B200-SXM": "b200-sxm",
    "GB200 (NVL72)": "gb200-nvl72",
    "B300-SXM": "b300-sxm",
    "GB300 (NVL72)": "gb300-nvl72",
    "RTX PRO 6000 Blackwell Server": "rtx-pro-6000-server",
    "L40S": "l40s",
    "MI300X": "mi300x",
    "MI325X": "mi325x",
    "MI355X": "mi355x",
    "MI250X (both GCDs)": "mi250x",
}
# Dense FP16 FLOPs per clock and SM (or compute unit) with FP32 accumulation: NVIDIA architecture whitepapers (V100,
# Turing, A100, GA102, Ada, H100 SM tables) and AMD's CDNA 2 to 4 whitepapers. GeForce cards run at half of their
# workstation siblings.
FLOPS_PER_CLOCK = {
    "volta": 1024,
    "turing": 1024,
    "ampere": 1024,
    "ada": 1024,
    "hopper": 4096,
    "blackwell": 8192,
    "cdna2": 1024,
    "cdna3": 2048,
    "cdna4": 4096,
}
MINE = {
    "name": "mine",
    "sms": 100,
    "usable_gib": 60.0,
    "dense_peak_tflops": {"bf16": 500},
    "hbm_gb_per_s": 2000,
    "pcie_gb_per_s": 32,
    "nic_gb_per_s": 25,
}


def flops_per_clock(gpu: GPU) -> int:
    if gpu.generation == "ampere" and gpu.compute_capability == 8.0:
        return 2048
    geforce_or_gb202 = gpu.name in ("rtx-3090", "rtx-4090", "a10g")
    if gpu.compute_capability == 12.0:
        return 512 if gpu.name == "rtx-5090" else 1024
    return 512 if geforce_or_gb202 else FLOPS_PER_CLOCK[gpu.generation]


@pytest.mark.parametrize(("published", "name"), NAMES.items())
def test_figures_are_the_published_ones(published: str, name: str) -> None:
    row, gpu = PUBLISHED[published], load_gpu(name)
    dies = 2 if name == "mi250x" else 1  # each die of an MI250X is a device of its own
    peaks = gpu.dense_peak_tflops
    theirs = row["dense_TFLOPS"]
    assert peaks.fp32 == theirs["fp32_vector"] / dies
    for precision in ("tf32", "bf16", "fp8"):
        expected = theirs[precision]
        assert getattr(peaks, precision) == (None if expected is None else expected / dies)
    if name == "rtx-3090":  # the table gives the rate with FP16 accumulation, which nobody trains with
        assert peaks.fp16 == theirs["fp16"] / 2
    else:
        assert peaks.fp16 == theirs["fp16"] / dies
    if gpu.vendor == "nvidia":
        assert peaks.nvfp4 == theirs["fp4"]
    assert gpu.hbm_gb_per_s == pytest.approx(row["mem_bw_GBps"] / dies)
    # The table mixes what nvidia-smi and what torch report; the two differ by up to 2 %.
    assert gpu.usable_gib == pytest.approx(row["usable_GiB_nvidia_smi"] / dies, rel=0.02)
    assert gpu.pcie_gb_per_s == row["pcie_GBps_unidirectional"]
    if name not in ("mi250x", "gh200-96gb"):
        assert gpu.nvlink_gb_per_s == (row["link_GBps_per_gpu_unidirectional"] or 0)
        assert gpu.gpus_per_node == row["typical_gpus_per_node"]
    if row["typical_nic_Gbps_per_gpu"] and dies == 1:
        assert gpu.nic_gb_per_s == row["typical_nic_Gbps_per_gpu"] / 8
    price = row["price_usd_per_gpu_hour"]
    assert (gpu.usd_per_hour is None) == (price is None)
    if price and gpu.usd_per_hour:
        assert (gpu.usd_per_hour.low, gpu.usd_per_hour.high) == (price["low"], price["high"])


def test_the_catalog_holds_the_table() -> None:
    assert set(NAMES.values()) <= set(gpu_names())
    assert len(gpu_names()) >= 25


@pytest.mark.parametrize("name", gpu_names())
def test_peaks_are_dense_and_agree_with_each_other(name: str) -> None:
    gpu = load_gpu(name)
    peaks = gpu.dense_peak_tflops
    assert peaks.fp16 is not None
    # A peak with sparsity would ask for a clock of 3.5 GHz. The H20 is throttled for export.
    clock_ghz = peaks.fp16 * 1e3 / (gpu.sms * flops_per_clock(gpu))
    assert (0.4 if name == "h20-sxm-96gb" else 1.2) < clock_ghz < 2.9
    if peaks.tf32 and name not in ("l4", "l40s"):
        assert peaks.tf32 == pytest.approx(peaks.fp16 / 2, rel=0.03)
    if peaks.fp8:
        assert peaks.fp8 == pytest.approx(2 * peaks.fp16, rel=0.03)
    if peaks.mxfp8:
        assert peaks.mxfp8 == peaks.fp8
    supported = {
        "bf16": gpu.generation not in ("volta", "turing"),
        "fp8": gpu.generation in ("ada", "hopper", "blackwell", "cdna3", "cdna4"),
        # Transformer Engine runs MXFP8 on compute capability 10.x, not on 12.x.
        "mxfp8": gpu.compute_capability in (10.0, 10.3) or gpu.generation == "cdna4",
        "nvfp4": gpu.generation == "blackwell",
    }
    assert {precision: getattr(peaks, precision) is not None for precision in supported} == supported


@pytest.mark.parametrize("name", gpu_names())
def test_a_file_is_complete_and_gives_a_source_for_every_figure(name: str) -> None:
    path = CATALOG / f"{name}.yaml"
    written = yaml.safe_load(path.read_text())
    assert written["name"] == name
    figures = written.keys() - {"name", "aliases", "vendor", "generation", "sources"}
    assert set(written["sources"]) == figures
    assert all(len(source) > 3 for source in written["sources"].values())
    gpu = load_gpu(name)
    assert gpu.memory_gb is not None
    assert 0.9 * gpu.memory_gb < gpu.usable_gib <= gpu.memory_gb


def test_aliases_are_unique_and_each_finds_its_gpu() -> None:
    owner: dict[str, str] = {}
    for path in CATALOG.glob("*.yaml"):
        for alias in [path.stem, *yaml.safe_load(path.read_text())["aliases"]]:
            assert alias not in owner, f"{alias} is claimed by {owner[alias]} and {path.stem}"
            owner[alias] = path.stem
    for alias, name in owner.items():
        for spelling in (alias, alias.upper(), alias.replace("-", " "), alias.replace("-", "_"), f" NVIDIA {alias} "):
            assert load_gpu(spelling).name == name


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        # names of the contract, and what torch.cuda.get_device_name() says
        ("a100", "a100-sxm-80gb"),
        ("A100 80GB", "a100-sxm-80gb"),
        ("h100", "h100-sxm-80gb"),
        ("h800", "h800-sxm-80gb"),
        ("h200", "h200-sxm-141gb"),
        ("b200", "b200-sxm"),
        ("gb200", "gb200-nvl72"),
        ("NVIDIA A100-SXM4-40GB", "a100-sxm-40gb"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm-80gb"),
        ("NVIDIA B300 SXM6 AC", "b300-sxm"),
        ("Tesla V100-SXM2-32GB", "v100-sxm-32gb"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("AMD Instinct MI300X", "mi300x"),
    ],
)
def test_names_as_people_and_drivers_write_them(spelling: str, name: str) -> None:
    assert load_gpu(spelling).name == name


def test_the_machine_is_the_gpu_in_plain_numbers() -> None:
    machine = load_gpu("h100").machine()
    assert (machine.name, machine.generation, machine.compute_capability) == ("h100-sxm-80gb", "hopper", 90)
    assert machine.peak_tflops["bf16"] == 989
    assert "nvfp4" not in machine.peak_tflops
    assert machine.usd_per_hour == pytest.approx((1.99 + 5.0) / 2)
    assert math.isnan(load_gpu("a100-pcie-40gb").machine().usd_per_hour)
    assert load_gpu("mi300x").machine().compute_capability == 0
    assert load_gpu("gb300").machine().compute_capability == 103


def test_a_link_inside_the_node_shrinks_with_it_and_a_rack_does_not() -> None:
    assert load_gpu("h100").machine(4).nvlink_domain == 4
    assert load_gpu("h100").machine(16).nvlink_domain == 8
    assert load_gpu("h100").machine(1).nvlink_gb_per_s == 0
    assert load_gpu("gb200").machine().nvlink_domain == 72
    assert load_gpu("gb200").machine(2).nvlink_domain == 72
    assert load_gpu("gb200").machine().gpus_per_node == 4
    for bad in (0, -1, 1.5, True, "8", 10**9):
        with pytest.raises(PlanError, match="gpus_per_node"):
            load_gpu("h100").machine(bad)  # type: ignore[arg-type]


def test_an_own_gpu_from_a_file_and_from_another(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(MINE))
    assert load_gpu(str(path)) == load_gpu(path) == load_gpu(MINE)
    assert load_gpu(path).machine().nvlink_domain == 1
    (tmp_path / "mine.json").write_text(json.dumps(MINE))
    assert load_gpu(tmp_path / "mine.json") == load_gpu(MINE)
    cut = load_gpu({"like": "H100", "name": "h100-mig", "usable_gib": 39.5, "dense_peak_tflops": {"fp8": None}})
    base = load_gpu("h100")
    assert (cut.name, cut.usable_gib, cut.dense_peak_tflops.fp8) == ("h100-mig", 39.5, None)
    assert (cut.dense_peak_tflops.bf16, cut.hbm_gb_per_s) == (989, base.hbm_gb_per_s)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sms": 0}, "sms must be greater than or equal to 1"),
        ({"sms": 1.5}, "sms"),
        ({"sms": True}, "sms"),
        ({"usable_gib": -1}, "usable_gib must be greater than 0"),
        ({"usable_gib": math.nan}, "usable_gib must be a finite number"),
        ({"usable_gib": math.inf}, "usable_gib"),
        ({"usable_gib": 1e30}, "usable_gib must be less than"),
        ({"usable_gib": "80"}, "usable_gib"),
        ({"usable_gib": None}, "usable_gib"),
        ({"usable_gib": [80]}, "usable_gib"),
        ({"memory_gb": 40}, "usable_gib is 60, more than memory_gb"),
        ({"dense_peak_tflops": {}}, "dense_peak_tflops: gives no precision"),
        ({"dense_peak_tflops": {"bf61": 1}}, r"unknown key 'dense_peak_tflops.bf61'; did you mean 'bf16'\?"),
        ({"dense_peak_tflops": 989}, "dense_peak_tflops must be a mapping"),
        ({"hbm_gbps": 3350}, r"unknown key 'hbm_gbps'; did you mean 'hbm_gb_per_s'\?"),
        ({"generation": "hoper"}, r"generation is 'hoper'; did you mean 'hopper'\?"),
        ({"nvlink_domain": 8}, "give both, or neither"),
        ({"usd_per_hour": {"low": 3, "high": 2}}, "swap them"),
        ({"usd_per_hour": {"low": 3}}, "key 'usd_per_hour.high' is missing"),
        ({"aliases": "x"}, "aliases must be a list"),
        ({"name": ""}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"sources": {"sm": "x"}}, r"sources names 'sm', which is no figure; did you mean 'sms'\?"),
        ({"like": "h10O"}, "there is no GPU 'h10O'"),
        ({"like": "other.yaml"}, "like is 'other.yaml'"),
        ({"like": 3}, "like is 3"),
    ],
)
def test_a_bad_description_is_refused_in_one_line(change: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words) as caught:
        load_gpu({**MINE, **change})
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_named_all_at_once() -> None:
    with pytest.raises(PlanError, match=r"keys sms, usable_gib, .* are missing; add them"):
        load_gpu({"name": "mine"})


@pytest.mark.parametrize(
    "reference", ["", " ", "h1000", "h100\x00", "../x", "no/such.yaml", 5, None, 1.5, ["h100"], b"h100"]
)
def test_an_unknown_reference_is_refused_in_one_line(reference: Any) -> None:
    with pytest.raises(PlanError) as caught:
        load_gpu(reference)
    assert "\n" not in str(caught.value)


def test_the_nearest_name_is_offered() -> None:
    with pytest.raises(PlanError, match=re.escape("did you mean 'mi300x'?")):
        load_gpu("mi300")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([*GPU.model_fields, "like", "bogus"]), values, max_size=4))
def test_any_description_is_accepted_or_refused_in_one_line(changes: dict[str, Any]) -> None:
    try:
        gpu = load_gpu({**MINE, **changes})
    except PlanError as error:
        assert "\n" not in str(error)
    else:
        machine = gpu.machine()
        assert 0 < machine.usable_gib < math.inf
        assert all(0 < peak < math.inf for peak in machine.peak_tflops.values())
