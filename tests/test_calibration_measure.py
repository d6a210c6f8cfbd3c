"""``moeplan measure``: what is worked out from kernel times, and, where torch is installed, the kernels themselves."""

from __future__ import annotations

import importlib
import importlib.util
import math
import types
from typing import Any

import pytest

from moeplan.calibration import MeasuredKernel, kernels
from moeplan.calibration.measure import SIZES, Sizes, factors_of_kernels, measure, recognise_gpu
from moeplan.errors import PlanError
from moeplan.hardware import load_gpu

TINY = Sizes(
    gemms=((64, 64, 64), (128, 64, 32)),
    grouped=((2, 16, 32, 16),),
    attentions=((1, 32, 4, 2, 16),),
    copies=(1 << 16,),
    launches=10,
)


def kernel(kind: str, measured_s: float, predicted_s: float | None) -> MeasuredKernel:
    return MeasuredKernel.model_validate(
        {"kind": kind, "precision": "bf16", "shape": {}, "measured_s": measured_s, "predicted_s": predicted_s}
    )


def test_a_factor_is_the_geometric_mean_of_predicted_over_measured() -> None:
    measured = [
        kernel("gemm", 1.0, 2.0),
        kernel("gemm", 2.0, 1.0),
        kernel("grouped_gemm", 1.0, 1.0),
        kernel("attention_forward", 1.0, 0.5),
        kernel("attention_backward", 2.0, 1.0),
        kernel("memory", 1.0, 1.5),
        kernel("launch", 1e-6, None),
    ]
    factors, spread = factors_of_kernels(measured)
    assert factors == {"gemm": 1.0, "attention": 0.5, "hbm": 1.5}
    # Sample deviation of ln 2, -ln 2 and 0.
    assert spread["gemm"] == pytest.approx(math.log(2), abs=1e-4)
    assert spread["attention"] == 0.0


def test_a_gpu_that_cannot_be_the_one_named_is_refused() -> None:
    with pytest.raises(PlanError, match="--gpu"):
        factors_of_kernels([kernel("gemm", 1.0, 100.0)])


@pytest.mark.parametrize(
    ("device", "memory_gib", "name"),
    # Device names as torch.cuda.get_device_name() prints them.
    [
        ("NVIDIA H100 80GB HBM3", 79.1, "h100-sxm-80gb"),
        ("NVIDIA H100 PCIe", 79.1, "h100-pcie-80gb"),
        ("NVIDIA H100 NVL", 93.0, "h100-nvl-94gb"),
        ("NVIDIA H200", 139.8, "h200-sxm-141gb"),
        ("NVIDIA H20", 95.0, "h20-sxm-96gb"),
        ("NVIDIA A100-SXM4-80GB", 79.1, "a100-sxm-80gb"),
        ("NVIDIA A100-SXM4-40GB", 39.4, "a100-sxm-40gb"),
        ("NVIDIA A100 80GB PCIe", 79.1, "a100-pcie-80gb"),
        ("NVIDIA B200", 178.3, "b200-sxm"),
        ("NVIDIA GB200", 184.0, "gb200-nvl72"),
        ("NVIDIA GeForce RTX 4090", 23.5, "rtx-4090"),
        ("Tesla V100-SXM2-32GB", 31.7, "v100-sxm-32gb"),
        ("Tesla T4", 14.6, "t4"),
        ("NVIDIA L4", 22.0, "l4"),
        ("NVIDIA L40S", 44.4, "l40s"),
        ("AMD Instinct MI300X", 191.5, "mi300x"),
    ],
)
def test_the_gpu_is_found_by_its_devices_name(device: str, memory_gib: float, name: str) -> None:
    assert recognise_gpu(device, memory_gib).name == name


def test_an_unknown_gpu_asks_for_its_name() -> None:
    with pytest.raises(PlanError, match="--gpu"):
        recognise_gpu("Matrox Mystique", 0.004)


def test_without_torch_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(kernels.importlib, "import_module", missing)
    with pytest.raises(PlanError, match="not installed; pip install"):
        measure()


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = types.SimpleNamespace(cuda=types.SimpleNamespace(is_available=lambda: False))
    monkeypatch.setattr(kernels.importlib, "import_module", lambda name: torch)
    with pytest.raises(PlanError, match="sees no GPU"):
        measure()


def test_every_shape_of_a_run_becomes_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device that takes exactly twice the time of perfect arithmetic and traffic, told by hand-counted work."""
    gpu = load_gpu("h100").machine()
    rate, bandwidth = gpu.peak_tflops["bf16"] * 1e12 / 2, gpu.hbm_gb_per_s * 1e9 / 2
    device = kernels.Device(None, "cuda", "NVIDIA H100 80GB HBM3", 79.1, 90)
    monkeypatch.setattr(kernels, "open_device", lambda kind: device)
    monkeypatch.setattr(kernels, "gemm", lambda _, m, n, k, p: 2 * m * n * k / rate / (2 if p == "fp8" else 1))
    monkeypatch.setattr(kernels, "grouped_gemm", lambda _, g, m, n, k: 2 * g * m * n * k / rate)

    def attention(_: Any, batch: int, s: int, heads: int, kv_heads: int, d: int) -> tuple[float, float]:
        forward = 4 * batch * heads * s * s * d / 2 / rate
        return forward, 2.5 * forward

    monkeypatch.setattr(kernels, "attention", attention)
    monkeypatch.setattr(kernels, "copy", lambda _, size: 2 * size / bandwidth)
    monkeypatch.setattr(kernels, "launch", lambda _, count: 5e-6)
    told: list[str] = []
    found = measure(progress=told.append)
    assert found.gpus == ("h100-sxm-80gb",)
    assert found.precisions == ("bf16", "fp8")
    shapes = 2 * len(SIZES.gemms) + len(SIZES.grouped) + 2 * len(SIZES.attentions) + len(SIZES.copies) + 1
    assert len(found.kernels) == shapes
    assert len(told) == shapes - len(SIZES.attentions)
    # Large products sustain 55 to 80 % of a Hopper's dense peak, streams 60 to 90 % of its bandwidth: half of either
    # is slower than the estimator expects, and by no more than that.
    assert 0.5 / 0.8 < found.factors["gemm"] < 1.0
    assert 0.5 / 0.9 < found.factors["hbm"] < 0.5 / 0.6
    assert set(found.factors) == {"gemm", "attention", "hbm"}


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_kernels_run_on_the_cpu() -> None:
    """Tiny shapes: that they run, are timed, and come out of the order of what a CPU takes."""
    device = kernels.open_device("cpu")
    assert 0 < kernels.gemm(device, 64, 64, 64, "bf16") < 1
    assert 0 < kernels.grouped_gemm(device, 2, 16, 32, 16) < 1
    assert all(0 < seconds < 1 for seconds in kernels.attention(device, 1, 32, 4, 2, 16))
    assert 0 < kernels.copy(device, 1 << 16) < 1
    assert 0 < kernels.launch(device, 10) < 1
