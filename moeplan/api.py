"""The Python API (contract, section 5): what the command line is a thin skin over."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from moeplan.answers.documents import Estimate, SearchDocument
from moeplan.answers.estimate import estimate_plan
from moeplan.estimator.price import DEFAULT_MARGIN_GIB
from moeplan.plan import Plan, load_plan, read_plan_document

if TYPE_CHECKING:
    from moeplan.answers.strategies import ComparisonDocument, MaxBatchDocument
    from moeplan.calibration import Calibration
    from moeplan.search.request import Progress


class SearchOptions(TypedDict, total=False):
    """How to search; every key may be left out.

    Attributes:
        objective: ``throughput`` (default), ``batch``, ``memory`` or ``cost``.
        sampler: ``auto`` (default), ``exhaustive``, ``tpe``, ``random`` or ``nsga2``.
        trials: Trials of an Optuna study.
        timeout_s: Seconds after which the best so far is returned.
        seed: Of the sampler.
        storage: Where Optuna keeps the study: a journal file or a database URL; nothing by default.
        study_name: Its name there.
        top: How many plans to return, each of another layout (default 10).
        workers: Threads.
        progress: Called now and then with a :class:`~moeplan.search.request.Progress`.
    """

    objective: str
    sampler: str
    trials: int | None
    timeout_s: float | None
    seed: int
    storage: str | None
    study_name: str | None
    top: int
    workers: int | None
    progress: Callable[[Progress], None] | None


def estimate(
    plan: Plan | str | Path | Mapping[str, Any],
    *,
    calibration: str | os.PathLike[str] | Mapping[str, Any] | Calibration | None = None,
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
    return estimate_plan(load_plan(plan), calibration_of(calibration), margin_gib, breakdown)


def search(
    model: str | Mapping[str, Any] | None = None,
    gpu: str | Mapping[str, Any] | None = None,
    gpus: int | None = None,
    *,
    plan: Plan | str | Path | Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    space: str | Path | Mapping[str, Any] | None = None,
    calibration: str | os.PathLike[str] | Mapping[str, Any] | Calibration | None = None,
    margin_gib: float = DEFAULT_MARGIN_GIB,
    **options: Unpack[SearchOptions],
) -> SearchDocument:
    """Find the best configurations of a model on a cluster.

    Args:
        model: Catalog name, path or mapping, as in a plan.
        gpu: Catalog name, path or mapping, as in a plan.
        gpus: GPUs in all.
        plan: A plan to start from: it says what the space does not choose. ``model``, ``gpu`` and ``gpus`` override it.
        settings: Dotted plan keys, each a value, a list of choices or ``{low, high, step | pow2}``.
        space: A search space: a shipped name, a path or a mapping; ``default`` when None.
        calibration: Factors that ``moeplan calibrate`` fitted.
        margin_gib: Memory per GPU to leave free.
        **options: See :class:`SearchOptions`.

    Returns:
        The document of the search; ``best`` is None when nothing fits.

    Raises:
        PlanError: The request cannot be used.
    """
    from moeplan.answers.search import search_plans

    return search_plans(
        _document(model, gpu, gpus, plan),
        settings or {},
        space=space,
        calibration=calibration_of(calibration),
        margin_gib=margin_gib,
        **options,
    )


def max_batch(
    model: str | Mapping[str, Any] | None = None,
    gpu: str | Mapping[str, Any] | None = None,
    gpus: int | None = None,
    *,
    plan: Plan | str | Path | Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    space: str | Path | Mapping[str, Any] | None = None,
    calibration: str | os.PathLike[str] | Mapping[str, Any] | Calibration | None = None,
    margin_gib: float = DEFAULT_MARGIN_GIB,
) -> MaxBatchDocument:
    """The largest batch that fits, per parallel strategy and over all, and what binds it.

    Arguments and errors are those of :func:`search`.
    """
    from moeplan.answers.strategies import largest_batches

    return largest_batches(
        _document(model, gpu, gpus, plan),
        settings or {},
        space=space,
        calibration=calibration_of(calibration),
        margin_gib=margin_gib,
    )


def compare(
    model: str | Mapping[str, Any] | None = None,
    gpu: str | Mapping[str, Any] | None = None,
    gpus: int | None = None,
    *,
    plan: Plan | str | Path | Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    space: str | Path | Mapping[str, Any] | None = None,
    objective: str = "throughput",
    calibration: str | os.PathLike[str] | Mapping[str, Any] | Calibration | None = None,
    margin_gib: float = DEFAULT_MARGIN_GIB,
) -> ComparisonDocument:
    """Data, tensor, expert and pipeline parallelism and their best mix, each at its best.

    Arguments and errors are those of :func:`search`.
    """
    from moeplan.answers.strategies import compared

    return compared(
        _document(model, gpu, gpus, plan),
        settings or {},
        space=space,
        objective=objective,
        calibration=calibration_of(calibration),
        margin_gib=margin_gib,
    )


def calibration_of(
    calibration: str | os.PathLike[str] | Mapping[str, Any] | Calibration | None,
) -> Calibration | None:
    """The calibration of a file or a mapping; None for none."""
    if calibration is None:
        return None
    from moeplan.calibration import load_calibration

    return load_calibration(calibration)


def _document(
    model: str | Mapping[str, Any] | None,
    gpu: str | Mapping[str, Any] | None,
    gpus: int | None,
    plan: Plan | str | Path | Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What is said about the base plan."""
    if isinstance(plan, Plan):
        document = plan.model_dump(exclude_unset=True)
    elif isinstance(plan, Mapping):
        document = dict(plan)
    else:
        document = read_plan_document(Path(plan)) if plan is not None else {}
    hardware = dict(document.get("hardware") or {})
    given = {"gpu": gpu, "gpus": gpus}
    hardware |= {key: value for key, value in given.items() if value is not None}
    if hardware:
        document["hardware"] = hardware
    if model is not None:
        document["model"] = model
    return document
