"""Predicted against measured expert exchanges (``tests/reference/collectives.json``)."""

from __future__ import annotations

from typing import Any

import numpy as np
import time_cases

from moeplan.estimator.time.collectives import Limit, Links, reached
from moeplan.hardware import load_gpu

# DeepSeek-V3's routing in Megatron-Core: top-8 of 256 experts from 4 of 8 groups; Qwen3-30B's: top-8 of 128, no groups.
DEEPSEEK = Limit(8, 4)
ROW_BYTES = 2.0


def rows() -> list[tuple[str, float, float]]:
    """(name, measured, predicted) of every latency in microseconds and every bandwidth in GB/s."""
    found = []
    for item in time_cases.load("collectives"):
        found += _latencies(item) if item["kind"] == "comm_latency" else _bandwidths(item)
    return found


def _latencies(item: dict[str, Any]) -> list[tuple[str, float, float]]:
    found = []
    for key, measured in item["us"].items():
        gpu, library = key.split("_")
        links = Links(load_gpu({"GB200": "gb200-nvl72", "H100": "h100-sxm-80gb"}[gpu]).machine(None), {})
        span = links.span(np.array([float(item["ep"])]), 1.0)
        tokens, copies, row = np.array([float(item["tokens"])]), np.array([8.0]), np.array([item["hidden"] * ROW_BYTES])
        if library == "alltoall":
            seconds = links.all_to_all_s(span, tokens * copies * row)
        else:
            seconds = links.dispatch_s(
                span, tokens, copies, row, library.lower(), DEEPSEEK, combine=item["op"] == "combine"
            )
        found.append((f"{item['op']} EP{item['ep']} {gpu} {library} (us)", float(measured), float(seconds[0]) * 1e6))
    return found


def _bandwidths(item: dict[str, Any]) -> list[tuple[str, float, float]]:
    """BF16 rows of libraries given their full budget of multiprocessors (at 8, DeepEP is known to be slower)."""
    library = item["dispatcher"].split()[0].lower()
    if library == "deepep" and item["sms"] < 20:
        return []
    links = Links(load_gpu("h100-sxm-80gb").machine(None), {})
    size = np.array([float(item["ep"])])
    span = links.span(size, 1.0)
    small = "2048" in item["dims"]
    limit = None if small else DEEPSEEK
    tokens, copies = np.array([4096.0]), np.array([8.0])
    row = np.array([(2048 if small else 7168) * ROW_BYTES])
    seconds = [links.dispatch_s(span, tokens, copies, row, library, limit, combine) for combine in (False, True)]
    # The source counts a token once per destination: per rank inside a domain, per domain across.
    places = np.where(span.size > span.local, span.size / span.local, span.size)
    counted = tokens * row * reached(places, copies, limit)
    dispatched, combined = (float((counted / each)[0]) / 1e9 for each in seconds)
    name = f"{item['dispatcher']} EP{item['ep']} {item['dims'][:5]} {item['sms']} SMs"
    return [
        (f"{name} dispatch (GB/s)", float(item["dispatch_bf16_GBps"]), dispatched),
        (f"{name} combine (GB/s)", float(item["combine_bf16_GBps"]), combined),
    ]
