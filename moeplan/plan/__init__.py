"""The plan: one complete training configuration, validated, frozen and round-tripping.

Every other room reads a plan either as this document or as its flat row (:meth:`Plan.row`), whose names are those of
``estimator/columns.py``.
"""

from __future__ import annotations

from moeplan.plan.document import (
    COLUMN_KEYS,
    TOP_KEYS,
    Plan,
    default_global_batch_size,
    load_plan,
    plan_inside,
    read_plan_document,
    validate_plan,
)
from moeplan.plan.sections import (
    OFFLOAD_MODULES,
    RECOMPUTE_MODULES,
    ActivationOffload,
    Batch,
    Hardware,
    Kernels,
    MoeOptions,
    Optimizer,
    Overlap,
    Parallel,
    Recompute,
    Section,
)

__all__ = [
    "COLUMN_KEYS",
    "OFFLOAD_MODULES",
    "RECOMPUTE_MODULES",
    "TOP_KEYS",
    "ActivationOffload",
    "Batch",
    "Hardware",
    "Kernels",
    "MoeOptions",
    "Optimizer",
    "Overlap",
    "Parallel",
    "Plan",
    "Recompute",
    "Section",
    "default_global_batch_size",
    "load_plan",
    "plan_inside",
    "read_plan_document",
    "validate_plan",
]
