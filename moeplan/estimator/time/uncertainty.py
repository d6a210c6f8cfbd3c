"""How far a predicted step time may be off, from errors on runs that the fit had not seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moeplan.estimator.machine import Machine
from moeplan.estimator.precision import precision as facts_of
from moeplan.estimator.time.coefficients import coefficients


def uncertainty(machine: Machine, precision: str, calibrated: bool) -> tuple[float, float]:
    """The relative range of throughput around a prediction.

    The half-width is the cross-validated error (leave one model out, leave one GPU out, whichever is larger) that four
    in five held-out runs of the same GPU generation and kind of precision stay within; where none were measured, the
    largest of the measured generations', half as much again. With calibration the share that a factor fitted on the
    user's own runs removes in leave-one-out is taken off.

    Args:
        machine: The GPU.
        precision: The plan's precision.
        calibrated: Whether calibration factors were applied.

    Returns:
        Factors (low, high) on throughput, for example (0.9, 1.1).
    """
    data: Mapping[str, Any] = coefficients()["uncertainty"]
    kind = "low" if facts_of(precision).low else "wide"
    measured = data["relative"]
    known = measured.get(machine.generation, {}).get(kind)
    half = float(known) if known is not None else 1.5 * max(v for entry in measured.values() for v in entry.values())
    if calibrated:
        half *= float(data["calibrated_share"])
    return 1.0 / (1.0 + half), 1.0 + half
