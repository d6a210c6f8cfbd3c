"""The fitted numbers of the time model, read once from the data file beside this module.

``results/time.py`` writes that file; what is fitted, on which measurements and with what error is in
``results/time.md``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from importlib import resources
from typing import Any

_tried: ContextVar[Mapping[str, Any] | None] = ContextVar("_tried", default=None)


def coefficients() -> Mapping[str, Any]:
    """The fitted numbers as nested mappings."""
    return _tried.get() or shipped()


@contextmanager
def trying(numbers: Mapping[str, Any]) -> Iterator[None]:
    """Use other numbers than the shipped ones inside a ``with`` block: how they are fitted."""
    token = _tried.set(numbers)
    try:
        yield
    finally:
        _tried.reset(token)


@lru_cache(maxsize=1)
def shipped() -> Mapping[str, Any]:
    """The data file as nested mappings."""
    text = (resources.files("moeplan.estimator.time") / "coefficients.json").read_text(encoding="utf-8")
    loaded: Mapping[str, Any] = json.loads(text)
    return loaded


def of_generation(section: str, generation: str) -> Mapping[str, float]:
    """A section's entry for a GPU generation, or for the nearest measured one.

    Generations without measurements take the numbers of the one that ``nearest`` names (same tensor-core design and a
    similar ratio of arithmetic to memory bandwidth): their own peak, bandwidth and number of multiprocessors still
    enter every formula.
    """
    data = coefficients()
    entries: Mapping[str, Mapping[str, float]] = data[section]
    nearest: Mapping[str, str] = data["nearest"]
    for name in (generation, nearest.get(generation, nearest["default"]), nearest["default"]):
        if name in entries:
            return entries[name]
    raise KeyError(f"{section} has no entry for {generation} or {nearest['default']}")
