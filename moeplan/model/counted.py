"""A counted model: a Mixture of Experts known by its parameter counts alone, as a sizing article would state it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from moeplan.errors import PlanError, nearest
from moeplan.model.architecture import Architecture, Layer
from moeplan.model.details import ModelDetails
from moeplan.operators.counted import CountedExperts
from moeplan.operators.embedding import Embedding, Head
from moeplan.operators.norm import Norm

KEYS = ("experts", "expert_parameters", "shared_parameters", "active_ratio", "output_dim")
MARK = "expert_parameters"
"""The key that tells a counted model from other documents."""

_UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}
_MOST_PARAMETERS = 1e17


def parse_count(where: str, value: Any) -> float:
    """A count that may be spelled ``1e9`` or ``1.5B``: YAML 1.1 reads ``1e9`` as a string.

    Raises:
        PlanError: Not a finite number.
    """
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?)\s*([KMBGTkmbgt]?)\s*", value)
        if match is None:
            raise PlanError(where, f"{value!r} is not a number", "write it like 1e9 or 1B")
        return float(match[1]) * _UNITS[match[2].upper()]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise PlanError(where, f"{value!r} is not a finite number")
    return float(value)


def read_counted(mapping: Mapping[str, Any], where: str) -> Architecture:
    """Read ``{experts, expert_parameters, shared_parameters, active_ratio, output_dim}`` (contract, section 1).

    Args:
        mapping: The document; ``shared_parameters`` defaults to 0, ``active_ratio`` to 1, ``output_dim`` to 1024,
            and ``name`` may be given.
        where: What the user called it.

    Raises:
        PlanError: Unknown, missing or impossible values.
    """
    for key in mapping:
        if key not in (*KEYS, "name"):
            raise PlanError(f"{where}: {key}", "is not a key of a counted model", nearest(str(key), KEYS, "remove it"))
    values = {"shared_parameters": 0, "active_ratio": 1.0, "output_dim": 1024} | {
        key: value for key, value in mapping.items() if value is not None
    }
    for key in ("experts", "expert_parameters"):
        if key not in values:
            raise PlanError(where, f"{key} is missing", "add it")
    counts = {key: parse_count(f"{where}: {key}", values[key]) for key in KEYS}
    bounds = {
        "experts": (1, 1e6),
        "expert_parameters": (1, _MOST_PARAMETERS),
        "shared_parameters": (0, _MOST_PARAMETERS),
        "output_dim": (1, 1e9),
    }
    for key, (least, most) in bounds.items():
        if not least <= counts[key] <= most or counts[key] != int(counts[key]):
            problem = f"{values[key]!r} is out of range"
            raise PlanError(f"{where}: {key}", problem, f"give a whole number from {least:g} to {most:g}")
    if not 0 < counts["active_ratio"] <= 1:
        raise PlanError(
            f"{where}: active_ratio", f"{values['active_ratio']!r} is out of range", "give more than 0, at most 1"
        )
    operator = CountedExperts(
        hidden=int(counts["output_dim"]),
        experts=int(counts["experts"]),
        top_k=counts["active_ratio"] * counts["experts"],
        expert_parameters=int(counts["expert_parameters"]),
        shared_parameters=int(counts["shared_parameters"]),
    )
    return Architecture(
        name=str(mapping.get("name") or "counted"),
        family="counted",
        embedding=Embedding(0, operator.hidden),
        layers=(Layer((operator,)),),
        final_norm=Norm(operator.hidden, scale=False),
        head=Head(0, operator.hidden, tied=True),
        details=ModelDetails(position="none", raw=dict(mapping)),
    )
