"""What a search is asked and what it answers, in plain frozen values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from moeplan.estimator.machine import Machine
from moeplan.estimator.table import Table
from moeplan.model.architecture import Architecture
from moeplan.operators.base import Array
from moeplan.search.space import Space

if TYPE_CHECKING:
    from moeplan.estimator.price import Prices

SAMPLERS = ("auto", "exhaustive", "tpe", "random", "nsga2")

EXHAUSTIVE_LIMIT = 8_000_000
"""Candidates up to which ``auto`` prices every one: about ten seconds."""

DEFAULT_TRIALS = 200
"""Trials of a study that is given no budget."""

Pricer: TypeAlias = "Callable[[Table], Prices]"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a search is.

    Attributes:
        done: Candidates priced, or trials told.
        total: Of how many; 0 when unknown.
        best: The best value so far in the objective's unit, or None while nothing fits.
    """

    done: int
    total: int
    best: float | None


@dataclass(frozen=True)
class SearchRequest:
    """A question to the search.

    Attributes:
        architecture: The model.
        machine: The GPU.
        base: The plan that the search starts from, as a row.
        space: What may be chosen.
        objective: throughput, batch, memory or cost.
        sampler: One of :data:`SAMPLERS`.
        trials: Trials of a study in all, those of earlier runs included; None: :data:`DEFAULT_TRIALS`.
        timeout_s: Seconds after which the best so far is returned.
        seed: Of the sampler.
        storage: Where Optuna keeps the study: None for memory, a path to a journal file, or a database URL.
        study_name: Name in the storage; an existing study of that name is continued.
        top: How many plans to return, each of another layout.
        limit: Candidates up to which ``auto`` is exhaustive.
        factors: Calibration factors.
        margin_gib: Memory to leave free; None: the estimator's default.
        workers: Threads; None: one.
        pricer: Prices a table; None: the estimator's.
        progress: Called now and then, from the thread that asked.
    """

    architecture: Architecture
    machine: Machine
    base: Mapping[str, Any]
    space: Space
    objective: str = "throughput"
    sampler: str = "auto"
    trials: int | None = None
    timeout_s: float | None = None
    seed: int = 0
    storage: str | None = None
    study_name: str | None = None
    top: int = 10
    limit: int = EXHAUSTIVE_LIMIT
    factors: Mapping[str, float] | None = None
    margin_gib: float | None = None
    workers: int | None = None
    pricer: Pricer | None = None
    progress: Callable[[Progress], None] | None = None

    def fit(self, table: Table) -> Fitted:
        """Price the memory of a table as the request says; its time is priced row by row where it is asked for."""
        pricer = self.pricer
        if pricer is not None:
            return Fitted(table, pricer(table).headroom_bytes, lambda rows: pricer(table.take(rows)))
        from moeplan.estimator.price import DEFAULT_MARGIN_GIB, fit, timed

        margin = DEFAULT_MARGIN_GIB if self.margin_gib is None else self.margin_gib
        found = fit(self.architecture, self.machine, table, self.factors, margin)
        return Fitted(
            table,
            found.headroom_bytes,
            lambda rows: timed(self.architecture, self.machine, found.take(rows), self.factors),
        )

    def price(self, table: Table) -> Prices:
        """Price a table as the request says."""
        return self.fit(table).prices(np.arange(table.rows))


@dataclass(frozen=True)
class Fitted:
    """A table whose memory is priced.

    Attributes:
        table: The candidates.
        headroom_bytes: Memory left, negative where a candidate does not fit; shape (rows,).
        prices: All prices of some rows, which must be in order.
    """

    table: Table
    headroom_bytes: Array
    prices: Callable[[NDArray[np.int64]], Prices]

    @property
    def fits(self) -> NDArray[np.bool_]:
        """Candidates that fit; shape (rows,)."""
        return self.headroom_bytes >= 0


@dataclass(frozen=True)
class Winner:
    """One candidate that is worth telling.

    Attributes:
        row: Every column of the candidate.
        value: In the objective's unit.
        score: The same, larger is better.
        tie: Decides among equal scores, larger is better.
        number: Of the candidate in the search; decides last, so that answers do not depend on the order of work.
        group: Number of its layout.
        tokens_per_s: Throughput.
        step_s: Seconds per optimizer step.
        device_bytes: Memory needed on the fullest GPU.
        headroom_bytes: Memory left; negative where it does not fit.
    """

    row: Mapping[str, Any]
    value: float
    score: float
    tie: float
    number: int
    group: int
    tokens_per_s: float
    step_s: float
    device_bytes: float
    headroom_bytes: float

    @property
    def fits(self) -> bool:
        """Whether it fits."""
        return self.headroom_bytes >= 0

    @property
    def rank(self) -> tuple[float, float, int]:
        """Sorts the best first."""
        return (-self.score, -self.tie, self.number)


@dataclass(frozen=True, slots=True)
class Counts:
    """How much was looked at.

    Attributes:
        candidates: Combinations of the space before any rule.
        legal: Candidates that every rule allows.
        evaluated: Candidates priced.
        fitting: Of those, candidates that fit.
    """

    candidates: int = 0
    legal: int = 0
    evaluated: int = 0
    fitting: int = 0


@dataclass(frozen=True, slots=True)
class Certificate:
    """How good the best is known to be.

    Attributes:
        exhaustive: Memory was priced for every legal candidate, time for every one that fits.
        optimum: The best value of the whole space, None when unknown.
        gap: 1 - best / optimum (0 when exhaustive), None when unknown.
    """

    exhaustive: bool = False
    optimum: float | None = None
    gap: float | None = None


@dataclass(frozen=True, slots=True)
class StudyFacts:
    """The Optuna study behind an answer; empty for a sweep that no storage records."""

    name: str = ""
    storage: str = ""
    trials: int = 0
    sampler: str = ""
    seed: int = 0


@dataclass(frozen=True)
class SearchOutcome:
    """The answer of a search.

    Attributes:
        top: The best candidates that fit, each of another layout, the best first.
        pareto: Fitting candidates that no other beats in both tokens/s and memory, the leanest first.
        near_misses: The closest to fitting when nothing fits; otherwise the faster ones that fail by little.
        counts: How much was looked at.
        certificate: How good the best is known to be.
        study: The Optuna study, where there was one.
        stopped: ``budget`` or ``interrupt`` when the search ended before it was done, else empty.
        objective: Name of the objective.
        unit: Of every ``value``.
        changes_training: Columns that the space opened and that change what is trained.
    """

    top: tuple[Winner, ...]
    pareto: tuple[Winner, ...]
    near_misses: tuple[Winner, ...]
    counts: Counts
    certificate: Certificate
    objective: str
    unit: str
    study: StudyFacts = field(default_factory=StudyFacts)
    stopped: str = ""
    changes_training: tuple[str, ...] = ()

    @property
    def best(self) -> Winner | None:
        """The best candidate that fits, if any does."""
        return self.top[0] if self.top else None
