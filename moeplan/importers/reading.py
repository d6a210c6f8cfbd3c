"""One door for every framework's files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from moeplan.documents import read_text
from moeplan.errors import PlanError, nearest
from moeplan.importers.assembling import Asked
from moeplan.importers.imported import Imported

FRAMEWORKS = ("megatron", "megatron-bridge", "deepspeed", "torchtitan", "accelerate")


def read(
    framework: str,
    path: str | os.PathLike[str],
    *,
    gpu: str | Mapping[str, Any] | None = None,
    gpus: int | None = None,
    model: str | Mapping[str, Any] | None = None,
    vocabulary: int | None = None,
    gpus_per_node: int | None = None,
    variables: Mapping[str, str] | None = None,
) -> Imported:
    """Read a framework's launch file or configuration into a plan.

    Args:
        framework: One of :data:`FRAMEWORKS`.
        path: The file.
        gpu: GPU of the plan; needed unless the file was written by moeplan, which carries it.
        gpus: GPUs in all; needed where the file does not say.
        model: Catalog name, path or mapping of the model, where the file does not describe one.
        vocabulary: Tokens in the vocabulary, where a Megatron-LM script leaves that to its tokenizer.
        gpus_per_node: GPUs in one host; else the file's, else the catalog's.
        variables: Values of variables that a script leaves open; its arguments are ``1``, ``2``, ...

    Raises:
        PlanError: No such framework, or the file cannot be read into a plan.
    """
    if framework not in FRAMEWORKS:
        remedy = nearest(framework, FRAMEWORKS, f"one of {', '.join(FRAMEWORKS)}")
        raise PlanError("framework", f"moeplan does not import from {framework[:60]!r}", remedy)
    if gpus is not None and not 1 <= gpus <= 1 << 20:
        raise PlanError("--gpus", f"is {gpus}", "give a whole number above 0")
    where = os.fspath(path)
    text = read_text(path)
    if framework == "megatron":
        from moeplan.importers.megatron import read_megatron

        return read_megatron(
            text,
            gpu,
            gpus,
            gpus_per_node=gpus_per_node,
            model=model,
            vocabulary=vocabulary,
            variables=variables,
            where=where,
        )
    asked = Asked(gpu, gpus, model, gpus_per_node, variables or {})
    if framework == "deepspeed":
        from moeplan.importers.deepspeed import read_deepspeed

        return read_deepspeed(text, asked, where)
    if framework == "megatron-bridge":
        from moeplan.importers.bridge import read_bridge

        return read_bridge(text, asked, where)
    if framework == "accelerate":
        from moeplan.importers.accelerate import read_accelerate

        return read_accelerate(text, asked, where)
    from moeplan.importers.torchtitan import read_torchtitan

    return read_torchtitan(text, asked, where)
