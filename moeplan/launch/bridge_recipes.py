"""Megatron-Bridge's pre-training recipes, and which of them is closest to a plan.

A recipe is one Python function, ``<model>_pretrain_<N>gpu_<gpu>_<numbers>_config``; the names are those that
``megatron.bridge.recipes`` and ``megatron.bridge.perf_recipes`` export (their ``__init__.py``, Megatron-Bridge 0.6).
Numbers: bf16, fp8cs (one scale per tensor), fp8sc (one per block), fp8mx, nvfp4.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log2

from moeplan.model.architecture import Architecture

_ALL = ("bf16", "fp8cs", "fp8mx", "nvfp4")
_BLACKWELL = ("b200", "b300", "gb200", "gb300")


@dataclass(frozen=True)
class BridgeModel:
    """A model that Megatron-Bridge has recipes for.

    Attributes:
        name: First part of its recipes' names.
        families: Hugging Face model types.
        layers, hidden, experts: What tells it from others of the family; 0 experts for a dense model.
        recipes: GPU -> (number of GPUs, numbers) of its recipes.
        vocabulary: Rows of the embedding, where a model of the same shape has others; 0 for any.
    """

    name: str
    families: tuple[str, ...]
    layers: int
    hidden: int
    experts: int
    recipes: dict[str, tuple[tuple[int, tuple[str, ...]], ...]]
    vocabulary: int = 0


def _everywhere(gpus: int, numbers: tuple[str, ...] = _ALL) -> dict[str, tuple[tuple[int, tuple[str, ...]], ...]]:
    return dict.fromkeys(_BLACKWELL, ((gpus, numbers),))


def _dense(name: str, layers: int, hidden: int, gpus: int) -> BridgeModel:
    return BridgeModel(name, ("qwen3",), layers, hidden, 0, {"h100": ((gpus, ("bf16",)),)})


MODELS: tuple[BridgeModel, ...] = (
    BridgeModel(
        "qwen3_30b_a3b",
        ("qwen3_moe",),
        48,
        2048,
        128,
        {"h100": ((8, ("bf16",)), (16, ("bf16", "fp8cs")), (64, ("bf16", "fp8cs"))), **_everywhere(8)},
    ),
    BridgeModel(
        "qwen3_235b_a22b",
        ("qwen3_moe",),
        94,
        4096,
        128,
        {
            "h100": ((256, ("bf16", "fp8cs")),),
            **dict.fromkeys(_BLACKWELL, ((64, _ALL), (256, _ALL))),
        },
    ),
    BridgeModel(
        "qwen3_next_80b_a3b",
        ("qwen3_next",),
        48,
        2048,
        512,
        {"h100": ((32, ("bf16",)), (128, ("bf16", "fp8cs"))), **_everywhere(64, ("bf16", "fp8mx"))},
    ),
    BridgeModel(
        "deepseek_v3",
        ("deepseek_v3",),
        61,
        7168,
        256,
        {"h100": ((64, ("bf16", "fp8cs")), (1024, ("bf16", "fp8cs", "fp8sc"))), **_everywhere(256)},
    ),
    BridgeModel(
        "kimi_k2",
        ("kimi_k2", "deepseek_v3"),
        61,
        7168,
        384,
        {
            "h100": ((1024, ("bf16", "fp8cs", "fp8sc")),),
            "b200": ((256, ("bf16", "fp8cs", "fp8mx")),),
            "gb200": ((256, ("bf16", "fp8cs", "fp8mx")),),
            "gb300": ((256, _ALL),),
        },
    ),
    BridgeModel(
        "gpt_oss_120b",
        ("gpt_oss",),
        36,
        2880,
        128,
        {"h100": ((64, ("bf16", "fp8cs")),), **_everywhere(64, ("bf16", "fp8mx"))},
    ),
    BridgeModel("glm45_355b", ("glm4_moe",), 92, 5120, 160, {"h100": ((128, ("bf16",)),)}),
    BridgeModel("glm45_air_106b", ("glm4_moe",), 46, 4096, 128, {"h100": ((32, ("bf16",)),)}),
    BridgeModel("moonlight_16b", ("deepseek_v3",), 27, 2048, 64, {"h100": ((8, ("bf16",)),)}),
    BridgeModel(
        "llama3_8b",
        ("llama",),
        32,
        4096,
        0,
        {"h100": ((2, ("bf16", "fp8cs", "fp8mx", "nvfp4")), (8, ("bf16", "fp8cs"))), **_everywhere(8)},
        128256,
    ),
    BridgeModel(
        "llama3_70b",
        ("llama",),
        80,
        8192,
        0,
        {"h100": ((32, ("bf16",)), (64, ("bf16", "fp8cs"))), **_everywhere(64)},
        128256,
    ),
    BridgeModel(
        "llama31_405b",
        ("llama",),
        126,
        16384,
        0,
        {
            "h100": ((256, ("bf16",)), (512, ("bf16", "fp8cs")), (1024, ("bf16", "fp8cs"))),
            "b200": ((128, _ALL), (256, ("bf16", "fp8cs"))),
            "b300": ((128, _ALL),),
            "gb200": ((256, _ALL),),
            "gb300": ((256, _ALL),),
        },
        128256,
    ),
    _dense("qwen3_600m", 28, 1024, 1),
    _dense("qwen3_1p7b", 28, 2048, 1),
    _dense("qwen3_4b", 36, 2560, 2),
    _dense("qwen3_8b", 36, 4096, 4),
    _dense("qwen3_14b", 40, 5120, 8),
    _dense("qwen3_32b", 64, 5120, 16),
)

# What to look for where there is no recipe with the plan's own numbers: the nearest way to the same arithmetic.
_NEAREST_NUMBERS = {
    "fp8": ("fp8sc", "fp8cs", "fp8mx", "bf16"),
    "mxfp8": ("fp8mx", "fp8cs", "bf16"),
    "nvfp4": ("nvfp4", "fp8mx", "bf16"),
}


def bridge_model(architecture: Architecture) -> BridgeModel | None:
    """The model with the architecture's family and shape, or None where Megatron-Bridge has no recipe for it."""
    experts = architecture.moe.experts if architecture.moe is not None else 0
    shape = (len(architecture.layers), architecture.hidden, experts)
    for model in MODELS:
        same = shape == (model.layers, model.hidden, model.experts) and architecture.family in model.families
        if same and model.vocabulary in (0, architecture.embedding.vocabulary):
            return model
    return None


def closest_recipe(model: BridgeModel, generation_names: tuple[str, ...], gpus: int, precision: str) -> str:
    """The name of the recipe closest to a plan.

    The plan's GPU (or one of its generation, else any) first, then its numbers, then its number of GPUs.

    Args:
        model: What is trained.
        generation_names: Names that recipes know the plan's GPU by, the best first.
        gpus: The plan's number of GPUs.
        precision: The plan's precision.
    """
    gpu = next((name for name in generation_names if name in model.recipes), next(iter(model.recipes)))
    wanted = _NEAREST_NUMBERS.get(precision, ("bf16",))
    here = model.recipes[gpu]
    numbers = next(name for name in wanted if any(name in offered for _, offered in here))
    size = min((size for size, offered in here if numbers in offered), key=lambda size: abs(log2(size / gpus)))
    return f"{model.name}_pretrain_{size}gpu_{gpu}_{numbers}_config"
