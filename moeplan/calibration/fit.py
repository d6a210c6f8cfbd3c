"""Fit a handful of physical factors to measured runs, pulled towards 1 as far as the runs leave them open.

The factors are what they are in the estimator: speeds of matrix products, attention, memory and links, the time of a
kernel launch, and fragmentation. On their logarithms theta the fit is the maximum a posteriori of

    sum over observations ((log predicted(theta) - log measured) / noise)^2 + sum over factors (theta / prior)^2,

found by Gauss-Newton with derivatives taken through the estimator itself. The inverse of the curvature at the optimum
is the covariance of theta, which says which factors the runs tell apart (MacKay 2003, Information Theory, Inference,
and Learning Algorithms, chapter 27: Laplace's method).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moeplan.calibration.document import FACTORS, MOST, Calibration, Errors
from moeplan.calibration.runs import Run
from moeplan.errors import PlanError
from moeplan.estimator.price import price
from moeplan.estimator.table import Table

Array = NDArray[np.float64]

NAMES = tuple(FACTORS)

# How far a factor may plausibly stray before anything is measured, as a standard deviation of its logarithm. Compute
# and memory speeds of one GPU type vary by power and clocks by some 5 to 15 % between systems; achieved link bandwidth
# by more (topology, congestion, NCCL's algorithm); launch overhead and fragmentation depend on host and allocator and
# vary several-fold. A prior only decides what the runs leave open.
PRIOR: Mapping[str, float] = {
    "gemm": 0.15,
    "attention": 0.2,
    "hbm": 0.15,
    "nvlink": 0.3,
    "nic": 0.3,
    "host_overhead": 0.5,
    "fragmentation": 0.5,
}
# What the estimator is off by on runs that it was not fitted to, whatever the factors (results/time.md and memory.md).
NOISE = {"step_s": 0.05, "peak_reserved_gib": 0.01, "peak_allocated_gib": 0.01}

_DIFFERENCE = 0.01
_MOST_STEPS = 12
_MOST_DAMPING = 1e4
# A step that lowers the cost by less is not worth another: one is a factor e^-0.5 of probability.
_ENOUGH = 0.02
# Below this share of its prior's uncertainty removed, a factor was not measured.
_IDENTIFIED = 0.25
_CONFOUNDED = 0.9


@dataclass(frozen=True)
class RunError:
    """One run's relative errors, predicted over measured less one, by quantity."""

    name: str
    before: Mapping[str, float]
    after: Mapping[str, float]
    leave_one_out: Mapping[str, float]


@dataclass(frozen=True)
class FitResult:
    """A calibration and the errors of every run."""

    calibration: Calibration
    runs: tuple[RunError, ...]


class Predictor:
    """Predicts runs for any factors, a table of runs at a time."""

    def __init__(self, runs: Sequence[Run]) -> None:
        """Group the runs by model, machine and software.

        Raises:
            PlanError: A run names a model or a GPU that cannot be read.
        """
        self.runs = list(runs)
        self._groups: list[tuple[Sequence[int], Run]] = []
        groups: dict[str, list[int]] = {}
        for index, run in enumerate(self.runs):
            key = repr((run.plan.model, run.plan.hardware.gpu, run.plan.gpus_per_node, sorted(run.software.items())))
            groups.setdefault(key, []).append(index)
        self._groups = [(indices, self.runs[indices[0]]) for indices in groups.values()]
        self._tables = [Table.of_rows([self.runs[index].plan.row() for index in group]) for group, _ in self._groups]

    def predict(self, factors: Mapping[str, float], only: int | None = None) -> dict[str, Array]:
        """Every quantity of every run (or of one), by name; arrays of shape (runs,), NaN where not asked for."""
        count = len(self.runs)
        found = {quantity: np.full(count, np.nan) for quantity in NOISE}
        for (indices, first), table in zip(self._groups, self._tables, strict=True):
            if only is not None and only not in indices:
                continue
            chosen = list(indices) if only is None else [only]
            rows = table if only is None else table.take(np.array([list(indices).index(only)]))
            machine = first.plan.gpu().machine(first.plan.gpus_per_node)
            try:
                prices = price(first.plan.architecture(), machine, rows, {**factors, **first.software})
            except PlanError as error:
                raise PlanError(f"{first.name}: {error.where}", error.problem, error.remedy) from None
            found["step_s"][chosen] = prices.step_s
            found["peak_reserved_gib"][chosen] = prices.peak_reserved_bytes / (1 << 30)
            found["peak_allocated_gib"][chosen] = prices.peak_allocated_bytes / (1 << 30)
        return found


@dataclass(frozen=True)
class _Observations:
    """What was measured, flat: one entry per run and quantity."""

    run: NDArray[np.int64]
    quantity: tuple[str, ...]
    log_measured: Array
    noise: Array

    @classmethod
    def of(cls, runs: Sequence[Run]) -> _Observations:
        entries = [
            (index, quantity, value)
            for index, run in enumerate(runs)
            for quantity in NOISE
            if (value := getattr(run, quantity)) is not None
        ]
        return cls(
            np.array([index for index, _, _ in entries], np.int64),
            tuple(quantity for _, quantity, _ in entries),
            np.log([value for _, _, value in entries]),
            np.array([NOISE[quantity] for _, quantity, _ in entries]),
        )

    def as_scattered(self, residuals: Array) -> _Observations:
        """The same observations with the noise that the residuals show, where it is larger than was assumed."""
        noise = self.noise.copy()
        for quantity in set(self.quantity):
            chosen = np.array([name == quantity for name in self.quantity], bool)
            shown = float(np.sqrt(np.mean(residuals[chosen] ** 2)))
            noise[chosen] = max(NOISE[quantity], shown)
        return replace(self, noise=noise)

    def residuals(self, predicted: Mapping[str, Array]) -> Array:
        """log predicted - log measured, of shape (observations,)."""
        values = [predicted[quantity][run] for run, quantity in zip(self.run, self.quantity, strict=True)]
        return np.log(values) - self.log_measured


def fit(runs: Sequence[Run], made_by: str) -> FitResult:
    """Fit the factors to the runs.

    Args:
        runs: Measured runs; those without a measurement are left out, with a warning.
        made_by: Program and version, for the file.

    Raises:
        PlanError: No run has a measurement, or one cannot be priced.
    """
    used = [run for run in runs if run.measured]
    if not used:
        raise PlanError("runs", "none has a measurement", "give step_s, tokens_per_s_per_gpu or peak_reserved_gib")
    predictor, observed = Predictor(used), _Observations.of(used)
    before = observed.residuals(predictor.predict({}))
    theta, residuals, jacobian = _gauss_newton(predictor, observed, before, np.zeros(len(NAMES)))
    scattered = observed.as_scattered(residuals)
    if not np.array_equal(scattered.noise, observed.noise):
        # The runs scatter more than the estimator's own error explains (mixed software, noisy machines): what they say
        # weighs less, or the factors would follow their noise.
        observed = scattered
        theta, residuals, jacobian = _gauss_newton(predictor, observed, residuals, theta)
    covariance = _covariance(jacobian, observed.noise)
    left_out = _leave_one_out(predictor, observed, theta, residuals, jacobian)
    prior = np.array([PRIOR[name] for name in NAMES])
    spread = np.sqrt(np.diag(covariance))
    identified = np.clip(1 - (spread / prior) ** 2, 0.0, 1.0)
    errors = _errors(observed, before, residuals, left_out)
    calibration = Calibration(
        source="calibrate",
        made_by=made_by,
        gpus=tuple(dict.fromkeys(run.plan.gpu().machine().name for run in used)),
        precisions=tuple(dict.fromkeys(run.plan.precision for run in used)),
        runs=len(used),
        factors=_rounded(np.exp(theta)),
        software=_common_software(used),
        spread=_rounded(spread),
        identified=_rounded(identified),
        errors=errors,
        warnings=(*_warnings(runs, used, identified, covariance, theta), *_useless(errors)),
    )
    return FitResult(calibration, _run_errors(used, observed, before, residuals, left_out))


def _common_software(runs: Sequence[Run]) -> dict[str, float]:
    """What all runs say of their software."""
    first = runs[0].software
    return {name: share for name, share in first.items() if all(run.software.get(name) == share for run in runs)}


def _factors(theta: Array) -> dict[str, float]:
    return dict(zip(NAMES, np.exp(theta).tolist(), strict=True))


def _gauss_newton(
    predictor: Predictor, observed: _Observations, start: Array, theta: Array
) -> tuple[Array, Array, Array]:
    """The most probable theta, from ``theta`` with its residuals ``start``, with residuals and Jacobian there.

    Levenberg's damping: step times have kinks (what binds changes), at which a full step may overshoot.
    """
    residuals, cost = start, _cost(start, observed.noise, theta)
    limit = np.log(MOST) * 0.99
    damping = 0.0
    jacobian = _jacobian(predictor, observed, theta, residuals)
    for _ in range(_MOST_STEPS):
        while True:
            wanted = _solve(residuals, jacobian, observed.noise, theta, damping)
            proposed = np.clip(wanted, -limit, limit)
            new = observed.residuals(predictor.predict(_factors(proposed)))
            lower = cost - _cost(new, observed.noise, proposed)
            if lower >= 0 or damping > _MOST_DAMPING:
                break
            damping = max(4 * damping, 1.0)
        if lower < 0:
            break
        theta, residuals, cost = proposed, new, cost - lower
        jacobian = _jacobian(predictor, observed, theta, residuals)
        damping = damping / 8 if damping > 1 / 8 else 0.0
        if lower < _ENOUGH:
            break
    return theta, residuals, jacobian


def _cost(residuals: Array, noise: Array, theta: Array) -> float:
    prior = np.array([PRIOR[name] for name in NAMES])
    return float(np.sum((residuals / noise) ** 2) + np.sum((theta / prior) ** 2))


def _jacobian(predictor: Predictor, observed: _Observations, theta: Array, residuals: Array) -> Array:
    columns = []
    for index in range(len(NAMES)):
        shifted = theta.copy()
        shifted[index] += _DIFFERENCE
        columns.append((observed.residuals(predictor.predict(_factors(shifted))) - residuals) / _DIFFERENCE)
    return np.stack(columns, axis=1)


def _solve(residuals: Array, jacobian: Array, noise: Array, theta: Array, damping: float = 0.0) -> Array:
    """The optimum of the problem linearised at ``theta``, drawn back to ``theta`` by ``damping`` priors' weight."""
    weights = 1 / noise**2
    precision = np.diag([PRIOR[name] ** -2 for name in NAMES])
    normal = jacobian.T @ (weights[:, None] * jacobian) + (1 + damping) * precision
    wanted = jacobian.T @ (weights * (jacobian @ theta - residuals)) + damping * precision @ theta
    return np.asarray(np.linalg.solve(normal, wanted), np.float64)


def _covariance(jacobian: Array, noise: Array) -> Array:
    normal = jacobian.T @ (jacobian / noise[:, None] ** 2) + np.diag([PRIOR[name] ** -2 for name in NAMES])
    return np.asarray(np.linalg.inv(normal), np.float64)


def _leave_one_out(
    predictor: Predictor, observed: _Observations, theta: Array, residuals: Array, jacobian: Array
) -> Array:
    """Residuals of every run under factors fitted to the other runs.

    The other runs' optimum is found on the problem linearised at the common optimum, which a single run moves little;
    the run itself is then predicted by the estimator, not by the linearisation.
    """
    found = np.full(residuals.shape, np.nan)
    limit = np.log(MOST) * 0.99
    for index in range(len(predictor.runs)):
        own = observed.run == index
        others = _solve(residuals[~own], jacobian[~own], observed.noise[~own], theta)
        predicted = predictor.predict(_factors(np.clip(others, -limit, limit)), only=index)
        values = [predicted[observed.quantity[at]][index] for at in np.flatnonzero(own)]
        found[own] = np.log(values) - observed.log_measured[own]
    return found


def _errors(observed: _Observations, before: Array, after: Array, left_out: Array) -> dict[str, Errors]:
    found = {}
    for quantity in NOISE:
        chosen = np.array([name == quantity for name in observed.quantity], bool)
        if not chosen.any():
            continue
        shares = [np.abs(np.expm1(values[chosen])) for values in (before, after, left_out)]
        figures = [round(float(figure), 6) for share in shares for figure in (share.mean(), share.max())]
        found[quantity] = Errors(
            runs=int(chosen.sum()),
            mean_before=figures[0],
            max_before=figures[1],
            mean_after=figures[2],
            max_after=figures[3],
            mean_leave_one_out=figures[4],
            max_leave_one_out=figures[5],
        )
    return found


def _run_errors(
    runs: Sequence[Run], observed: _Observations, before: Array, after: Array, left_out: Array
) -> tuple[RunError, ...]:
    found = []
    for index, run in enumerate(runs):
        own = np.flatnonzero(observed.run == index)
        by_quantity = [
            {observed.quantity[at]: float(np.expm1(values[at])) for at in own} for values in (before, after, left_out)
        ]
        found.append(RunError(run.name, *by_quantity))
    return tuple(found)


def _warnings(
    runs: Sequence[Run], used: Sequence[Run], identified: Array, covariance: Array, theta: Array
) -> tuple[str, ...]:
    found = []
    if len(used) < len(runs):
        found.append(f"{len(runs) - len(used)} of {len(runs)} runs have no measurement and were left out")
    for index, name in enumerate(NAMES):
        if identified[index] < _IDENTIFIED:
            found.append(f"the runs do not identify {name} ({FACTORS[name]}): it stays near 1")
        elif abs(theta[index]) > 2.5 * PRIOR[name]:
            found.append(
                f"{name} came out at {np.exp(theta[index]):.2f}, far from 1: check that the plans are what ran"
            )
    scale = np.sqrt(np.diag(covariance))
    correlation = covariance / np.outer(scale, scale)
    for first in range(len(NAMES)):
        for second in range(first + 1, len(NAMES)):
            told = min(identified[first], identified[second]) >= _IDENTIFIED
            if told and abs(correlation[first, second]) > _CONFOUNDED:
                found.append(f"the runs hardly tell {NAMES[first]} from {NAMES[second]}")
    names = list(dict.fromkeys(run.plan.gpu().machine().name for run in used))
    if len(names) > 1:
        found.append(f"the runs are on {', '.join(names)}: one set of factors for all; fit each GPU type by itself")
    if any(run.software != used[0].software for run in used):
        found.append("the runs are of different software: the file says of it only what they share")
    if len(used) < 3:
        found.append(f"{len(used)} run{'s' if len(used) > 1 else ''}: the leave-one-out error says little")
    return tuple(found)


def _useless(errors: Mapping[str, Errors]) -> list[str]:
    """Quantities that runs left out are predicted no better by a fit on the others than by no fit at all."""
    return [
        f"for {quantity} the factors do not carry over from run to run: a run left out is "
        f"{found.mean_leave_one_out:.1%} off with them, {found.mean_before:.1%} without"
        for quantity, found in errors.items()
        if found.runs > 2 and found.mean_leave_one_out > max(found.mean_before, 1e-3)
    ]


def _rounded(values: Array) -> dict[str, float]:
    return {name: round(float(value), 6) for name, value in zip(NAMES, values, strict=True)}
