"""Flags for every key of a plan, made from the plan document itself, and ``--set`` for any key by its dotted name."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import click
from pydantic import BaseModel

from moeplan.documents import parse_mapping
from moeplan.errors import PlanError
from moeplan.plan import COLUMN_KEYS, TOP_KEYS, Plan, plan_inside, read_plan_document, validate_plan

Command = TypeVar("Command", bound=Callable[..., Any])

_SHORTER = {
    "sequence_length": "--seq",
    "micro_batch_size": "--mbs",
    "global_batch_size": "--gbs",
}


@dataclass(frozen=True)
class Setting:
    """One key of a plan as a flag.

    Attributes:
        name: Column of a candidate; the flag is the same with dashes.
        key: Dotted key of the plan.
        kind: bool, int, float, str or list.
        choices: The names allowed, empty where any value of the kind is.
        part: The part of the plan that holds the key.
    """

    name: str
    key: str
    kind: type
    choices: tuple[str, ...]
    part: type[BaseModel]

    @property
    def help(self) -> str:
        """The key's docstring, with the choices."""
        from moeplan.answers.described import docstrings

        about = docstrings(self.part).get(self.key.rpartition(".")[2], "").rstrip(".")
        return f"{about} ({', '.join(self.choices)})." if self.choices else f"{about}."

    @property
    def flags(self) -> tuple[str, ...]:
        """The option's names."""
        flag = f"--{self.name.replace('_', '-')}"
        if self.kind is bool:
            return (f"{flag}/--no-{flag[2:]}",)
        return (flag, _SHORTER[self.name]) if self.name in _SHORTER else (flag,)


def settings() -> list[Setting]:
    """Every key of a plan but the model, in the document's order."""
    keys = {f"{section}.{key}": column for column, (section, key) in COLUMN_KEYS.items()}
    keys |= {"hardware.gpu": "gpu"} | {name: name for name in TOP_KEYS}
    found = []
    for top, field in Plan.model_fields.items():
        inner = field.annotation
        parts: Mapping[str, Any] = {top: field}
        owner: type[BaseModel] = Plan
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            owner = inner
            parts = {f"{top}.{key}": part for key, part in inner.model_fields.items()}
        for key, part in parts.items():
            if key in keys:
                kind, choices = _kind(part.annotation)
                found.append(Setting(keys[key], key, kind, choices, owner))
    return found


def plan_options(command: Command) -> Command:
    """Add a flag for every key of a plan, and ``--set``; each flag holds one value."""
    command = click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Set any key of the plan.")(
        command
    )
    for setting in reversed(settings()):
        command = _option(setting, _TYPES.get(setting.kind, click.STRING))(command)
    return command


def space_options(command: Command) -> Command:
    """As :func:`plan_options`, for a search space: a flag holds one value or several separated by commas."""
    command = click.option(
        "--set",
        "assignments",
        multiple=True,
        metavar="KEY=VALUE",
        help="Set any key of the space: a value, a list '[1, 2]' or a range '{low: 1, high: 8, pow2: true}'.",
    )(command)
    for setting in reversed(settings()):
        command = _option(setting, click.STRING)(command)
    return command


def chosen(values: Mapping[str, Any], several: bool = False) -> dict[str, Any]:
    """The dotted keys that flags and ``--set`` gave, in the order of precedence (``--set`` wins).

    Args:
        values: What click parsed, by parameter name.
        several: A flag may hold several values (a search space).
    """
    given: dict[str, Any] = {}
    for setting in settings():
        value = values.get(setting.name)
        if value is None:
            continue
        given[setting.key] = _several(setting, value) if several else _single(setting, value)
    # Naming what to recompute says that something is.
    if "recompute.granularity" not in given:
        if "recompute.modules" in given:
            given["recompute.granularity"] = "selective"
        elif "recompute.layers" in given or "recompute.method" in given:
            given["recompute.granularity"] = "full"
    for assignment in values.get("assignments", ()):
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise PlanError("--set", f"{assignment!r} is not KEY=VALUE", "write it like parallel.tp=2")
        given[key.strip()] = parse_mapping(f"value: {text}", f"--set {key.strip()}").get("value")
    return given


def put(document: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a document with dotted keys replaced (raises PlanError where a part on the way is no mapping)."""
    result = dict(document)
    for dotted, value in values.items():
        *path, last = dotted.split(".")
        place = result
        for part in path:
            inner = place.get(part, {})
            if inner is None:
                inner = {}
            if not isinstance(inner, Mapping):
                raise PlanError(dotted, f"{part!r} holds a single value, so nothing inside it can be set")
            place[part] = dict(inner)
            place = place[part]
        place[last] = value
    return result


def document_of(reference: str) -> tuple[dict[str, Any], str]:
    """What PLAN_OR_MODEL means: a plan's mapping, or a mapping that names a model only; and its name in messages.

    A file is a plan when it holds the key ``hardware``; an estimate or a search is the plan inside it. ``-`` reads a
    plan from standard input.
    """
    if reference == "-":
        return plan_inside(parse_mapping(sys.stdin.read(), "standard input")), "standard input"
    path = Path(reference)
    if path.suffix.lower() in (".yaml", ".yml") or (path.suffix.lower() == ".json" and path.is_file()):
        document = read_plan_document(path)
        if "hardware" in document:
            return document, reference
    return {"model": reference}, "command line"


def plan_of(reference: str, values: Mapping[str, Any]) -> Plan:
    """The plan that PLAN_OR_MODEL and the flags make (raises PlanError)."""
    document, where = document_of(reference)
    document = put(document, chosen(values))
    hardware = document.get("hardware", {})
    for key in ("gpu", "gpus"):
        if where == "command line" and isinstance(hardware, Mapping) and hardware.get(key) is None:
            raise PlanError(where, f"hardware.{key} is missing", f"name it with --{key}")
    return validate_plan(document, where)


class _PlanOption(click.Option):
    """An option whose help is read from the plan's source when help is printed."""

    def __init__(self, *arguments: Any, setting: Setting, **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.setting = setting

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """As click, with the key's docstring."""
        self.help = self.setting.help
        return super().get_help_record(ctx)


def _option(setting: Setting, kind: click.ParamType[Any]) -> Callable[[Command], Command]:
    flags = setting.flags
    if setting.kind is bool and kind is not click.STRING:
        return click.option(*flags, setting.name, default=None, cls=_PlanOption, setting=setting)
    if setting.kind is bool:
        flags = (f"--{setting.name.replace('_', '-')}",)
    metavar = {int: "N", float: "X", bool: "BOOL", str: "NAME", list: "NAMES"}[setting.kind]
    return click.option(
        *flags, setting.name, type=kind, metavar=metavar, default=None, cls=_PlanOption, setting=setting
    )


def _single(setting: Setting, value: Any) -> Any:
    if setting.kind is list:
        return _words(value)
    return value


def _several(setting: Setting, text: str) -> Any:
    """The values of a flag of a search space: one, or a list where commas separate several."""
    if setting.name in ("gpu", "pipeline_layout"):
        return text
    if setting.kind is list:
        # Modules that go together are joined by +: core_attn+moe_act,core_attn.
        sets = [_words(option.replace("+", ",")) for option in text.split(",")]
        return sets if len(sets) > 1 else sets[0]
    flag = setting.flags[0].partition("/")[0]
    options = [parse_mapping(f"value: {word}", flag).get("value") for word in _words(text)]
    if not options:
        raise PlanError(flag, "is empty", "give a value, or several separated by commas")
    return options if len(options) > 1 else options[0]


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


_TYPES: dict[type, click.ParamType[Any]] = {int: click.INT, float: click.FLOAT, bool: click.BOOL}


def _kind(annotation: Any) -> tuple[type, tuple[str, ...]]:
    """The kind of a key and its choices, read from its annotation."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _kind(get_args(annotation)[0])
    if origin is Literal:
        return str, tuple(str(choice) for choice in get_args(annotation))
    if origin in (Union, types.UnionType):
        return _kind(_first(part for part in get_args(annotation) if part is not type(None)))
    if origin is tuple:
        return list, _kind(get_args(annotation)[0])[1]
    return (annotation, ()) if annotation in (bool, int, float) else (str, ())


def _first(items: Iterable[Any]) -> Any:
    return next(iter(items))
