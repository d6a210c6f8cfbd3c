"""The largest batch per strategy, and strategies side by side, as documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from moeplan.answers.documents import Document, Estimate
from moeplan.answers.request import build_request, told_request
from moeplan.estimator.price import GIB
from moeplan.plan import Plan
from moeplan.search.largest import max_batch
from moeplan.search.strategies import compare


class LargestBatch(Document):
    """The largest batch of one parallel strategy."""

    strategy: str
    """data, tensor, expert, pipeline or mix (the largest over all)."""
    fits: bool
    global_batch_size: int
    """Sequences in one pass of a full pipeline: micro_batch_size * dp * pp; 0 when nothing fits."""
    micro_batch_size: int
    tokens: int
    binds: str
    """What keeps it from growing."""
    plan: Plan | None
    estimate: Estimate | None


class MaxBatchDocument(Document):
    """The answer of ``max-batch``."""

    schema_version: Literal[1] = 1
    request: dict[str, Any]
    best: LargestBatch | None
    """Null when nothing fits."""
    strategies: tuple[LargestBatch, ...]


class StrategyAtBest(Document):
    """One parallel strategy at its best."""

    strategy: str
    """data, tensor, expert, pipeline or mix."""
    fits: bool
    overflow_gib: float
    """How much too much the closest plan needs; 0 where it fits."""
    reason: str
    """Why the strategy has no plan; empty where it has."""
    plan: Plan | None
    estimate: Estimate | None


class ComparisonDocument(Document):
    """The answer of ``compare``."""

    schema_version: Literal[1] = 1
    request: dict[str, Any]
    best: str | None
    """The strategy with the most tokens/s; null when none fits."""
    strategies: tuple[StrategyAtBest, ...]


def largest_batches(document: Mapping[str, Any], settings: Mapping[str, Any], **options: Any) -> MaxBatchDocument:
    """The largest batch that fits, per strategy; arguments as for :func:`build_request` (raises PlanError)."""
    question = build_request(document, settings, **{"objective": "batch", **options})
    found = []
    for largest in max_batch(question.request):
        candidate = question.told([largest.winner.row])[0] if largest.winner is not None else None
        found.append(
            LargestBatch(
                strategy=largest.strategy,
                fits=largest.global_batch_size > 0,
                global_batch_size=largest.global_batch_size,
                micro_batch_size=largest.micro_batch_size,
                tokens=largest.tokens,
                binds=largest.binds,
                plan=candidate.plan if candidate else None,
                estimate=candidate.estimate if candidate else None,
            )
        )
    fitting = [largest for largest in found if largest.fits]
    best = max(fitting, key=lambda largest: largest.global_batch_size) if fitting else None
    return MaxBatchDocument(request=told_request(question), best=best, strategies=tuple(found))


def compared(document: Mapping[str, Any], settings: Mapping[str, Any], **options: Any) -> ComparisonDocument:
    """Every strategy at its best; arguments as for :func:`build_request` (raises PlanError)."""
    question = build_request(document, settings, **options)
    found = []
    for strategy in compare(question.request):
        candidate = question.told([strategy.winner.row])[0] if strategy.winner is not None else None
        found.append(
            StrategyAtBest(
                strategy=strategy.strategy,
                fits=strategy.winner is not None and strategy.winner.fits,
                overflow_gib=max(-strategy.winner.headroom_bytes / GIB, 0.0) if strategy.winner else 0.0,
                reason=strategy.reason,
                plan=candidate.plan if candidate else None,
                estimate=candidate.estimate if candidate else None,
            )
        )
    speeds = {one.strategy: one.estimate.throughput.tokens_per_s for one in found if one.fits and one.estimate}
    best = max(speeds, key=lambda name: speeds[name]) if speeds else None
    return ComparisonDocument(request=told_request(question), best=best, strategies=tuple(found))
