"""How far a predicted step time may be off, from errors on runs that the fit had not seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moeplan.estimator.machine import Machine
from moeplan.estimator.precision import precision as facts_of
from moeplan.estimator.time.coefficients import coefficients


def kind_of(precision: str, framework: str) -> str:
    """What runs are compared with: low or 16-bit (wide) precision, on Megatron's kernels or a framework's own."""
    kind = "low" if facts_of(precision).low else "wide"
    return kind if framework == "megatron" else f"{kind} eager"


def uncertainty(machine: Machine, precision: str, framework: str, calibrated: bool) -> tuple[float, float]:
    """The relative range of throughput around a prediction.

    The half-width is the cross-validated error (leave one model out, leave one GPU out, whichever is larger) that four
    in five held-out runs of the same GPU generation and kind (:func:`kind_of`) stay within; where none were measured,
    the largest of the measured generations', half as much again. With calibration the share that a factor fitted on the
    user's own runs removes in leave-one-out is taken off.

    Args:
        machine: The GPU.
        precision: The plan's precision.
        framework: The plan's framework.
        calibrated: Whether calibration factors were applied.

    Returns:
        Factors (low, high) on throughput, for example (0.9, 1.1).
    """
    data: Mapping[str, Any] = coefficients()["uncertainty"]
    measured = data["relative"]
    known = measured.get(machine.generation, {}).get(kind_of(precision, framework))
    half = float(known) if known is not None else 1.5 * max(v for entry in measured.values() for v in entry.values())
    if calibrated:
        half *= float(data["calibrated_share"])
    return 1.0 / (1.0 + half), 1.0 + half
