"""What every reader but Megatron's does after reading its file's words: hardware, model, batch, plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from moeplan.errors import PlanError
from moeplan.frameworks.carried import Carried, plan_from
from moeplan.plan import Plan


@dataclass(frozen=True)
class Asked:
    """What the user says beside the file.

    Attributes:
        gpu: GPU of the plan, or None.
        gpus: GPUs in all, or None.
        model: The model, or None.
        gpus_per_node: GPUs in one host, or None.
        variables: Values of variables that a script leaves open.
    """

    gpu: str | Mapping[str, Any] | None = None
    gpus: int | None = None
    model: str | Mapping[str, Any] | None = None
    gpus_per_node: int | None = None
    variables: Mapping[str, str] = field(default_factory=dict)


def whole_number(where: str, name: str, value: Any, least: int = 1) -> None:
    """Check a value of a file (raises PlanError when it is no whole number from ``least`` on)."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= 1 << 40:
        raise PlanError(where, f"{name} is {str(value)[:40]!r}", f"give a whole number from {least} on")


def words_of(
    reader: Callable[[Mapping[str, Any]], dict[str, Any]], document: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """What a framework's words say about a plan (raises PlanError where one of them is of a kind that it cannot be)."""
    try:
        return reader(document)
    except (TypeError, ValueError, AttributeError) as error:
        raise PlanError(where, f"holds a value of the wrong kind ({error})", "correct it") from None


def with_hardware(values: dict[str, Any], asked: Asked, where: str, found_gpus: int | None = None) -> dict[str, Any]:
    """The values with GPU, number of GPUs and model: as asked, else as the file has them.

    Raises:
        PlanError: One of them is said nowhere.
    """
    said = {
        "hardware.gpu": asked.gpu,
        "hardware.gpus": asked.gpus if asked.gpus is not None else found_gpus,
        "hardware.gpus_per_node": asked.gpus_per_node,
        "model": asked.model,
    }
    merged = {**values, **{key: value for key, value in said.items() if value is not None}}
    for key, option in (("hardware.gpu", "--gpu NAME"), ("hardware.gpus", "--gpus N"), ("model", "--model NAME")):
        if merged.get(key) is None:
            what = {"hardware.gpu": "on which GPU", "hardware.gpus": "on how many GPUs", "model": "which model"}[key]
            raise PlanError(where, f"does not say {what} it trains", f"pass {option}")
    return merged


def dense_ranks(values: Mapping[str, Any], where: str) -> int:
    """The data-parallel degree (raises PlanError where the degrees do not divide the GPUs)."""
    degrees = {key: values.get(f"parallel.{key}", 1) for key in ("tp", "pp", "cp")}
    for key, degree in degrees.items():
        if isinstance(degree, bool) or not isinstance(degree, int) or not 1 <= degree <= 1 << 20:
            raise PlanError(where, f"{key} is {str(degree)[:40]!r}", "give a whole number above 0")
    product = int(degrees["tp"] * degrees["pp"] * degrees["cp"])
    gpus = int(values["hardware.gpus"])
    if gpus % product:
        raise PlanError(where, f"tp*pp*cp = {product} does not divide {gpus} GPUs", "check --gpus")
    return gpus // product


def finish(values: Mapping[str, Any], where: str) -> Plan:
    """The plan of the values (raises PlanError, naming the file, when they make none)."""
    try:
        plan = plan_from(values)
        plan.architecture()
    except PlanError as error:
        raise PlanError(f"{where}: {error.where}", error.problem, error.remedy) from None
    return plan


def left_open(values: Mapping[str, Any], carried: Carried | None, keys: Mapping[str, str]) -> list[str]:
    """Remarks on keys that neither the file's words nor its carried line give: the plan's defaults hold."""
    if carried is not None:
        return []
    return [
        f"{what}: the file does not say; {key} keeps the plan's default"
        for key, what in keys.items()
        if key not in values
    ]
