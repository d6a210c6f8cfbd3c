"""Why a framework cannot run a plan, and what to change so that it can."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Refusal:
    """One reason why a framework cannot run a plan.

    Attributes:
        reason: What stands in the way.
        remedy: What to do about it.
        changes: Dotted plan key -> the nearest value that the framework can run; empty where no key helps (the model
            itself is beyond it).
        columns: Columns of a candidate to try other values of, where the nearest value depends on the rest of the plan.
    """

    reason: str
    remedy: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
