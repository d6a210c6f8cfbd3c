"""The docstring under each key of a document, read from the source only when a schema or a help text asks.

Pydantic can do this while it builds a model (``use_attribute_docstrings``), which would cost every command 0.1 s.
"""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import textwrap
from typing import Any

from pydantic import BaseModel


@functools.cache
def docstrings(model: type[BaseModel]) -> dict[str, str]:
    """Key -> the docstring under it, one line; keys without one are absent."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(model)))
    body = next(node for node in tree.body if isinstance(node, ast.ClassDef)).body
    found = {}
    for field, below in itertools.pairwise(body):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str):
            found[field.target.id] = inspect.cleandoc(below.value.value)
    return found


def add_descriptions(schema: dict[str, Any], models: list[type[BaseModel]]) -> None:
    """Write the docstrings of ``models`` into the properties of their JSON Schema, in place."""
    by_title = {model.__name__: docstrings(model) for model in models}
    for part in (schema, *schema.get("$defs", {}).values()):
        for key, description in by_title.get(part.get("title", ""), {}).items():
            if key in part.get("properties", {}):
                part["properties"][key].setdefault("description", description)


def nested_models(model: type[BaseModel]) -> list[type[BaseModel]]:
    """A model and every model in its fields."""
    found: dict[type[BaseModel], None] = {}

    def visit(annotation: Any) -> None:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            if annotation not in found:
                found[annotation] = None
                for field in annotation.model_fields.values():
                    visit(field.annotation)
            return
        for argument in getattr(annotation, "__args__", ()):
            visit(argument)

    visit(model)
    return list(found)
