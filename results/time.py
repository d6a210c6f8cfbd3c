"""Holds the time model against every measured run and writes results/time.md: python results/time.py [--fit]

With ``--fit`` the coefficients are fitted anew first (about fifteen minutes) and written beside the model.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Iterator
from itertools import combinations, groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

import time_cases  # noqa: E402
import time_collectives  # noqa: E402
import time_fit  # noqa: E402
import time_operators  # noqa: E402

from moeplan.estimator.time.coefficients import shipped, trying  # noqa: E402
from moeplan.estimator.time.uncertainty import kind_of  # noqa: E402

HERE = Path(__file__).resolve().parent
COEFFICIENTS = HERE.parent / "moeplan" / "estimator" / "time" / "coefficients.json"
TARGETS = {
    "time_measured": (0.05, 0.12),
    "throughput_published": (0.10, None),
    "throughput_frameworks": (None, None),
    "parallel_folding": (None, None),
    "moe_a100_natural_routing": (0.15, None),
    "dense_a100": (0.07, None),
}
_OTHERWISE = {"parallel_folding": "order", "throughput_frameworks": "nothing stated"}
Errors = NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fit", action="store_true", help="fit the coefficients anew")
    fitted = parser.parse_args().fit
    operators = time_operators.fits()
    prior = with_operators(json.loads((HERE / "time_prior.json").read_text()), operators)
    cases = time_cases.all_cases()
    if fitted:
        start = solution_of(prior, dict(shipped()))
        logs = time_fit.fit(prior, cases, start, say=lambda text: print(text, file=sys.stderr))
        coefficients = rounded({**time_fit.moved(prior, logs), "about": _ABOUT})
    else:
        coefficients = dict(shipped())
    with trying(coefficients):
        predicted, untold = (np.array(time_cases.predict(time_cases.batches(cases, told))) for told in (True, False))
    unseen = cross_validate(prior, cases, solution_of(prior, coefficients))
    coefficients["uncertainty"] = ranges(cases, unseen, untold / _measured(cases) - 1)
    COEFFICIENTS.write_text(json.dumps(coefficients, indent=2) + "\n", encoding="utf-8")
    with trying(coefficients):
        lines = list(report(cases, predicted, untold, unseen, operators, prior, coefficients))
    (HERE / "time.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


_ABOUT = "Fitted numbers of the time model; regenerate with: python results/time.py --fit"


def rounded(value: Any) -> Any:
    """Four significant digits."""
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def with_operators(prior: dict[str, Any], operators: list[time_operators.OperatorFit]) -> dict[str, Any]:
    """The prior with the shape terms that the measured kernels gave."""
    found = copy.deepcopy(prior)
    for fit in operators:
        numbers = dict(fit.numbers)
        if fit.section == "gemm":
            found["gemm_share"][fit.generation]["bf16"] = numbers.pop("share")
        elif fit.section == "grouped_gemm":
            numbers["share"] /= found["gemm_share"][fit.generation]["bf16"]
        found[fit.section][fit.generation].update(numbers)
    return found


def solution_of(prior: dict[str, Any], coefficients: dict[str, Any]) -> Errors:
    """Where coefficients lie, as logarithms of factors on the prior."""

    def at(data: Any, path: tuple[str, ...]) -> float:
        for key in path:
            data = data[key]
        return float(data)

    return np.array([np.log(at(coefficients, n.path) / at(prior, n.path)) for n in time_fit.NUMBERS])


def cross_validate(
    prior: dict[str, Any], cases: list[time_cases.Case], solution: Errors
) -> dict[str, dict[str, Errors]]:
    """Errors on held-out runs: leaving each model out, leaving each GPU out."""
    return {
        "model": time_fit.held_out(prior, cases, solution, lambda case: case.model),
        "GPU": time_fit.held_out(prior, cases, solution, lambda case: case.machine.name),
    }


def _label(case: time_cases.Case, kind: str) -> str:
    return case.model if kind == "model" else case.machine.name


def _by_case(cases: list[time_cases.Case], unseen: dict[str, dict[str, Errors]], kind: str) -> Errors:
    """Held-out errors in the order of the cases."""
    left = {label: iter(errors) for label, errors in unseen[kind].items()}
    return np.array([next(left[_label(case, kind)]) for case in cases])


def ranges(cases: list[time_cases.Case], unseen: dict[str, dict[str, Errors]], untold: Errors) -> dict[str, Any]:
    """The half-width that four in five runs stay within, per generation and kind of precision.

    A run's error is the largest of three: its model left out, its GPU left out, its software not told.
    """
    held_out = [np.abs(_by_case(cases, unseen, kind)) for kind in ("model", "GPU")]
    errors = np.max([*held_out, np.abs(untold)], axis=0)
    found: dict[str, dict[str, float]] = {}
    for case, _ in zip(cases, errors, strict=True):
        generation, kind = case.machine.generation, _kind(case)
        same = [
            error
            for other, error in zip(cases, errors, strict=True)
            if other.machine.generation == generation and _kind(other) == kind
        ]
        found.setdefault(generation, {})[kind] = float(f"{np.quantile(same, 0.8):.3g}")
    return {
        "about": "relative error that four in five held-out runs stay within (results/time.md); calibrated_share is "
        "what is left of it after one common factor per model, GPU and release",
        "relative": found,
        "calibrated_share": _calibrated_share(cases, errors, unseen),
    }


def _kind(case: time_cases.Case) -> str:
    return kind_of(case.row["precision"], case.row["framework"])


def _calibrated_share(cases: list[time_cases.Case], errors: Errors, unseen: dict[str, dict[str, Errors]]) -> float:
    """Held-out error left when a common factor, fitted on a group's other runs, is taken off, over the whole error."""
    signed = _by_case(cases, unseen, "model")
    left, whole = [], []
    groups: dict[str, list[int]] = {}
    for position, case in enumerate(cases):
        groups.setdefault(f"{case.dataset} {case.model} {case.machine.name} {case.release}", []).append(position)
    for positions in groups.values():
        for position in positions:
            others = [signed[other] for other in positions if other != position]
            if others:
                left.append(abs((1 + signed[position]) / (1 + float(np.median(others))) - 1))
                whole.append(abs(signed[position]))
    return float(f"{min(np.mean(left) / np.mean(whole), 1.0):.3g}")


def kendall(measured: list[float], predicted: list[float]) -> tuple[float, int]:
    """Kendall's tau over pairs that differ in measurement by more than 1 %, and the number of pairs."""
    score = pairs = 0
    for (m1, p1), (m2, p2) in combinations(zip(measured, predicted, strict=True), 2):
        if abs(m1 / m2 - 1) > 0.01:
            pairs += 1
            score += 1 if (m1 - m2) * (p1 - p2) > 0 else -1
    return (score / pairs if pairs else 1.0), pairs


def report(
    cases: list[time_cases.Case],
    predicted: Errors,
    untold: Errors,
    unseen: dict[str, dict[str, Errors]],
    operators: list[time_operators.OperatorFit],
    prior: dict[str, Any],
    coefficients: dict[str, Any],
) -> Iterator[str]:
    """The lines of results/time.md."""
    measured = np.array([case.measured_s for case in cases])
    seen = predicted / measured - 1
    yield "# Step time: predicted against measured"
    yield ""
    yield "Regenerate with `python results/time.py` (`--fit` fits the coefficients anew). Error is predicted step time"
    yield f"over measured, less one. {len(time_fit.NUMBERS)} global numbers are fitted to {len(cases)} runs;"
    yield "none belongs to a run. Published runs are priced with fused MoE kernels from NeMo 26.06 on, without before"
    yield "(factor `fused_moe`); a plan alone does not tell its software, and is priced in between."
    yield ""
    yield from _cross_validation(cases, unseen, seen, untold / measured - 1)
    yield from _never_fitted()
    yield from _orders(cases, predicted)
    yield from _kernels(operators)
    yield from _links()
    yield from _every_case(cases, predicted, unseen)
    yield from _numbers(prior, coefficients)


def _cross_validation(
    cases: list[time_cases.Case], unseen: dict[str, dict[str, Errors]], seen: Errors, untold: Errors
) -> Iterator[str]:
    yield "## Cross-validated error, and the error of the shipped fit"
    yield ""
    yield "Held out: the runs of one model (or one GPU) are predicted by a fit that saw none of them. The priors of"
    yield "`power superchip` and `power exponent blackwell` were set by what runs on these GPUs show, though: leaving a"
    yield "Blackwell GPU out is not blind to it."
    yield ""
    yield "| runs | n | leave one model out | leave one GPU out | shipped | worst | software not told | wanted |"
    yield "|---|---|---|---|---|---|---|---|"
    by_model, by_gpu = (np.abs(_by_case(cases, unseen, kind)) for kind in ("model", "GPU"))
    for dataset, (mean, worst) in TARGETS.items():
        chosen = np.array([case.dataset == dataset for case in cases])
        wanted = f"mean {mean:.0%}" + (f", worst {worst:.0%}" if worst else "") if mean else _OTHERWISE[dataset]
        yield (
            f"| {dataset} | {chosen.sum()} | {by_model[chosen].mean():.1%} | {by_gpu[chosen].mean():.1%} "
            f"| {np.abs(seen[chosen]).mean():.1%} | {np.abs(seen[chosen]).max():.1%} "
            f"| {np.abs(untold[chosen]).mean():.1%} | {wanted} |"
        )
    yield ""
    for kind in ("model", "GPU"):
        yield f"| left out {kind} | runs | mean error | bias |"
        yield "|---|---|---|---|"
        for label, errors in unseen[kind].items():
            yield f"| {label} | {len(errors)} | {np.abs(errors).mean():.1%} | {errors.mean():+.1%} |"
        yield ""


def _never_fitted() -> Iterator[str]:
    cases = time_cases.never_fitted()
    measured = _measured(cases)
    told, untold = (
        np.array(time_cases.predict(time_cases.batches(cases, tell))) / measured - 1 for tell in (True, False)
    )
    yield "## Never fitted"
    yield ""
    yield f"{len(cases)} more of NVIDIA's published runs (`tests/reference/throughput_never_fitted.json`): other models"
    yield "and GPUs, no number fitted to them. They are no blind test: their errors were seen while rules of the model"
    yield "were being written."
    yield ""
    yield "| model | GPU | precision | runs | mean error | bias | software not told |"
    yield "|---|---|---|---|---|---|---|"
    groups: dict[tuple[str, ...], list[int]] = {}
    for position, case in enumerate(cases):
        groups.setdefault((case.model, case.machine.name, str(case.row["precision"])), []).append(position)
    groups["all", "", ""] = list(range(len(cases)))
    for (model, gpu, kind), where in groups.items():
        yield (
            f"| {model} | {gpu} | {kind} | {len(where)} | {np.abs(told[where]).mean():.1%} "
            f"| {told[where].mean():+.1%} | {np.abs(untold[where]).mean():.1%} |"
        )
    yield ""


def _orders(cases: list[time_cases.Case], predicted: Errors) -> Iterator[str]:
    yield "## Order of configurations"
    yield ""
    yield "Kendall's tau over pairs of runs of one model and release (for parallel folding: one model, table and number"
    yield "of GPUs) whose measured throughput differs by more than 1 %; 0.8 is wanted where three or more differ."
    yield ""
    yield "| model and release | runs | pairs | tau |"
    yield "|---|---|---|---|"
    groups: dict[tuple[str, str], list[int]] = {}
    for position, case in enumerate(cases):
        if case.dataset in ("throughput_published", "parallel_folding"):
            groups.setdefault((case.dataset, case.group), []).append(position)
    for (_, group), positions in groups.items():
        rates = [[cases[p].tokens_per_s_per_gpu(s[p]) for p in positions] for s in (_measured(cases), predicted)]
        tau, pairs = kendall(rates[0], rates[1])
        if len(positions) >= 3:
            yield f"| {group} | {len(positions)} | {pairs} | {tau:.2f} |"
    yield ""


def _measured(cases: list[time_cases.Case]) -> Errors:
    return np.array([case.measured_s for case in cases])


def _kernels(operators: list[time_operators.OperatorFit]) -> Iterator[str]:
    yield "## Kernels"
    yield ""
    yield "905 measured shapes (`tests/reference/operator_efficiency.json`); held out: five-fold. Similar B200 shapes"
    yield "were measured in two regimes (burst and sustained clocks) up to 45 % apart; no smooth function follows that."
    yield ""
    yield "| GPU generation | kernel | shapes | mean error | held out | worst | fitted |"
    yield "|---|---|---|---|---|---|---|"
    for fit in operators:
        numbers = ", ".join(f"{name} {value:.3g}" for name, value in fit.numbers.items())
        yield (
            f"| {fit.generation} | {fit.section} | {fit.shapes} | {fit.seen:.1%} | {fit.held_out:.1%} "
            f"| {fit.worst:.0%} | {numbers} |"
        )
    yield ""


def _links() -> Iterator[str]:
    rows = time_collectives.rows()
    yield "## Expert exchanges"
    yield ""
    mean = np.mean([abs(predicted / measured - 1) for _, measured, predicted in rows])
    yield f"`tests/reference/collectives.json`, mean error {mean:.1%}."
    yield ""
    yield "| exchange | measured | predicted | error |"
    yield "|---|---|---|---|"
    for name, measured, predicted in rows:
        yield f"| {name} | {measured:.0f} | {predicted:.0f} | {predicted / measured - 1:+.0%} |"
    yield ""


def _every_case(cases: list[time_cases.Case], predicted: Errors, unseen: dict[str, dict[str, Errors]]) -> Iterator[str]:
    yield "## Every run"
    yield ""
    left = _by_case(cases, unseen, "model")
    for dataset, members in groupby(range(len(cases)), key=lambda position: cases[position].dataset):
        yield f"### {dataset}"
        yield ""
        yield "| run | measured s | predicted s | error | its model left out |"
        yield "|---|---|---|---|---|"
        for position in members:
            case = cases[position]
            error = predicted[position] / case.measured_s - 1
            yield (
                f"| {case.name} | {case.measured_s:.4g} | {predicted[position]:.4g} | {error:+.1%} "
                f"| {left[position]:+.1%} |"
            )
        yield ""


def _numbers(prior: dict[str, Any], coefficients: dict[str, Any]) -> Iterator[str]:
    yield "## Fitted numbers"
    yield ""
    yield "Prior: what kernels, links and publications support (`results/time_prior.json`); width: how far a number may"
    yield "move (one deviation, in logarithms)."
    yield ""
    yield "| number | prior | fitted | width |"
    yield "|---|---|---|---|"
    for number in time_fit.NUMBERS:
        before, after = prior, coefficients
        for key in number.path:
            before, after = before[key], after[key]
        yield f"| {' '.join(number.path)} | {before:.4g} | {after:.4g} | {number.width} |"


if __name__ == "__main__":
    main()
