"""What an import gives back: the plan, and everything in the file that the plan does not hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moeplan.plan import Plan

INERT = "does not change memory or time"
LOST = "cannot be represented"


@dataclass(frozen=True, slots=True)
class Unused:
    """One setting of the file that is not in the plan.

    Attributes:
        name: The flag or key as the file names it.
        value: Its value as text, empty for a switch.
        reason: Why it is not in the plan: begins with :data:`INERT` or :data:`LOST`, or says that it is not known.
    """

    name: str
    value: str
    reason: str

    @property
    def matters(self) -> bool:
        """Whether an estimate of the plan may differ from the run because of it."""
        return not self.reason.startswith(INERT)

    def to_mapping(self) -> dict[str, str]:
        """As plain JSON values."""
        return {"name": self.name, "value": self.value, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class Imported:
    """A plan read from another tool's file.

    Attributes:
        plan: The plan.
        unused: What could not be used, most important first.
        assumptions: What the file leaves open and how it was filled in.
    """

    plan: Plan
    unused: tuple[Unused, ...]
    assumptions: tuple[str, ...]
