"""``moeplan measure``: benchmark the local GPU's kernels and turn them into the factors of a calibration."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from moeplan.calibration import kernels
from moeplan.calibration.document import MOST, Calibration, MeasuredKernel
from moeplan.errors import PlanError
from moeplan.estimator.machine import Machine
from moeplan.estimator.time.efficiency import Kernels
from moeplan.hardware import GPU, gpu_names, load_gpu

# Which factor a kernel speaks for.
_FACTOR_OF = {
    "gemm": "gemm",
    "grouped_gemm": "gemm",
    "attention_forward": "attention",
    "attention_backward": "attention",
    "memory": "hbm",
}


@dataclass(frozen=True)
class Sizes:
    """The shapes to run.

    Attributes:
        gemms: (m, n, k).
        grouped: (groups, m, n, k).
        attentions: (batch, sequence, heads, kv_heads, head_dim).
        copies: Bytes.
        launches: Kernels in a chain.
    """

    gemms: Sequence[tuple[int, int, int]]
    grouped: Sequence[tuple[int, int, int, int]]
    attentions: Sequence[tuple[int, int, int, int, int]]
    copies: Sequence[int]
    launches: int


# Shapes of layers that are trained: projections and feed-forward blocks of 2k to 8k wide models over 4k to 16k tokens,
# experts of 1k to 2k width with 64 to 4k tokens each, attention over 4k and 8k tokens.
SIZES = Sizes(
    gemms=(
        *((4096, n, k) for n, k in ((2048, 2048), (4096, 4096), (6144, 4096), (14336, 4096), (4096, 14336))),
        *((8192, n, k) for n, k in ((8192, 8192), (28672, 8192), (8192, 28672), (1536, 7168), (24576, 1536))),
        *((16384, n, k) for n, k in ((4096, 4096), (7168, 16384))),
    ),
    grouped=(
        *((8, m, 4096, 2048) for m in (64, 256, 1024, 4096)),
        *((16, m, 1536, 2048) for m in (256, 1024)),
        *((32, m, 4096, 7168) for m in (128, 512)),
    ),
    attentions=((1, 4096, 32, 8, 128), (2, 4096, 32, 32, 128), (1, 8192, 64, 8, 128), (1, 4096, 32, 8, 64)),
    copies=(1 << 28, 1 << 30),
    launches=1000,
)


def measure(
    gpu: str | None = None,
    *,
    device: str = "cuda",
    sizes: Sizes = SIZES,
    progress: Callable[[str], None] = lambda _: None,
) -> Calibration:
    """Benchmark the first visible GPU.

    Args:
        gpu: Catalog name or file of the GPU; None finds it by the device's own name.
        device: ``cpu`` only to try the code out.
        sizes: Shapes to run.
        progress: Called with a line before each kernel.

    Returns:
        A calibration with the factors ``gemm``, ``attention`` and ``hbm``. Links need more than one GPU, and the host's
        overhead and the allocator's fragmentation need a training run (``moeplan calibrate``): those stay at 1.

    Raises:
        PlanError: There is no torch or no GPU, or the catalog does not know the GPU.
    """
    from moeplan import __version__

    opened = kernels.open_device(device)
    known = load_gpu(gpu) if gpu is not None else recognise_gpu(opened.name, opened.memory_gib)
    machine = known.machine()
    measured = [*_matrix_products(opened, machine, sizes, progress), *_others(opened, machine, sizes, progress)]
    factors, spread = factors_of_kernels(measured)
    return Calibration(
        source="measure",
        made_by=f"moeplan {__version__}",
        gpus=(machine.name,),
        precisions=tuple(dict.fromkeys(kernel.precision for kernel in measured if kernel.kind == "gemm")),
        runs=0,
        factors=factors,
        spread=spread,
        identified=dict.fromkeys(factors, 1.0),
        kernels=tuple(measured),
        warnings=(
            "measured on one GPU at rest: training shares power and bandwidth with communication; "
            "'moeplan calibrate' on a training run is closer",
        ),
    )


def factors_of_kernels(measured: Sequence[MeasuredKernel]) -> tuple[dict[str, float], dict[str, float]]:
    """Factors and their relative standard deviations: the geometric mean of predicted over measured time per factor.

    A factor above 1 says that this GPU is faster than the estimator takes it to be.

    Raises:
        PlanError: A factor comes out so far from 1 that the GPU cannot be the one named.
    """
    logs: dict[str, list[float]] = {}
    for kernel in measured:
        name = _FACTOR_OF.get(kernel.kind)
        if name is not None and kernel.predicted_s is not None and kernel.measured_s > 0:
            logs.setdefault(name, []).append(math.log(kernel.predicted_s / kernel.measured_s))
    factors, spread = {}, {}
    for name, values in logs.items():
        mean = float(np.mean(values))
        if abs(mean) >= math.log(MOST):
            raise PlanError(
                "measure",
                f"{name} came out {math.exp(mean):.2g} times what the catalog says",
                "name the GPU with --gpu",
            )
        factors[name] = round(math.exp(mean), 4)
        spread[name] = round(float(np.std(values, ddof=1)) if len(values) > 1 else 0.0, 4)
    return factors, spread


def recognise_gpu(name: str, memory_gib: float) -> GPU:
    """The catalog's GPU for a device name such as ``NVIDIA H100 80GB HBM3``, told apart by memory where names agree.

    Raises:
        PlanError: No catalog name appears in the device's.
    """
    words = re.findall(r"[a-z]+\d+[a-z]*|\d+[a-z]*|[a-z]+", name.casefold().replace("-", " "))
    best: tuple[float, GPU] | None = None
    for known in gpu_names():
        gpu = load_gpu(known)
        model = known.split("-")
        # rtx-4090 and rtx-pro-6000 are told by more than their first word.
        needed = model[:2] if model[0] == "rtx" else model[:1]
        if not all(part in words for part in needed):
            continue
        # A name without a form factor is a module ("NVIDIA H100 80GB HBM3"): cards say PCIe or NVL.
        forms = [word for word in ("sxm", "pcie", "nvl") if any(word in piece for piece in words)] or ["sxm"]
        form = sum(word in known for word in forms)
        distance = abs(math.log(gpu.usable_gib / memory_gib)) if memory_gib > 0 else 0.0
        score = 10 * distance - form
        if best is None or score < best[0]:
            best = (score, gpu)
    if best is None:
        raise PlanError("measure", f"the catalog does not know {name!r}", "name the GPU with --gpu NAME or a file")
    return best[1]


def _matrix_products(
    device: kernels.Device, machine: Machine, sizes: Sizes, progress: Callable[[str], None]
) -> list[MeasuredKernel]:
    estimator = Kernels(machine, {})
    found = []
    # FP8 tensor cores exist from compute capability 8.9 on.
    for precision in ("bf16", "fp8") if device.capability >= 89 and machine.peak_tflops.get("fp8") else ("bf16",):
        size = 1 if precision == "fp8" else 2
        for m, n, k in sizes.gemms:
            progress(f"gemm {precision} {m} x {n} x {k}")
            moved = size * (m * k + k * n) + 2 * m * n
            predicted = _product_s(estimator, (m, n, k, 1), precision, "gemm", moved)
            found.append(
                MeasuredKernel(
                    kind="gemm",
                    precision=precision,
                    shape={"m": m, "n": n, "k": k},
                    measured_s=kernels.gemm(device, m, n, k, precision),
                    predicted_s=predicted,
                )
            )
    for groups, m, n, k in sizes.grouped:
        progress(f"grouped gemm bf16 {groups} x {m} x {n} x {k}")
        moved = 2 * groups * (m * k + k * n + m * n)
        predicted = _product_s(estimator, (m, n, k, groups), "bf16", "grouped_gemm", moved)
        found.append(
            MeasuredKernel(
                kind="grouped_gemm",
                precision="bf16",
                shape={"groups": groups, "m": m, "n": n, "k": k},
                measured_s=kernels.grouped_gemm(device, groups, m, n, k),
                predicted_s=predicted,
            )
        )
    return found


def _others(
    device: kernels.Device, machine: Machine, sizes: Sizes, progress: Callable[[str], None]
) -> list[MeasuredKernel]:
    estimator = Kernels(machine, {})
    found = []
    for batch, sequence, heads, kv_heads, head_dim in sizes.attentions:
        progress(f"attention bf16 {batch} x {sequence}, {heads} heads of {head_dim}")
        times = kernels.attention(device, batch, sequence, heads, kv_heads, head_dim)
        # Two products of 2 s^2 d per head, of which the causal mask keeps half; backward has five for forward's two.
        flops = np.array([2.0 * batch * heads * sequence**2 * head_dim])
        blocks = np.array([batch * heads * sequence / 128])
        for kind, work, seconds in (("attention_forward", 1.0, times[0]), ("attention_backward", 2.5, times[1])):
            predicted = estimator.attention_s(work * flops, blocks, head_dim, kind == "attention_backward")
            found.append(
                MeasuredKernel.model_validate(
                    {
                        "kind": kind,
                        "precision": "bf16",
                        "shape": {
                            "batch": batch,
                            "sequence": sequence,
                            "heads": heads,
                            "kv_heads": kv_heads,
                            "head_dim": head_dim,
                        },
                        "measured_s": seconds,
                        "predicted_s": float(predicted[0]),
                    }
                )
            )
    for size in sizes.copies:
        progress(f"copy of {size / 2**20:g} MiB")
        found.append(
            MeasuredKernel(
                kind="memory",
                precision="fp32",
                shape={"bytes": size},
                measured_s=kernels.copy(device, size),
                predicted_s=float(estimator.traffic_s(np.array([2.0 * size]), 1.0, "stream")[0]),
            )
        )
    progress("kernel launches")
    found.append(
        MeasuredKernel(
            kind="launch",
            precision="fp32",
            shape={"count": sizes.launches},
            measured_s=kernels.launch(device, sizes.launches),
            predicted_s=None,
        )
    )
    return found


def _product_s(estimator: Kernels, shape: tuple[int, int, int, int], precision: str, section: str, moved: int) -> float:
    m, n, k, groups, bytes_moved = (np.array([float(value)]) for value in (*shape, moved))
    return float(estimator.gemm_s(m, n, k, groups, precision, section, bytes_moved)[0])
