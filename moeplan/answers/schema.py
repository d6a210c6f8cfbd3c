"""The JSON Schemas of the published documents."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from moeplan.answers.described import add_descriptions, nested_models
from moeplan.answers.documents import Estimate, SearchDocument
from moeplan.errors import PlanError, nearest
from moeplan.plan import Plan

# What a document is read from or written to: a plan is input (keys may be left out), answers are output (none is).
_DOCUMENTS: dict[str, type[BaseModel]] = {"plan": Plan, "estimate": Estimate, "search": SearchDocument}


def schema(document: str) -> dict[str, Any]:
    """JSON Schema of ``plan``, ``estimate`` or ``search`` (raises PlanError for any other name)."""
    if document not in _DOCUMENTS:
        raise PlanError("schema", f"there is no document {document!r}", nearest(document, _DOCUMENTS))
    described = _DOCUMENTS[document].model_json_schema(mode="validation" if document == "plan" else "serialization")
    add_descriptions(described, nested_models(_DOCUMENTS[document]))
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **described}
