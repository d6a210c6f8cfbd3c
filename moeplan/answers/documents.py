"""The estimate and the search as documents: frozen pydantic models whose JSON is the published format.

GiB is 2^30 bytes; times are seconds; TFLOPS are decimal. Numbers that cannot be known (the cost on a GPU without a
price, the optimum of a search that was not exhaustive) are null.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from moeplan.plan import Plan


class Document(BaseModel):
    """A part of an answer: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class StageMemory(Document):
    """One pipeline stage's fullest rank at its peak."""

    stage: int
    peak_allocated_gib: float
    """What torch.cuda.max_memory_allocated() would read."""
    peak_reserved_gib: float
    """What torch.cuda.max_memory_reserved() would read."""
    parameters_gib: float
    gradients_gib: float
    optimizer_gib: float
    activations_gib: float
    """Saved for the backward pass, micro batches in flight included, and the transient at the peak."""
    buffers_gib: float
    """Communication and workspace buffers inside the allocator."""
    overhead_gib: float
    """Outside the allocator: driver context, communication library."""


class Memory(Document):
    """Memory of the fullest stage, and of every stage."""

    peak_allocated_gib: float
    peak_reserved_gib: float
    usable_gib: float
    """What a plan may use: the driver's capacity less the margin."""
    headroom_gib: float
    """usable less reserved less overhead; negative where the plan does not fit."""
    margin_gib: float
    """Left free on purpose."""
    stages: tuple[StageMemory, ...]


class Time(Document):
    """Seconds per optimizer step; the last four add up to the first."""

    step_s: float
    compute_s: float
    exposed_communication_s: float
    bubble_s: float
    optimizer_s: float


class Throughput(Document):
    """Speed."""

    tokens_per_s: float
    tokens_per_s_per_gpu: float
    model_tflops_per_gpu: float
    """By Megatron's formula: recomputation does not count."""
    mfu: float
    """model_tflops_per_gpu over the dense peak of the plan's precision."""


class Range(Document):
    """Bounds of a predicted figure."""

    low: float
    high: float


class Uncertainty(Document):
    """How far the step time may be off, from the cross-validated error on measured runs."""

    relative: float
    """Half width of the range, as a fraction."""
    step_s: Range
    tokens_per_s: Range
    source: str
    """What the figure rests on."""


class Parameters(Document):
    """Counts of trainable parameters."""

    total: int
    """Of the model, multi-token prediction left out."""
    active: int
    """That one token meets."""
    per_gpu: int
    """Held by the fullest rank."""
    mtp: int = 0
    """Of the multi-token-prediction layers trained."""


class Cost(Document):
    """Money and time to train; null where the GPU has no price."""

    usd_per_hour: float | None
    usd_per_billion_tokens: float | None
    days_per_trillion_tokens: float


class Part(Document):
    """One operator's or group's share."""

    name: str
    value: float


class StageBreakdown(Document):
    """Where the memory of a stage goes, operator by operator (GiB)."""

    stage: int
    holds: str
    """The operator or moment that holds the peak."""
    parts: tuple[Part, ...]
    """Every operator's share of states and saved activations, the largest first."""
    outside: tuple[Part, ...] = ()
    """What is held beyond that: the allocator's cache, driver context, NCCL, dispatch buffers."""


class Breakdown(Document):
    """Where memory and time go."""

    stages: tuple[StageBreakdown, ...]
    compute: tuple[Part, ...]
    """Seconds by operator on the slowest stage, the largest first; recomputation is told apart."""
    recompute_s: float
    """What backward runs again."""
    communication: tuple[Part, ...]
    """Exposed seconds by group."""
    walls: tuple[Part, ...]
    """Seconds by what limits them: arithmetic, HBM, NVLink, network, bubble, latency."""
    wall: str
    """The largest of them: what bounds the step."""
    speed_of_light_s: float
    """The matrix products of the slowest stage at the dense peak, nothing else."""


class Saving(Document):
    """What one change of the plan would be worth."""

    change: str
    memory_gib: float
    """Change of the device's peak; negative saves."""
    step_time: float
    """Relative change of the step time."""


class Estimate(Document):
    """What a plan needs and how fast it is."""

    schema_version: Literal[1] = 1
    plan: Plan
    fits: bool
    limit: str
    """Which stage and memory term binds."""
    memory: Memory
    time: Time
    throughput: Throughput
    parameters: Parameters
    cost: Cost
    calibrated: bool = False
    """Whether calibration factors were applied."""
    uncertainty: Uncertainty | None = None
    breakdown: Breakdown | None = None
    savings: tuple[Saving, ...] = ()
    """The cheapest ways to need less, the cheapest first."""
    assumptions: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class Candidate(Document):
    """A plan and its estimate."""

    plan: Plan
    estimate: Estimate


class NearMiss(Candidate):
    """A plan that almost fits."""

    overflow_gib: float
    """How much too much it needs."""
    change: str
    """The smallest change that would make it fit; empty when none was found."""


class Counts(Document):
    """How much was looked at."""

    candidates: int
    """Combinations of the space before any rule."""
    legal: int
    evaluated: int
    fitting: int


class Certificate(Document):
    """How good the best plan is known to be."""

    exhaustive: bool
    """Memory was priced for every legal candidate, time for every one that fits."""
    optimum: float | None
    """The best objective over the whole space; null when unknown."""
    gap: float | None
    """1 - best / optimum; 0 when exhaustive, null when unknown."""


class Study(Document):
    """The Optuna study, empty strings and zeros for an exhaustive sweep without one."""

    name: str = ""
    storage: str = ""
    trials: int = 0
    sampler: str = ""
    seed: int = 0


class SearchDocument(Document):
    """The answer of a search."""

    schema_version: Literal[1] = 1
    request: dict[str, Any]
    """What was asked, defaults included."""
    best: Candidate | None
    """Null when nothing fits."""
    top: tuple[Candidate, ...] = ()
    pareto: tuple[Candidate, ...] = ()
    """Fitting plans that no other beats in both tokens/s and peak memory."""
    near_misses: tuple[NearMiss, ...] = ()
    counts: Counts
    certificate: Certificate
    study: Study = Study()
    stopped: str = Field(default="", pattern="^(budget|interrupt)?$")
    """Why the search ended before it was done; empty when it was."""
    notes: tuple[str, ...] = Field(default=())
    """What the reader should know: opened training choices, plans closer than the uncertainty, what binds."""
