"""Fits the global numbers of the time model to measured runs, pulled towards what kernels alone measured.

A number is fitted as the logarithm of a factor on its prior; the penalty is (log factor / width)^2, in units in which a
residual of 5 % costs 1. Repeated runs of one plan share one weight. Nothing is fitted per case.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import least_squares
import numpy as np
import time_cases
from numpy.typing import NDArray

from moeplan.estimator.time.coefficients import trying

RESIDUAL = 0.05
"""A relative error that counts as one unit of misfit."""

_TRUST = {"throughput_frameworks": 0.5}


@dataclass(frozen=True)
class Number:
    """One fitted number: where it lies in the coefficients, and how far it may move (one deviation, in log)."""

    path: tuple[str, ...]
    width: float


def _numbers() -> list[Number]:
    return [
        *(Number(("gemm_share", generation, kind), width) for generation, kind, width in _SHARES),
        *(Number(("memory_share", generation, "stream"), 0.1) for generation in ("ampere", "hopper", "blackwell")),
        *(Number(("memory_share", generation, "permute"), 0.1) for generation in ("hopper", "blackwell")),
        Number(("launch_us",), 0.5),
        *(Number((f"attention_{way}", "blackwell", "narrow"), 0.3) for way in ("forward", "backward")),
        *(Number(("attention_forward", generation, "share"), 0.05) for generation in ("ampere", "blackwell")),
        *(Number(("attention_backward", generation, "share"), 0.05) for generation in ("ampere", "blackwell")),
        Number(("attention_forward", "hopper", "share"), 0.1),
        Number(("attention_backward", "hopper", "share"), 0.1),
        Number(("memory_share", "blackwell", "loss"), 0.3),
        Number(("grouped_gemm", "hopper", "share"), 0.1),
        Number(("grouped_gemm", "blackwell", "share"), 0.1),
        Number(("quantization", "hopper", "fp8"), 0.5),
        Number(("quantization", "blackwell", "fp8"), 0.5),
        Number(("quantization", "blackwell", "mxfp8"), 0.5),
        Number(("quantization", "blackwell", "nvfp4"), 0.5),
        Number(("power", "exponent", "default"), 0.3),
        Number(("power", "exponent", "blackwell"), 0.15),
        Number(("power", "burst"), 0.1),
        Number(("power", "superchip"), 0.01),
        Number(("power", "superchip_bf16"), 0.2),
        *(Number(("eager_framework", "attention", since), 0.2) for since in ("before_hopper", "since_hopper")),
        Number(("eager_framework", "passes"), 0.4),
        Number(("eager_experts", "expert_us"), 0.7),
        Number(("host", "kernel_us"), 0.2),
        Number(("host", "arm"), 0.2),
        Number(("eager_experts", "passes"), 0.5),
        Number(("eager_experts", "wait_us"), 0.7),
        Number(("overlap", "interference"), 0.5),
        Number(("overlap", "p2p_exposed"), 0.7),
        Number(("overlap", "tp_backward"), 0.4),
        Number(("overlap", "tp_exposed"), 0.4),
        Number(("overlap", "ep_exposed"), 0.5),
        Number(("latency_us", "fixed"), 0.4),
        Number(("latency_us", "nvlink_step"), 0.4),
        Number(("link_share", "nvlink", "ring"), 0.05),
        Number(("link_share", "nvlink", "all_to_all"), 0.05),
        Number(("link_share", "nic", "ring"), 0.1),
        Number(("link_share", "nic", "all_to_all"), 0.05),
        Number(("routing", "sequences"), 0.7),
        Number(("optimizer", "fixed_ms"), 0.5),
    ]


_SHARES = (
    ("ampere", "bf16", 0.05),
    ("hopper", "bf16", 0.1),
    ("hopper", "fp8", 0.1),
    ("blackwell", "bf16", 0.06),
    ("blackwell", "fp8", 0.3),
    ("blackwell", "nvfp4", 0.3),
    ("cdna3", "bf16", 0.2),
    ("cdna3", "fp8", 0.2),
)

NUMBERS = _numbers()


def moved(prior: Mapping[str, Any], logs: NDArray[np.float64]) -> dict[str, Any]:
    """The coefficients with every fitted number multiplied by the exponential of its entry."""
    data: dict[str, Any] = copy.deepcopy(dict(prior))
    for number, log in zip(NUMBERS, logs, strict=True):
        place = data
        for key in number.path[:-1]:
            place = place[key]
        place[number.path[-1]] = float(place[number.path[-1]]) * math.exp(log)
    return data


def weights(cases: list[time_cases.Case]) -> NDArray[np.float64]:
    """Repeated runs of one plan count as one; runs whose settings are partly assumed count half."""
    repeated = Counter(_key(case) for case in cases)
    return np.array([_TRUST.get(case.dataset, 1.0) / math.sqrt(repeated[_key(case)]) for case in cases])


def _key(case: time_cases.Case) -> tuple[Any, ...]:
    return (
        case.dataset,
        repr(sorted(case.row.items(), key=str)),
        case.machine.name,
        case.architecture.name,
        str(case.factors),
    )


def residuals_of(
    prior: Mapping[str, Any], cases: list[time_cases.Case]
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Weighted robust residuals of the cases as a function of the logarithms of the factors."""
    scale = weights(cases)
    measured = np.array([case.measured_s for case in cases])
    grouped = time_cases.batches(cases)

    def residuals(at: NDArray[np.float64]) -> NDArray[np.float64]:
        with trying(moved(prior, at)):
            predicted = np.array(time_cases.predict(grouped))
        return least_squares.robust(scale * np.log(predicted / measured) / RESIDUAL)

    return residuals


WIDTHS = np.array([number.width for number in NUMBERS])


def fit(
    prior: Mapping[str, Any],
    cases: list[time_cases.Case],
    start: NDArray[np.float64],
    steps: int = 8,
    say: Callable[[str], None] = lambda text: None,
) -> NDArray[np.float64]:
    """The logarithms of the factors on the prior that fit the cases best, found from ``start``."""
    return least_squares.minimize(residuals_of(prior, cases), start, WIDTHS, steps, say)


def held_out(
    prior: Mapping[str, Any],
    cases: list[time_cases.Case],
    solution: NDArray[np.float64],
    label: Callable[[time_cases.Case], str],
) -> dict[str, NDArray[np.float64]]:
    """Relative errors on each label's cases when the fit has not seen them.

    Every refit starts from the joint solution and takes four steps with its slopes (they change little:
    the model is nearly linear in logarithms), always evaluating the model itself.

    Returns:
        For each label, predicted over measured less one, in the order of its cases.
    """
    residuals = residuals_of(prior, cases)
    labels = np.array([label(case) for case in cases])
    slopes = least_squares.jacobian(residuals, solution, residuals(solution))
    measured = np.array([case.measured_s for case in cases])
    grouped = time_cases.batches(cases)
    errors = {}
    for left_out in dict.fromkeys(labels):
        seen = labels != left_out
        normal = slopes[seen].T @ slopes[seen] + np.diag(1 / WIDTHS**2)
        logs = solution.copy()
        for _ in range(4):
            gradient = slopes[seen].T @ residuals(logs)[seen] + logs / WIDTHS**2
            logs = logs - np.clip(np.linalg.solve(normal, gradient), -0.5, 0.5)
        with trying(moved(prior, logs)):
            predicted = np.array(time_cases.predict(grouped))
        errors[str(left_out)] = (predicted / measured - 1)[~seen]
    return errors
