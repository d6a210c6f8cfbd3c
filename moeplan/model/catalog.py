"""The shipped models: one Hugging Face ``config.json`` each in ``moeplan/catalog/models``, found by name or alias."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "catalog" / "models"

ALIASES: dict[str, str] = {}
"""Further names, folded (see :func:`fold`) -> catalog name."""


def fold(name: str) -> str:
    """A name without what people vary: case, the hub's organisation, dots, underscores, dashes, and tuning suffixes."""
    name = name.casefold().rsplit("/", 1)[-1]
    return re.sub(r"[^a-z0-9]", "", name)


@cache
def model_names() -> list[str]:
    """Names of the catalog, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


@cache
def _by_folded() -> dict[str, str]:
    return ALIASES | {fold(name): name for name in model_names()}


_TUNED = ("instruct", "chat", "base", "hf", "it", "thinking", "original", "pt", "bf16", "fp8")


def resolve(reference: str) -> str | None:
    """The catalog name that a reference means, or None. A path with more than one slash is never a name."""
    if (
        reference.count("/") > 1
        or reference.startswith((".", "/", "~"))
        or reference.endswith((".json", ".yaml", ".yml"))
    ):
        return None
    folded = fold(reference)
    known = _by_folded()
    while folded not in known:
        shorter = next((folded.removesuffix(suffix) for suffix in _TUNED if folded.endswith(suffix)), folded)
        if shorter == folded or not shorter:
            return None
        folded = shorter
    return known[folded]


def load(name: str) -> dict[str, Any]:
    """The raw configuration of a catalog model."""
    value: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return value
