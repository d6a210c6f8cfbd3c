"""moeplan finds the largest, fastest training configuration of a Mixture-of-Experts model that fits the GPUs you have.

>>> import moeplan
>>> plan = moeplan.load_plan("plan.yaml")
>>> estimate = moeplan.estimate(plan)
>>> result = moeplan.search(model="deepseek-v3", gpu="h100", gpus=256)

Everything is imported on first use, so that ``import moeplan`` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moeplan.errors import PlanError

if TYPE_CHECKING:
    from moeplan.answers.sizing import calculate
    from moeplan.api import compare, estimate, max_batch, search
    from moeplan.hardware import load_gpu
    from moeplan.model import load_model
    from moeplan.plan import Plan, load_plan

__version__ = "0.1.0"

__all__ = [
    "Plan",
    "PlanError",
    "__version__",
    "calculate",
    "compare",
    "estimate",
    "load_gpu",
    "load_model",
    "load_plan",
    "max_batch",
    "search",
]

_HOME = {
    "Plan": "moeplan.plan",
    "load_plan": "moeplan.plan",
    "load_model": "moeplan.model",
    "load_gpu": "moeplan.hardware",
    "calculate": "moeplan.answers.sizing",
    "compare": "moeplan.api",
    "estimate": "moeplan.api",
    "max_batch": "moeplan.api",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "search":
        # The package itself, which is callable: a function of the same name would vanish when a submodule is imported.
        return import_module("moeplan.search")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
