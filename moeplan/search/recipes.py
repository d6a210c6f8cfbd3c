"""Published layouts that a study tries first, each moved to the nearest layout that is legal for the question."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moeplan.estimator.table import Table


@dataclass(frozen=True, slots=True)
class Recipe:
    """A published layout.

    Attributes:
        source: Where it was published.
        gpus: GPUs that it ran on.
        tp: Tensor parallelism.
        pp: Pipeline stages.
        cp: Context parallelism.
        ep: Expert parallelism.
        etp: Tensor parallelism of experts.
    """

    source: str
    gpus: int
    tp: int
    pp: int
    cp: int
    ep: int
    etp: int


_BRIDGE = "Megatron-Bridge docs/performance-summary.md"

RECIPES: tuple[Recipe, ...] = (
    Recipe("DeepSeek-V3 technical report, arXiv:2412.19437, section 3.2", 2048, 1, 16, 1, 64, 1),
    Recipe(f"{_BRIDGE}: DeepSeek-V3 on H100", 1024, 2, 8, 1, 64, 1),
    Recipe(f"{_BRIDGE}: Qwen3-235B-A22B on GB300", 256, 1, 4, 1, 32, 1),
    Recipe(f"{_BRIDGE}: Qwen3-235B-A22B on GB200", 256, 1, 8, 1, 32, 1),
    Recipe(f"{_BRIDGE}: Qwen3-235B-A22B on H100", 256, 2, 8, 1, 32, 1),
    Recipe(f"{_BRIDGE}: Qwen3-30B-A3B on H100", 16, 1, 1, 1, 16, 1),
    Recipe(f"{_BRIDGE}: GPT-OSS-120B on GB200", 64, 1, 1, 1, 64, 1),
    Recipe(f"{_BRIDGE}: GPT-OSS-120B on B200", 64, 1, 1, 1, 8, 1),
    Recipe(f"{_BRIDGE}: Llama 3 70B on H100", 64, 4, 8, 1, 1, 1),
    Recipe(f"{_BRIDGE}: Llama 3 70B on GB200", 64, 2, 4, 1, 1, 1),
)


def nearest_layouts(layouts: Table, gpus: int) -> list[tuple[int, str]]:
    """For each recipe the legal layout whose degrees are the closest in doublings, each layout once.

    Args:
        layouts: Legal layouts with the columns of ``layouts.DEGREES``.
        gpus: The cluster asked about; recipes of a similar size come first.

    Returns:
        Pairs of a row of ``layouts`` and the recipe's source.
    """
    names = ("tp", "pp", "cp", "ep", "etp")
    degrees = np.log2(np.stack([layouts[name] for name in names], axis=1))
    found: dict[int, str] = {}
    for recipe in sorted(RECIPES, key=lambda recipe: abs(np.log2(recipe.gpus / gpus))):
        wanted = np.log2([float(getattr(recipe, name)) for name in names])
        row = int(np.argmin(np.abs(degrees - wanted).sum(axis=1)))
        found.setdefault(row, recipe.source)
    return list(found.items())
