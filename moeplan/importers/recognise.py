"""Names for imported models: a shape that the catalog or the file itself has a name for is written by that name."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from moeplan.errors import PlanError
from moeplan.model import load_model, model_names
from moeplan.model.architecture import Architecture, Layer
from moeplan.operators.moe import MoE


def same_shape(one: Architecture, other: Architecture) -> bool:
    """Whether two models have the same weights and do the same work per token.

    The experts chosen per token and the prediction depths trained may differ: a plan has keys of its own for them.
    """
    return _shape(one) == _shape(other) and (
        one.mtp_layer is None or other.mtp_layer is None or _layer(one.mtp_layer) == _layer(other.mtp_layer)
    )


def catalog_name(architecture: Architecture) -> str | None:
    """The first catalog model of the same shape, or None."""
    for name in model_names():
        known = _catalog(name)
        quick = (known.hidden, len(known.layers), known.embedding.vocabulary)
        if quick == (architecture.hidden, len(architecture.layers), architecture.embedding.vocabulary) and same_shape(
            known, architecture
        ):
            return name
    return None


def differences(named: Architecture, described: Architecture) -> dict[str, Any]:
    """The plan keys that say how ``described`` is trained otherwise than ``named``: ``moe.top_k``, ``mtp_layers``."""
    found: dict[str, Any] = {}
    if named.moe is not None and described.moe is not None and named.moe.top_k != described.moe.top_k:
        found["moe.top_k"] = described.moe.top_k
    if named.mtp_layers != described.mtp_layers:
        found["mtp_layers"] = described.mtp_layers
    return found


# Flags that fix a model's shape; what else there is says how it is trained or is written in more than one way.
_SHAPE_FLAGS = frozenset(
    [
        "num-layers",
        "hidden-size",
        "ffn-hidden-size",
        "num-attention-heads",
        "num-query-groups",
        "kv-channels",
        "attention-output-gate",
        "experimental-attention-variant",
        "linear-attention-freq",
        "linear-conv-kernel-dim",
        "linear-key-head-dim",
        "linear-value-head-dim",
        "linear-num-key-heads",
        "linear-num-value-heads",
        "num-experts",
        "moe-layer-freq",
        "moe-ffn-hidden-size",
        "moe-shared-expert-intermediate-size",
        "moe-shared-expert-gate",
        "swiglu",
        "untie-embeddings-and-output-weights",
        "vocab-size",
    ]
)


def model_by_flags(flags: Mapping[str, tuple[str, ...]], named: Sequence[Any]) -> Any | None:
    """The model that moeplan would write with these flags: for what no architecture document describes.

    Args:
        flags: The file's arguments, without dashes.
        named: Models to try before the catalog's (the one asked for, the one that the file carries).
    """
    from moeplan.launch.megatron_model import model_flags

    wanted = {name: words for name, words in flags.items() if name in _SHAPE_FLAGS}
    for reference in (*named, *model_names()):
        architecture = _catalog(reference) if reference in model_names() else load_model(reference)
        if wanted.get("hidden-size") != (str(architecture.hidden),):
            continue
        written = model_flags(architecture, None, None, 1)
        ours = {name[2:]: words for name, words in written.flags.items() if name[2:] in _SHAPE_FLAGS}
        # A model that moeplan writes no flags for is only taken at the user's word, and where its main sizes agree.
        sizes = ("num-layers", "num-experts") if written.refusals and reference in named else tuple({*ours, *wanted})
        if (not written.refusals or reference in named) and all(ours.get(s) == wanted.get(s) for s in sizes):
            return reference
    return None


def choose_model(
    document: Mapping[str, Any], asked: str | Mapping[str, Any] | None, carried: Any, where: str, notes: list[str]
) -> tuple[Any, dict[str, Any]]:
    """The plan's ``model`` for what a file describes, and the plan keys that tell the two apart.

    Args:
        document: The architecture document of what the file describes.
        asked: The model that the user names; it must have the file's shape.
        carried: The model that the file itself carries (a launch file of moeplan), or None; used where it still has the
            shape that the file describes.
        where: The file, for messages.
        notes: Remarks for the user are appended here.

    Raises:
        PlanError: ``asked`` has another shape, or the document describes no model.
    """
    described = load_model(dict(document))
    if asked is not None:
        named = load_model(asked if isinstance(asked, str) else dict(asked))
        if not same_shape(named, described):
            raise PlanError(
                where,
                f"describes another model than {named.name}: {_difference(named, described)}",
                "leave --model away, and the file's own shape is used",
            )
        return asked, differences(named, described)
    if carried is not None:
        try:
            named = load_model(carried)
        except PlanError as error:
            notes.append(f"the model that the file names cannot be read ({error}); its flags are used")
        else:
            if same_shape(named, described):
                return carried, differences(named, described)
            notes.append(f"the file names {named.name}, its flags describe another shape; the flags are used")
    name = catalog_name(described)
    if name is not None:
        return name, differences(load_model(name), described)
    return dict(document), {}


@functools.cache
def _catalog(name: str) -> Architecture:
    """A model of the catalog, read once."""
    return load_model(name)


@functools.lru_cache(maxsize=256)
def _shape(architecture: Architecture) -> tuple[Any, ...]:
    head = architecture.head
    return (
        architecture.embedding,
        tuple(_layer(layer) for layer in architecture.layers),
        architecture.final_norm,
        (head.vocabulary, head.hidden, head.tied, head.bias),
    )


def _layer(layer: Layer) -> Layer:
    # top_k has its own key; a correction bias is a buffer in some implementations and a parameter in others.
    return Layer(
        tuple(
            replace(operator, top_k=1, correction_bias=False, score_function="softmax")
            if isinstance(operator, MoE)
            else operator
            for operator in layer.operators
        )
    )


def _difference(one: Architecture, other: Architecture) -> str:
    for what, a, b in (
        ("hidden size", one.hidden, other.hidden),
        ("layers", len(one.layers), len(other.layers)),
        ("vocabulary", one.embedding.vocabulary, other.embedding.vocabulary),
        ("parameters", one.total_parameters, other.total_parameters),
    ):
        if a != b:
            return f"{what} {a:,} against the file's {b:,}"
    return "its operators differ"
