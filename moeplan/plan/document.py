"""The plan document itself: its row, its round trip and where it is read from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from moeplan.errors import PlanError
from moeplan.estimator.columns import DEFAULTS
from moeplan.plan.sections import (
    ActivationOffload,
    Batch,
    Hardware,
    Kernels,
    MoeOptions,
    Optimizer,
    Overlap,
    Parallel,
    Precision,
    Recompute,
    Reference,
    Section,
)

if TYPE_CHECKING:
    from moeplan.hardware import GPU
    from moeplan.model.architecture import Architecture

# A global batch that the plan leaves open is the smallest power of two of sequences per GPU with at least this many
# tokens in the batch: the 4M tokens of LLaMA (Touvron et al. 2023, Table 2) and of Llama 3's first phase.
_DEFAULT_BATCH_TOKENS = 1 << 22


class Plan(Section):
    """One complete training configuration."""

    model: Reference
    """Catalog name, path to a Hugging Face config.json or its folder, or an inline mapping."""
    hardware: Hardware
    batch: Batch = Batch()
    parallel: Parallel = Parallel()
    precision: Precision = "bf16"
    """Arithmetic of the matrix products."""
    optimizer: Optimizer = Optimizer()
    recompute: Recompute = Recompute()
    activation_offload: ActivationOffload = ActivationOffload()
    moe: MoeOptions = MoeOptions()
    mtp_layers: Annotated[int, Field(ge=0, le=1024)] | None = None
    """Multi-token-prediction layers trained; null: the model's own number."""
    kernels: Kernels = Kernels()
    framework: Literal["megatron", "fsdp2", "deepspeed"] = "megatron"
    """Whose accounting is followed."""
    overlap: Overlap = Overlap()

    @model_validator(mode="after")
    def _fill_global_batch(self) -> Plan:
        if self.batch.global_batch_size is None:
            size = default_global_batch_size(
                self.hardware.gpus, self.batch.sequence_length, self.batch.micro_batch_size
            )
            # The key stays among those that the author left out (model_fields_set), so that it is told as a default.
            values = {**dict(self.batch), "global_batch_size": size}
            filled = Batch.model_construct(_fields_set=set(self.batch.model_fields_set), **values)
            object.__setattr__(self, "batch", filled)
        return self

    def architecture(self) -> Architecture:
        """The model, read once (raises PlanError when it cannot be)."""
        return self.loaded_architecture

    def gpu(self) -> GPU:
        """The GPU, read once (raises PlanError when it cannot be)."""
        return self.loaded_gpu

    @cached_property
    def loaded_architecture(self) -> Architecture:
        """What :meth:`architecture` returns."""
        from moeplan.model import load_model

        return load_model(self.model)

    @cached_property
    def loaded_gpu(self) -> GPU:
        """What :meth:`gpu` returns."""
        from moeplan.hardware import load_gpu

        return load_gpu(self.hardware.gpu)

    @property
    def gpus_per_node(self) -> int:
        """GPUs in one host: the plan's, else the catalog's."""
        return self.hardware.gpus_per_node or self.gpu().machine().gpus_per_node

    @property
    def dp(self) -> int:
        """Data-parallel degree of attention ranks (raises PlanError when the degrees do not divide the GPUs)."""
        parallel = self.parallel
        return _quotient(self.hardware.gpus, "tp*pp*cp", parallel.tp * parallel.pp * parallel.cp)

    @property
    def edp(self) -> int:
        """Data-parallel degree of expert ranks (raises PlanError when the degrees do not divide the GPUs)."""
        parallel = self.parallel
        return _quotient(self.hardware.gpus, "pp*ep*etp", parallel.pp * parallel.ep * parallel.etp)

    @property
    def global_batch_size(self) -> int:
        """Sequences per optimizer step."""
        # The validator filled it.
        return self.batch.global_batch_size or 0

    @property
    def micro_batches(self) -> int:
        """Micro batches per step and pipeline (raises PlanError when the batch does not divide)."""
        per_pass = self.batch.micro_batch_size * self.dp
        if self.global_batch_size % per_pass:
            raise PlanError(
                "batch.global_batch_size",
                f"{self.global_batch_size} is not a multiple of micro_batch_size * dp = {per_pass}",
                f"use {max(per_pass, self.global_batch_size // per_pass * per_pass)}",
            )
        return self.global_batch_size // per_pass

    @property
    def tokens_per_step(self) -> int:
        """Tokens per optimizer step."""
        return self.global_batch_size * self.batch.sequence_length

    def row(self) -> dict[str, Any]:
        """The plan as a candidate: one plain value for every name of ``columns.DEFAULTS``.

        Raises:
            PlanError: When ``gpus_per_node`` is left to a catalog that does not know the GPU.
        """
        row = {column: getattr(getattr(self, section), key) for column, (section, key) in COLUMN_KEYS.items()}
        row |= {name: getattr(self, name) for name in TOP_KEYS}
        row["gpus_per_node"] = self.gpus_per_node
        return {name: row[name] for name in DEFAULTS}

    def with_row(self, row: Mapping[str, Any]) -> Plan:
        """This plan with the values of a candidate (any subset of the columns); the inverse of :meth:`row`.

        Raises:
            PlanError: For a column that does not exist or a value that the plan cannot hold.
        """
        updates: dict[str, Any] = {}
        for column, value in row.items():
            if column in COLUMN_KEYS:
                section, key = COLUMN_KEYS[column]
                updates[f"{section}.{key}"] = value
            elif column in TOP_KEYS:
                updates[column] = value
            else:
                raise PlanError(column, "no such column of a candidate", "use a name of columns.DEFAULTS")
        nodes = "hardware.gpus_per_node"
        if self.hardware.gpus_per_node is None and nodes in updates and updates[nodes] == self.gpus_per_node:
            del updates[nodes]
        return self.with_values(updates)

    def with_values(self, values: Mapping[str, Any]) -> Plan:
        """This plan with dotted keys (``parallel.tp``) replaced, validated again (raises PlanError)."""
        document = self.model_dump()
        for name, value in values.items():
            section, _, key = name.partition(".")
            if key and isinstance(document.get(section), dict):
                document[section][key] = value
            else:
                document[name] = value
        changed = validate_plan(document, "plan")
        # What was loaded stays valid as long as the reference is the same.
        for cached, same in (
            ("loaded_architecture", changed.model == self.model),
            ("loaded_gpu", changed.hardware.gpu == self.hardware.gpu),
        ):
            if same and cached in self.__dict__:
                changed.__dict__[cached] = self.__dict__[cached]
        return changed

    def to_mapping(self) -> dict[str, Any]:
        """The plan as plain JSON values, every key present."""
        mapping: dict[str, Any] = json.loads(self.model_dump_json())
        return mapping

    def to_yaml(self) -> str:
        """The plan as YAML, every key present, sections in the document's order."""
        from moeplan.plain_yaml import yaml_text

        return yaml_text(self.to_mapping())


# Column of a candidate -> (section, key) of the plan, where the column is not a top-level key of its own name.
COLUMN_KEYS: dict[str, tuple[str, str]] = {
    "optimizer": ("optimizer", "name"),
    "recompute": ("recompute", "granularity"),
    "recompute_modules": ("recompute", "modules"),
    "recompute_method": ("recompute", "method"),
    "recompute_layers": ("recompute", "layers"),
    "offload_modules": ("activation_offload", "modules"),
    "activation_offload_fraction": ("activation_offload", "fraction"),
    **{f"overlap_{key}": ("overlap", key) for key in Overlap.model_fields},
    **{
        key: (section, key)
        for section, part in (
            ("hardware", Hardware),
            ("batch", Batch),
            ("parallel", Parallel),
            ("optimizer", Optimizer),
            ("moe", MoeOptions),
            ("kernels", Kernels),
        )
        for key in part.model_fields
        if key not in ("gpu", "name")
    },
}
TOP_KEYS = ("precision", "mtp_layers", "framework")


def default_global_batch_size(gpus: int, sequence_length: int, micro_batch_size: int = 1) -> int:
    """Sequences per step where the plan names none: a multiple of the GPUs, so that every data-parallel degree divides.

    ``gpus * micro_batch_size * 2^k`` with the smallest k whose batch has at least 4 Mi tokens.
    """
    size = gpus * micro_batch_size
    while size * sequence_length < _DEFAULT_BATCH_TOKENS:
        size *= 2
    return size


def load_plan(source: str | Path | Mapping[str, Any] | Plan) -> Plan:
    """Read a plan from a YAML or JSON file, or validate a mapping of the same keys.

    A relative path to a model or GPU inside a plan file is looked for beside that file first, then in the current
    directory.

    Raises:
        PlanError: When the file cannot be read or is not a plan.
    """
    if isinstance(source, Plan):
        return source
    if isinstance(source, Mapping):
        return validate_plan(dict(source), "plan")
    return validate_plan(read_plan_document(Path(source)), str(source))


def read_plan_document(path: Path) -> dict[str, Any]:
    """The mapping that a plan file holds, not validated; references to files beside it are resolved.

    The answer of ``estimate --json`` or ``search --json`` is read as the (best) plan inside it.

    Raises:
        PlanError: When the file cannot be read or holds no mapping.
    """
    from moeplan.documents import read_mapping

    document = plan_inside(read_mapping(path))
    if "model" in document:
        document["model"] = _beside(document["model"], path.parent)
    hardware = document.get("hardware")
    if isinstance(hardware, Mapping):
        document["hardware"] = {**hardware, "gpu": _beside(hardware.get("gpu"), path.parent)}
    return document


def plan_inside(document: Mapping[str, Any]) -> dict[str, Any]:
    """The plan of an answer (``best``, ``plan``), or the mapping itself."""
    for wrapper in ("best", "plan"):
        inner = document.get(wrapper)
        if isinstance(inner, Mapping):
            document = inner
    return dict(document)


def _beside(reference: Any, folder: Path) -> Any:
    """The path of a referenced file that lies beside the plan file, else the reference as it is."""
    if not isinstance(reference, str) or folder == Path() or not any(mark in reference for mark in "/\\."):
        return reference
    beside = folder / reference
    return str(beside) if len(reference) < 4096 and beside.exists() else reference


def validate_plan(document: Mapping[str, Any], where: str = "plan") -> Plan:
    """Make a plan of a mapping; ``where`` names it in messages (raises PlanError)."""
    try:
        return Plan.model_validate(document)
    except ValidationError as error:
        from moeplan.documents import explain_validation

        raise explain_validation(error, where, Plan) from None


def _quotient(gpus: int, names: str, product: int) -> int:
    if gpus % product:
        raise PlanError(
            "parallel", f"{names} = {product} does not divide {gpus} GPUs", "use degrees whose product does"
        )
    return gpus // product
