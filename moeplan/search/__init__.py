"""From a space to the best plans: legality, layouts, the exhaustive sweep and the Optuna study.

The names below load on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moeplan.search.engine import search
    from moeplan.search.request import Progress, SearchOutcome, SearchRequest, Winner
    from moeplan.search.space import Space, load_space, space_names

_HOMES = {
    "search": "engine",
    "Progress": "request",
    "SearchOutcome": "request",
    "SearchRequest": "request",
    "Winner": "request",
    "Space": "space",
    "load_space": "space",
    "space_names": "space",
}

__all__ = ["Progress", "SearchOutcome", "SearchRequest", "Space", "Winner", "load_space", "search", "space_names"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"moeplan.search.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
