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

import numpy as np
import time_cases
from numpy.typing import NDArray

from moeplan.estimator.time.coefficients import trying

RESIDUAL = 0.05
"""A relative error that counts as one unit of misfit."""


@dataclass(frozen=True)
class Number:
    """One fitted number: where it lies in the coefficients, and how far it may move (one standard deviation, in log)."""

    path: tuple[str, ...]
    width: float


def _numbers() -> list[Number]:
    found = [
        *(Number(("gemm_share", generation, kind), width) for generation, kind, width in _SHARES),
        *(Number(("memory_share", generation, "stream"), 0.1) for generation in ("ampere", "hopper", "blackwell")),
        *(Number(("memory_share", generation, "permute"), 0.3) for generation in ("hopper", "blackwell")),
        *(Number(("attention_forward", generation, "share"), 0.05) for generation in ("ampere", "blackwell")),
        *(Number(("attention_backward", generation, "share"), 0.05) for generation in ("ampere", "blackwell")),
        Number(("attention_forward", "hopper", "share"), 0.1),
        Number(("attention_backward", "hopper", "share"), 0.1),
        Number(("memory_share", "blackwell", "loss"), 0.3),
        Number(("grouped_gemm", "hopper", "share"), 0.1),
        Number(("grouped_gemm", "blackwell", "share"), 0.1),
        Number(("quantization", "fp8"), 0.5),
        Number(("quantization", "mxfp8"), 0.5),
        Number(("quantization", "nvfp4"), 0.5),
        Number(("power", "exponent"), 0.3),
        Number(("host", "kernel_us"), 0.4),
        Number(("host", "arm"), 0.2),
        Number(("eager_experts", "passes"), 0.5),
        Number(("eager_experts", "wait_us"), 0.7),
        Number(("overlap", "interference"), 0.5),
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
    return found


_SHARES = (
    ("ampere", "bf16", 0.05),
    ("hopper", "bf16", 0.1),
    ("hopper", "fp8", 0.3),
    ("blackwell", "bf16", 0.06),
    ("blackwell", "fp8", 0.3),
    ("blackwell", "mxfp8", 0.3),
    ("blackwell", "nvfp4", 0.3),
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
    """Repeated runs of one plan count as one; datasets count by the square root of their number of plans."""
    repeated = Counter(_key(case) for case in cases)
    return np.array([1 / math.sqrt(repeated[_key(case)]) for case in cases])


def _key(case: time_cases.Case) -> tuple[Any, ...]:
    return (
        case.dataset,
        repr(sorted(case.row.items(), key=str)),
        case.machine.name,
        case.architecture.name,
        str(case.factors),
    )


def fit(
    prior: Mapping[str, Any],
    cases: list[time_cases.Case],
    start: NDArray[np.float64] | None = None,
    steps: int = 8,
    say: Callable[[str], None] = lambda text: None,
) -> NDArray[np.float64]:
    """Gauss-Newton with damping on robust residuals; returns the logarithms of the factors.

    Args:
        prior: Coefficients that kernels alone support.
        cases: Runs to fit.
        start: Where to begin; zeros by default.
        steps: Most iterations.
        say: Told the misfit of each iteration.
    """
    scale = weights(cases)
    logs = np.zeros(len(NUMBERS)) if start is None else start.copy()
    widths = np.array([number.width for number in NUMBERS])
    measured = np.array([case.measured_s for case in cases])

    def residuals(at: NDArray[np.float64]) -> NDArray[np.float64]:
        with trying(moved(prior, at)):
            predicted = np.array(time_cases.predict(cases))
        raw = scale * np.log(predicted / measured) / RESIDUAL
        # Pseudo-Huber: beyond three units a run counts linearly, so that an outlier does not steer the rest.
        return np.sign(raw) * np.sqrt(2 * 9 * (np.sqrt(1 + raw**2 / 9) - 1))

    here = residuals(logs)
    cost = float(here @ here + ((logs / widths) ** 2).sum())
    damping = 1e-2
    for step in range(steps):
        jacobian = np.empty((len(cases), len(logs)))
        for column in range(len(logs)):
            shifted = logs.copy()
            shifted[column] += 1e-3
            jacobian[:, column] = (residuals(shifted) - here) / 1e-3
        normal = jacobian.T @ jacobian + np.diag(1 / widths**2)
        gradient = jacobian.T @ here + logs / widths**2
        before = cost
        for _ in range(6):
            move = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), -gradient)
            trial = logs + np.clip(move, -0.7, 0.7)
            there = residuals(trial)
            trial_cost = float(there @ there + ((trial / widths) ** 2).sum())
            if trial_cost < cost:
                logs, here, cost = trial, there, trial_cost
                damping = max(damping / 5, 1e-6)
                break
            damping *= 5
        say(f"step {step}: misfit {cost:.1f}")
        if before - cost < 1e-3 * before:
            break
    return logs
