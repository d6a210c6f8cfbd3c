"""From whatever names a model to an :class:`Architecture`: a catalog name, a configuration on disk, or a mapping."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from moeplan import documents
from moeplan.errors import PlanError, nearest
from moeplan.model import catalog, counted, document
from moeplan.model.architecture import Architecture
from moeplan.model.families import FAMILIES
from moeplan.model.families.common import MTP_LAYERS
from moeplan.model.fields import Fields
from moeplan.model.harmless import HARMLESS, REFUSED_ANY, REFUSED_TRUE

WRAPPERS = {
    "llama4": "llama4_text",
    "qwen3_vl_moe": "qwen3_vl_moe_text",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "gemma3": "gemma3_text",
    "mistral3": "mistral",
    "aria": "aria_text",
    "glm4v_moe": "glm4v_moe_text",
    "glm5_next": "glm5_next_text",
    "kimi_vl": "deepseek_v3",
    "minimax_m3_vl": "minimax_m3_vl_text",
}
"""Multimodal ``model_type`` -> that of its ``text_config`` where it does not say so itself."""


def load_model(reference: str | Path | Mapping[str, Any]) -> Architecture:
    """Read a model.

    Args:
        reference: A catalog name or alias; the path of a Hugging Face ``config.json`` or of a folder that holds one; or
            a mapping: a Hugging Face configuration, moeplan's architecture document (``document.py``), or a counted
            model.

    Returns:
        The architecture, named after the reference.

    Raises:
        PlanError: Nothing by that name, unreadable, malformed, or an architecture that is not understood.
    """
    if isinstance(reference, Mapping):
        return read_mapping(reference, "model")
    mapping, name = _find(reference)
    architecture = read_mapping(mapping, str(reference))
    return replace(architecture, name=name)


def load_model_config(reference: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """The raw mapping behind a reference, as it stands.

    Raises:
        PlanError: Nothing by that name, unreadable or malformed.
    """
    return dict(reference) if isinstance(reference, Mapping) else _find(reference)[0]


def read_mapping(mapping: Mapping[str, Any], where: str) -> Architecture:
    """Read a mapping of any of the three forms.

    Raises:
        PlanError: What the mapping says is not understood.
    """
    if "architecture" in mapping and "model_type" not in mapping:
        return document.read_document(mapping, where)
    if counted.MARK in mapping:
        return counted.read_counted(mapping, where)
    return read_hugging_face(mapping, where)


def read_hugging_face(mapping: Mapping[str, Any], where: str) -> Architecture:
    """Read a Hugging Face configuration of a decoder; of a known multimodal one, its text model alone.

    Raises:
        PlanError: The family is unknown, or a key that may change shapes is not understood.
    """
    fields = Fields(mapping, where)
    model_type = fields.text("model_type", default=None)
    if model_type is None:
        raise PlanError(
            where,
            "model_type is missing",
            "give a Hugging Face config.json, an architecture document (architecture: decoder), or a counted model",
        )
    if model_type in WRAPPERS:
        return _read_text_model(fields, model_type)
    reader = FAMILIES.get(model_type)
    if reader is None:
        if "text_config" in mapping:
            problem = f"{model_type!r} is a multimodal model whose text model moeplan cannot tell"
            raise fields.error("model_type", problem, "give its text_config alone")
        remedy = nearest(model_type, FAMILIES, f"{len(FAMILIES)} families are known, e.g. mixtral, deepseek_v3, llama")
        raise fields.error("model_type", f"{model_type!r} is not an architecture that moeplan understands", remedy)
    for key in REFUSED_TRUE:
        if fields.raw(key, default=False) is not False:
            raise fields.error(key, "only decoders without cross-attention are understood", "remove it")
    for key in REFUSED_ANY:
        if fields.raw(key, default=None):
            raise fields.error(key, "is not understood", "remove it if the model's weights do not depend on it")
    architecture = reader(fields)
    # A switch that is off and that the family does not know switches nothing off: its class ignores it. And a family
    # without multi-token prediction may still say that it has none.
    unread = [k for k in fields.unread(HARMLESS) if mapping[k] is not False and (mapping[k] or k not in MTP_LAYERS)]
    if unread:
        key = unread[0]
        raise fields.error(
            key,
            f"{mapping[key]!r} may change the model's shape and is not understood for {model_type}",
            nearest(key, fields.read, "remove it if the model's weights do not depend on it"),
        )
    return replace(architecture, name=str(mapping.get("name") or model_type), family=model_type)


def _read_text_model(fields: Fields, model_type: str) -> Architecture:
    """The text model inside a multimodal wrapper: what trains on text, without encoders and projectors."""
    section = fields.section("text_config")
    text: dict[str, Any] = {"model_type": WRAPPERS[model_type]} | dict(section.mapping)
    tied = fields.flag("tie_word_embeddings", default=None)
    if tied is not None:
        # The wrapper's own switch decides whether its head is tied.
        text["tie_word_embeddings"] = tied
    if text["model_type"] in WRAPPERS:
        raise section.error("model_type", f"{text['model_type']!r} is no text model")
    return read_hugging_face(text, section.where)


def _find(reference: str | Path) -> tuple[dict[str, Any], str]:
    text = str(reference)
    if not text.strip():
        raise PlanError("model", "the name is empty", "see `moeplan models`")
    name = catalog.resolve(text)
    if name is not None:
        return catalog.load(name), name
    path = Path(text).expanduser()
    try:
        if path.is_dir():
            return documents.read_mapping(path / "config.json"), path.resolve().name
        if path.exists():
            return documents.read_mapping(path), (
                path.parent if path.name == "config.json" else path.with_suffix("")
            ).resolve().name
    except PlanError:
        raise
    except (OSError, ValueError) as error:
        raise PlanError(text[:200], f"cannot be read ({error})") from error
    remedy = nearest(text, catalog.model_names(), "see `moeplan models`, or give the path of a config.json")
    raise PlanError(text[:200], "no such model in the catalog and no such file", remedy)
