"""The legality rules, one module per subject. Importing this package registers all of them in :data:`RULES`."""

from moeplan.search.rules import batch, degrees, experts, frameworks, numerics, pipeline, recompute
from moeplan.search.rules.base import RULES, Finding, Rule, View

__all__ = [
    "RULES",
    "Finding",
    "Rule",
    "View",
    "batch",
    "degrees",
    "experts",
    "frameworks",
    "numerics",
    "pipeline",
    "recompute",
]
