"""Measured runs to factors: ``calibrate`` fits them, every estimate takes them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from moeplan.calibration.document import FACTORS as FACTORS
from moeplan.calibration.document import SOFTWARE as SOFTWARE
from moeplan.calibration.document import Calibration as Calibration
from moeplan.calibration.document import Errors as Errors
from moeplan.calibration.document import MeasuredKernel as MeasuredKernel
from moeplan.calibration.document import load_calibration as load_calibration
from moeplan.calibration.document import load_factors as load_factors

if TYPE_CHECKING:
    from moeplan.calibration.fit import FitResult


def calibrate(path: str | os.PathLike[str]) -> FitResult:
    """Fit factors to the runs of a file (see ``runs.read_runs``; raises PlanError where it or ``fit.fit`` does)."""
    from moeplan import __version__
    from moeplan.calibration.fit import fit
    from moeplan.calibration.runs import read_runs

    return fit(read_runs(path), f"moeplan {__version__}")


def measure_gpu(gpu: str | None = None, progress: Callable[[str], None] = lambda _: None) -> Calibration:
    """Benchmark the local GPU (see ``measure.measure``; raises PlanError without torch or a GPU)."""
    from moeplan.calibration.measure import measure

    return measure(gpu, progress=progress)
