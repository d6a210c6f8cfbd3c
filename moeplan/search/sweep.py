"""The exhaustive sweep: every legal candidate priced, in chunks.

The memory of every candidate is priced; its time only where an answer could depend on it (``keep.worth_timing``).
One thread does it unless asked: most arrays are so short that threads wait for the interpreter's lock, not for NumPy.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from moeplan.search.candidates import Candidates
from moeplan.search.keep import Batch, Digest, Memory, worth_timing
from moeplan.search.objectives import GIB, Objective
from moeplan.search.request import Progress, SearchRequest

CHUNK_ROWS = 1 << 19
"""Candidates priced at once: large enough to hide Python, small enough for the caches and for memory."""


def sweep(request: SearchRequest, found: Candidates, objective: Objective, memory: Memory) -> str:
    """Price every candidate and keep what is worth keeping in ``memory``.

    Returns:
        Empty when everything was priced, ``budget`` or ``interrupt`` when it was not.
    """
    deadline = None if request.timeout_s is None else time.monotonic() + request.timeout_s
    workers = request.workers or 1
    pool = ThreadPoolExecutor(workers)
    try:
        for digest in _digests(pool, workers, request, found, objective, memory):
            memory.absorb(digest)
            _report(request, objective, memory, len(found))
            if deadline is not None and time.monotonic() > deadline and memory.evaluated < len(found):
                return "budget"
    except KeyboardInterrupt:
        return "interrupt"
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return ""


def price_batch(
    request: SearchRequest, found: Candidates, objective: Objective, bodies: range | NDArray[np.int64]
) -> Batch:
    """Price the candidates of some bodies, which must be ascending: the memory of all, the time where it matters."""
    table, body = found.of(bodies)
    fitted = request.fit(table)
    headroom = fitted.headroom_bytes
    rows = worth_timing(headroom, found.layout[body], request.machine.usable_gib * GIB, request.top)
    prices, table = fitted.prices(rows), table.take(rows)
    return Batch(
        table=table,
        prices=prices,
        score=objective.score(request.machine, table, prices),
        tie=objective.among_equals(table, prices),
        group=found.layout[body[rows]],
        numbers=found.numbers(body, rows),
        evaluated=body.size,
    )


def _digests(
    pool: ThreadPoolExecutor,
    workers: int,
    request: SearchRequest,
    found: Candidates,
    objective: Objective,
    memory: Memory,
) -> Iterator[Digest]:
    """Digests of all chunks in order, at most a few chunks ahead so that memory stays bounded."""

    def work(start: int, stop: int) -> Digest:
        return memory.digest(price_batch(request, found, objective, range(start, stop)))

    if workers == 1:
        yield from (work(start, stop) for start, stop in found.spans(CHUNK_ROWS))
        return
    waiting: deque[Future[Digest]] = deque()
    for start, stop in found.spans(CHUNK_ROWS):
        waiting.append(pool.submit(work, start, stop))
        if len(waiting) > workers:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _report(request: SearchRequest, objective: Objective, memory: Memory, total: int) -> None:
    if request.progress is not None:
        best = objective.value(memory.top.held[0].score) if memory.top.held else None
        request.progress(Progress(memory.evaluated, total, best))
