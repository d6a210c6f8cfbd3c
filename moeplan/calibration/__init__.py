"""Measured runs to factors: ``calibrate`` fits them, every estimate takes them."""

from __future__ import annotations

import os

from moeplan.calibration.document import FACTORS as FACTORS
from moeplan.calibration.document import Calibration as Calibration
from moeplan.calibration.document import Errors as Errors
from moeplan.calibration.document import load_calibration as load_calibration
from moeplan.calibration.document import load_factors as load_factors
from moeplan.calibration.fit import FitResult as FitResult
from moeplan.calibration.fit import RunError as RunError
from moeplan.calibration.fit import fit as fit
from moeplan.calibration.runs import Run as Run
from moeplan.calibration.runs import read_runs as read_runs


def calibrate(path: str | os.PathLike[str]) -> FitResult:
    """Fit factors to the runs of a file (see :func:`read_runs`; raises PlanError where it or :func:`fit` does)."""
    from moeplan import __version__

    return fit(read_runs(path), f"moeplan {__version__}")
