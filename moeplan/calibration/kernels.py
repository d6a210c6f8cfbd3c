"""Kernels benchmarked with PyTorch on the local device. The only module that imports torch, and only when called."""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from moeplan.errors import PlanError

# A kernel is timed for at least this long in all, so that clocks settle under load and the median means something.
_LEAST_S = 0.2
_MOST_REPEATS = 200
_LEAST_REPEATS = 5
# Read between two runs so that no operand waits in the last-level cache: larger than any (B200: 126 MB).
_FLUSH_BYTES = 256 << 20


@dataclass(frozen=True)
class Device:
    """Where kernels run.

    Attributes:
        torch: The torch module.
        kind: ``cuda``, or ``cpu`` for trying the code out.
        name: The device's own name.
        memory_gib: Its memory as the driver reports it; 0 for ``cpu``.
        capability: Compute capability times ten; 0 for ``cpu``.
    """

    torch: Any
    kind: str
    name: str
    memory_gib: float
    capability: int


def open_device(kind: str = "cuda") -> Device:
    """Find the device.

    Raises:
        PlanError: torch is not installed, or sees no GPU.
    """
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError:
        raise PlanError("measure", "PyTorch is not installed", "pip install 'moeplan[measure]'") from None
    if kind == "cpu":
        return Device(torch, "cpu", "cpu", 0.0, 0)
    if not torch.cuda.is_available():
        raise PlanError("measure", "PyTorch sees no GPU here", "run it on a machine that trains, or see --calibration")
    properties = torch.cuda.get_device_properties(0)
    major, minor = torch.cuda.get_device_capability(0)
    return Device(torch, "cuda", properties.name, properties.total_memory / 2**30, 10 * major + minor)


def gemm(device: Device, m: int, n: int, k: int, precision: str) -> float:
    """Seconds of ``[m, k] x [k, n]`` in ``bf16``, or ``fp8`` with one scale per tensor."""
    torch = device.torch
    if precision == "fp8":
        left = _random(device, m, k).to(torch.float8_e4m3fn)
        # The right operand of an FP8 product is column-major.
        right = _random(device, n, k).to(torch.float8_e4m3fn).t()
        one = torch.ones((), device=device.kind, dtype=torch.float32)
        return seconds(
            device,
            lambda: torch._scaled_mm(left, right, scale_a=one, scale_b=one, out_dtype=torch.bfloat16),
        )
    left, right = _random(device, m, k), _random(device, k, n)
    out = torch.empty(m, n, device=device.kind, dtype=torch.bfloat16)
    return seconds(device, lambda: torch.mm(left, right, out=out))


def grouped_gemm(device: Device, groups: int, m: int, n: int, k: int) -> float:
    """Seconds of ``groups`` products ``[m, k] x [k, n]`` in bf16, as one grouped kernel where torch has one."""
    torch = device.torch
    weights = _random(device, groups * k, n).view(groups, k, n)
    tokens = _random(device, groups * m, k)
    grouped = getattr(torch, "_grouped_mm", None)
    if grouped is not None and device.capability >= 90:
        ends = torch.arange(m, groups * m + 1, m, device=device.kind, dtype=torch.int32)
        return seconds(device, lambda: grouped(tokens, weights, offs=ends))
    batched = tokens.view(groups, m, k)
    return seconds(device, lambda: torch.bmm(batched, weights))


def attention(
    device: Device, batch: int, sequence: int, heads: int, kv_heads: int, head_dim: int
) -> tuple[float, float]:
    """Seconds of causal attention in bf16, forward and backward."""
    torch = device.torch
    shape = (batch, heads, sequence, head_dim)
    query = _random(device, batch * heads * sequence, head_dim).view(shape).requires_grad_()
    key, value = (
        _random(device, batch * kv_heads * sequence, head_dim)
        .view(batch, kv_heads, sequence, head_dim)
        .requires_grad_()
        for _ in range(2)
    )
    run = torch.nn.functional.scaled_dot_product_attention
    options = {"is_causal": True, "enable_gqa": heads != kv_heads}
    with torch.no_grad():
        forward = seconds(device, lambda: run(query, key, value, **options))
    output = run(query, key, value, **options)
    upstream = torch.randn_like(output)
    backward = seconds(device, lambda: torch.autograd.grad(output, (query, key, value), upstream, retain_graph=True))
    return forward, backward


def copy(device: Device, size_bytes: int) -> float:
    """Seconds to copy ``size_bytes`` within device memory (each byte is read and written)."""
    torch = device.torch
    source = torch.zeros(size_bytes // 4, device=device.kind, dtype=torch.float32)
    target = torch.empty_like(source)
    return seconds(device, lambda: target.copy_(source))


def launch(device: Device, count: int) -> float:
    """Seconds per kernel of ``count`` tiny dependent kernels: what the host needs to launch one."""
    torch = device.torch
    value = torch.zeros(1, device=device.kind)

    def run() -> None:
        for _ in range(count):
            value.add_(1.0)

    return seconds(device, run, flush=False) / count


def seconds(device: Device, run: Callable[[], Any], flush: bool = True) -> float:
    """Median seconds of one call, after warming up, with the cache flushed in between.

    On a GPU the clock is that of CUDA events around the call, so the host's time counts only where the device waits.
    """
    torch = device.torch
    run()
    cold = None
    if device.kind == "cuda" and flush:
        cold = torch.empty(_FLUSH_BYTES // 4, device="cuda", dtype=torch.float32)
    _once(device, run, cold)
    found: list[float] = []
    while len(found) < _LEAST_REPEATS or (sum(found) < _LEAST_S and len(found) < _MOST_REPEATS):
        found.append(_once(device, run, cold))
    return statistics.median(found)


def _once(device: Device, run: Callable[[], Any], cold: Any) -> float:
    if device.kind != "cuda":
        begun = time.perf_counter()
        run()
        return time.perf_counter() - begun
    cuda = device.torch.cuda
    if cold is not None:
        cold.zero_()
    start, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    cuda.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def _random(device: Device, rows: int, columns: int) -> Any:
    torch = device.torch
    # Real data: constant operands draw less power and clock higher than training does.
    return torch.randn(rows, columns, device=device.kind, dtype=torch.float32).to(torch.bfloat16)
