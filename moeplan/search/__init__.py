"""From a space to the best plans: legality, layouts, the exhaustive sweep and the Optuna study.

The names below load on first use, so that importing this package costs nothing. The package can also be called:
``moeplan.search(model=..., gpu=..., gpus=...)`` is the Python API's search (``moeplan/api.py``), since a function and a
package cannot share a name.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moeplan.search.engine import search
    from moeplan.search.largest import max_batch
    from moeplan.search.request import Progress, SearchOutcome, SearchRequest, Winner
    from moeplan.search.space import Space, load_space, space_names
    from moeplan.search.strategies import compare

_HOMES = {
    "search": "engine",
    "compare": "strategies",
    "max_batch": "largest",
    "Progress": "request",
    "SearchOutcome": "request",
    "SearchRequest": "request",
    "Winner": "request",
    "Space": "space",
    "load_space": "space",
    "space_names": "space",
}

__all__ = [
    "Progress",
    "SearchOutcome",
    "SearchRequest",
    "Space",
    "Winner",
    "compare",
    "load_space",
    "max_batch",
    "search",
    "space_names",
]


class _Package(ModuleType):
    """This package, callable."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Search as the Python API does."""
        return import_module("moeplan.api").search(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in _HOMES:
            return getattr(import_module(f"moeplan.search.{_HOMES[name]}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


sys.modules[__name__].__class__ = _Package
