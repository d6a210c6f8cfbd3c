"""The shipped models: one Hugging Face ``config.json`` each in ``moeplan/catalog/models``, found by name or alias."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "catalog" / "models"

ALIASES: dict[str, str] = {
    "llama4scout": "llama-4-scout-text",
    "llama4scout17b16e": "llama-4-scout-text",
    "llama4maverick": "llama-4-maverick-text",
    "llama4maverick17b128e": "llama-4-maverick-text",
    "deepseekr1": "deepseek-v3",
    "deepseekv31": "deepseek-v3",
    "deepseekv3": "deepseek-v3",
    "qwen3535ba3b": "qwen3.5-35b-a3b-text",
    "jamba": "jamba-v0.1",
    "olmoe": "olmoe-1b-7b",
    "flexolmo": "flex-olmo-7x7b",
    "dots1": "dots.llm1",
    "moonlight": "moonlight-16b-a3b",
    "qwen3next": "qwen3-next-80b-a3b",
    "afmoetrinitymini": "trinity-mini",
    "minimaxm21": "minimax-m2",
    "nvidianemotron3nano30ba3b": "nemotron-3-nano-30b-a3b",
    "kimilinear": "kimi-linear-48b-a3b",
    "glm45355ba32b": "glm-4.5",
    "glm45air106ba12b": "glm-4.5-air",
}
"""Further names, folded (see :func:`fold`) -> catalog name; models of equal shape share one configuration."""


def fold(name: str) -> str:
    """A name without what people vary: case, the hub's organisation, dots, underscores, dashes, and tuning suffixes."""
    name = name.casefold().rsplit("/", 1)[-1]
    return re.sub(r"[^a-z0-9]", "", name).removeprefix("meta")


@cache
def model_names() -> list[str]:
    """Names of the catalog, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


@cache
def _by_folded() -> dict[str, str]:
    return ALIASES | {fold(name): name for name in model_names()}


_TUNED = (
    *("instruct", "chat", "base", "hf", "it", "thinking", "original", "pt", "bf16", "fp8", "inst", "exp"),
    *("v01", "v02", "v03", "2507", "0924", "0125", "0324", "0528", "0905", "1t", "terminus", "dev"),
)
"""Endings of hub names that do not change the architecture."""


def resolve(reference: str) -> str | None:
    """The catalog name that a reference means, or None.

    A catalog name goes before a folder of the same name (write ``./name`` for that); a path with more than one slash or
    with a configuration's suffix is never a name.
    """
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
