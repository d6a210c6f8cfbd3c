"""Damped Gauss-Newton with numerical derivatives: all the fitting that the results need."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


def jacobian(residuals: Callable[[Vector], Vector], at: Vector, here: Vector) -> NDArray[np.float64]:
    """Forward differences."""
    columns = []
    for column in range(len(at)):
        shifted = at.copy()
        shifted[column] += 1e-3
        columns.append((residuals(shifted) - here) / 1e-3)
    return np.stack(columns, axis=1)


def minimize(
    residuals: Callable[[Vector], Vector],
    start: Vector,
    widths: Vector,
    steps: int,
    say: Callable[[str], None] = lambda text: None,
) -> Vector:
    """Minimise the sum of squared residuals and of (x / widths)^2.

    Args:
        residuals: Vector to make small.
        start: Where to begin.
        widths: How far each entry may move from zero at the cost of one squared residual.
        steps: Most iterations.
        say: Told the misfit of each iteration.
    """
    here = residuals(start)
    found, cost, damping = start.copy(), float(here @ here + ((start / widths) ** 2).sum()), 1e-2
    for step in range(steps):
        slopes = jacobian(residuals, found, here)
        normal = slopes.T @ slopes + np.diag(1 / widths**2)
        gradient = slopes.T @ here + found / widths**2
        before = cost
        for _ in range(6):
            move = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), -gradient)
            trial = found + np.clip(move, -0.7, 0.7)
            there = residuals(trial)
            trial_cost = float(there @ there + ((trial / widths) ** 2).sum())
            if trial_cost < cost:
                found, here, cost = trial, there, trial_cost
                damping = max(damping / 5, 1e-6)
                break
            damping *= 5
        say(f"step {step}: misfit {cost:.1f}")
        if before - cost < 1e-3 * before:
            break
    return found


def robust(raw: Vector) -> Vector:
    """Pseudo-Huber: beyond three units a residual counts linearly, so that an outlier does not steer the rest."""
    return np.asarray(np.sign(raw) * np.sqrt(18 * (np.sqrt(1 + raw**2 / 9) - 1)))
