"""The Python API (contract, section 5): what the command line is a thin skin over."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moeplan.answers.documents import Estimate
from moeplan.answers.estimate import estimate_plan
from moeplan.estimator.price import DEFAULT_MARGIN_GIB
from moeplan.plan import Plan, load_plan


def estimate(
    plan: Plan | str | Path | Mapping[str, Any],
    *,
    calibration: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    margin_gib: float = DEFAULT_MARGIN_GIB,
    breakdown: bool = False,
) -> Estimate:
    """Estimate memory, step time, throughput and cost of a plan.

    Args:
        plan: A plan, a plan file or a mapping of the same keys.
        calibration: Factors that ``moeplan calibrate`` fitted: their file or its mapping.
        margin_gib: Memory per GPU to leave free.
        breakdown: Also tell where memory and time go.

    Raises:
        PlanError: The plan is not valid, not legal, or names a model or GPU that cannot be read.
    """
    return estimate_plan(load_plan(plan), factors_of(calibration), margin_gib, breakdown)


def factors_of(calibration: str | os.PathLike[str] | Mapping[str, Any] | None) -> Mapping[str, float] | None:
    """The factors of a calibration; None for none."""
    if calibration is None:
        return None
    from moeplan.calibration import load_factors

    return load_factors(calibration)
