"""The calibration file: factors, what they were fitted on, and how much they can be trusted."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from moeplan.errors import PlanError, nearest

if TYPE_CHECKING:
    from moeplan.plan import Plan

# Factors further from 1 than this are no calibration of the same machine but a sign of a wrong plan or a broken one.
MOST = 8.0

FACTORS: Mapping[str, str] = {
    "gemm": "speed of matrix products",
    "attention": "speed of attention kernels",
    "hbm": "memory bandwidth",
    "nvlink": "bandwidth inside the NVLink domain",
    "nic": "network bandwidth",
    "host_overhead": "time per kernel launch",
    "fragmentation": "reserved over allocated memory, beyond one",
}
"""What each factor multiplies; the estimator's own figure is 1."""

SOFTWARE: Mapping[str, str] = {
    "fused_moe": "experts run by the fused path that Megatron has for MXFP8 on Blackwell since NeMo 26.06",
    "compiled": "layers of a framework's own code run through torch.compile",
}
"""What software has and a plan cannot say, as a share: 0 nothing, 1 all of it."""

Factor = Annotated[float, Field(gt=1 / MOST, lt=MOST, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]


def _among(value: dict[str, float], names: Mapping[str, str], problem: str) -> dict[str, float]:
    """A mapping whose keys are all among ``names``; raises ValueError, with the nearest, where one is not."""
    for name in value:
        if name not in names:
            raise ValueError(f"{name!r} {problem}; {nearest(name, names, ', '.join(names))}")
    return value


class Part(BaseModel):
    """A part of the document: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Errors(Part):
    """Relative errors of one measured quantity over the runs that give it, as shares (0.05 is 5 %)."""

    runs: int
    mean_before: float
    max_before: float
    mean_after: float
    max_after: float
    mean_leave_one_out: float
    """Each run predicted by a fit on the others: what to expect of a run that was not measured."""
    max_leave_one_out: float


class MeasuredKernel(Part):
    """One kernel benchmarked on the GPU."""

    kind: Literal["gemm", "grouped_gemm", "attention_forward", "attention_backward", "memory", "launch"]
    precision: str
    shape: dict[str, int]
    """Sizes by name: m, n, k, groups; batch, sequence, heads, kv_heads, head_dim; bytes."""
    measured_s: float
    """Median seconds of one run."""
    predicted_s: float | None
    """What the estimator says without calibration; None where it has no such kernel by itself."""


class Calibration(Part):
    """What ``moeplan calibrate`` and ``moeplan measure`` write and every command takes with ``--calibration``."""

    schema_version: Literal[1] = 1
    source: Literal["calibrate", "measure"]
    """Fitted to training runs, or to kernels benchmarked on one GPU."""
    made_by: str
    gpus: tuple[str, ...]
    """GPU types that were measured."""
    precisions: tuple[str, ...]
    runs: int
    factors: dict[str, Factor]
    software: dict[str, Share] = {}
    """What the software has that a plan cannot say, as told with the runs."""
    spread: dict[str, Annotated[float, Field(ge=0.0, allow_inf_nan=False)]] = {}
    """Relative standard deviation of each factor after the fit."""
    identified: dict[str, Share] = {}
    """How much of what was not known of each factor the runs tell: 0 nothing, 1 all."""
    errors: dict[str, Errors] = {}
    """By quantity: step_s, peak_reserved_gib, peak_allocated_gib."""
    kernels: tuple[MeasuredKernel, ...] = ()
    """What ``moeplan measure`` ran."""
    warnings: tuple[str, ...] = ()

    @field_validator("factors", "spread", "identified")
    @classmethod
    def _known_factors(cls, value: dict[str, float]) -> dict[str, float]:
        return _among(value, FACTORS, "is no factor")

    @field_validator("software")
    @classmethod
    def _known_software(cls, value: dict[str, float]) -> dict[str, float]:
        return _among(value, SOFTWARE, "is unknown")

    @property
    def known(self) -> dict[str, float]:
        """Everything that the estimator takes: the factors and what is known of the software."""
        return {**self.factors, **self.software}

    def expected_error(self, quantity: str = "step_s") -> float | None:
        """The mean error to expect of a run that was not measured, as a share; None where nothing tells."""
        found = self.errors.get(quantity)
        # One run leaves nothing to fit on when it is left out: that error is the uncalibrated one.
        return found.mean_leave_one_out if found is not None and found.runs > 1 else None

    def doubts(self, plan: Plan) -> tuple[str, ...]:
        """Why these factors may not hold for a plan: another GPU or another precision than was measured."""
        found = []
        gpu = plan.gpu().machine().name
        if self.gpus and gpu not in self.gpus:
            found.append(f"calibrated on {', '.join(self.gpus)}, not on {gpu}")
        if self.precisions and plan.precision not in self.precisions:
            found.append(f"calibrated in {', '.join(self.precisions)}, not in {plan.precision}")
        return tuple(found)

    def to_yaml(self) -> str:
        """The file's text."""
        import yaml

        heading = f"# moeplan calibration, {self.made_by}. Pass it to any command with --calibration.\n"
        text: str = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=120)
        return heading + text


def load_calibration(reference: str | os.PathLike[str] | Mapping[str, Any] | Calibration) -> Calibration:
    """Read a calibration from its file or its mapping.

    Raises:
        PlanError: It cannot be read, or is no calibration.
    """
    from moeplan.documents import explain_validation, read_mapping

    if isinstance(reference, Calibration):
        return reference
    where = "calibration" if isinstance(reference, Mapping) else os.fspath(reference)
    document = dict(reference) if isinstance(reference, Mapping) else read_mapping(reference)
    if "factors" not in document:
        raise PlanError(where, "is no calibration: it has no factors", "make one with 'moeplan calibrate RUNS.yaml'")
    try:
        return Calibration.model_validate(document)
    except ValidationError as error:
        raise explain_validation(error, where, Calibration) from None


def load_factors(reference: str | os.PathLike[str] | Mapping[str, Any] | Calibration) -> Mapping[str, float]:
    """What a calibration tells the estimator, by name (raises PlanError as :func:`load_calibration` does)."""
    return load_calibration(reference).known
