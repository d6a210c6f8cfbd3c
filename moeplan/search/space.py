"""Search spaces: a plan document in which a value may be a list of choices or a range ``{low, high, step | pow2}``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from moeplan.errors import PlanError, nearest

if TYPE_CHECKING:
    from pydantic import TypeAdapter

DEFAULT_SPACE = "default"
# What a range may expand to: more choices for one value is a mistyped bound, not a question.
_MOST_CHOICES = 65_536
_RANGE_KEYS = frozenset({"low", "high", "step", "pow2"})
# Values that are lists themselves: there a list of names is one value and a list of lists is a choice.
_LIST_VALUES = frozenset({"recompute_modules", "offload_modules"})

CHANGES_TRAINING = ("top_k", "capacity_factor", "precision", "sequence_length", "global_batch_size", "mtp_layers")
"""Columns whose choice changes what is trained, not only how fast: searched only when a space opens them."""


@dataclass(frozen=True)
class Space:
    """What a search may choose.

    Attributes:
        name: What the user called it.
        choices: Choices by column. A degree that is absent may take every legal value; any other absent column keeps
            the value of the plan that the search starts from.
        model: The model that the document names, if it does.
        gpu: The GPU that the document names, if it does.
    """

    name: str
    choices: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    model: Any = None
    gpu: Any = None

    def pinned(self, row: Mapping[str, Any]) -> Space:
        """This space with columns held at one value each (what the user said on the command line)."""
        return replace(self, choices={**self.choices, **{name: (value,) for name, value in row.items()}})

    def overlaid(self, document: Mapping[str, Any], where: str) -> Space:
        """This space with the keys that another document names replaced by that document's choices.

        Raises:
            PlanError: The document is not a search space; ``where`` names it.
        """
        other = _parse(document, where)
        return replace(
            self,
            choices={**self.choices, **other.choices},
            model=other.model if other.model is not None else self.model,
            gpu=other.gpu if other.gpu is not None else self.gpu,
        )

    def opened(self, names: Sequence[str]) -> tuple[str, ...]:
        """Of ``names``, the columns that have a choice."""
        return tuple(name for name in names if len(self.choices.get(name, ())) > 1)


def space_names() -> list[str]:
    """Names of the search spaces that ship with moeplan."""
    from moeplan.resources import search_space_dir

    return sorted(path.stem for path in search_space_dir().glob("*.yaml"))


def load_space(reference: str | Path | Mapping[str, Any] | Space | None = None) -> Space:
    """Read a search space: the name of a shipped one, a path, or a mapping of the same keys.

    Keys that a document leaves out keep the choices of the shipped ``default`` space, so that a document of one line
    asks for one thing more (or less).

    Raises:
        PlanError: The reference is unknown or the document is not a search space.
    """
    if isinstance(reference, Space):
        return reference
    if reference is None:
        reference = DEFAULT_SPACE
    if isinstance(reference, Mapping):
        return _layered(_parse(reference, "space"), "inline")
    path = _resolve(str(reference))
    from moeplan.documents import read_mapping

    parsed = _parse(read_mapping(path), str(reference))
    return parsed if path.stem == DEFAULT_SPACE and _shipped(path) else _layered(parsed, str(reference))


def _resolve(reference: str) -> Path:
    from moeplan.resources import search_space_dir

    shipped = search_space_dir() / f"{reference}.yaml"
    if reference.isidentifier() or reference.replace("-", "_").isidentifier():
        if shipped.is_file():
            return shipped
        if not Path(reference).exists():
            names = space_names()
            hint = nearest(reference, names, f"the shipped spaces are {', '.join(names)}")
            raise PlanError(reference, "no such search space", f"{hint} (or give the path of a YAML file)")
    return Path(reference)


def _shipped(path: Path) -> bool:
    from moeplan.resources import search_space_dir

    return path.parent == search_space_dir()


def _layered(space: Space, name: str) -> Space:
    base = load_space(DEFAULT_SPACE)
    return replace(space, name=name, choices={**base.choices, **space.choices})


def _parse(document: Mapping[str, Any], where: str) -> Space:
    choices: dict[str, tuple[Any, ...]] = {}
    fixed: dict[str, Any] = {}
    for key, value in _leaves(document, where):
        if key in ("model", "hardware.gpu"):
            if isinstance(value, list):
                raise PlanError(where, f"{key} holds a list", "search one model on one GPU type at a time")
            fixed[key] = value
            continue
        column, adapter = _keys()[key]
        choices[column] = _choices(key, column, value, adapter, where)
    return Space(name=where, choices=choices, model=fixed.get("model"), gpu=fixed.get("hardware.gpu"))


def _leaves(document: Mapping[str, Any], where: str) -> Iterator[tuple[str, Any]]:
    """Dotted keys of a document with their values; ranges are values, sections are not."""
    known = [*_keys(), "model", "hardware.gpu"]
    sections = {key.partition(".")[0] for key in known if "." in key}
    for name, value in document.items():
        if name in sections:
            if not isinstance(value, Mapping):
                raise PlanError(where, f"{name} is {value!r}", f"write a mapping, such as {name}: {{...}}")
            for inner, leaf in value.items():
                key = f"{name}.{inner}"
                if key not in known:
                    siblings = [other for other in known if other.startswith(f"{name}.")]
                    raise PlanError(
                        where, f"unknown key {key!r}", nearest(key, siblings, f"known keys: {', '.join(siblings)}")
                    )
                yield key, leaf
        elif name in known:
            yield name, value
        else:
            top = [other for other in known if "." not in other] + sorted(sections)
            raise PlanError(where, f"unknown key {name!r}", nearest(str(name), top, f"known keys: {', '.join(top)}"))


def _keys() -> dict[str, tuple[str, TypeAdapter[Any]]]:
    """Dotted plan key -> (column, validator of one value)."""
    if not _KEYS:
        from pydantic import ConfigDict, TypeAdapter

        from moeplan.plan import COLUMN_KEYS, TOP_KEYS, Plan

        places = {column: f"{section}.{key}" for column, (section, key) in COLUMN_KEYS.items()}
        places |= {name: name for name in TOP_KEYS}
        for column, key in places.items():
            section, _, inner = key.partition(".")
            described = Plan.model_fields[section]
            if inner:
                model: Any = described.annotation
                described = model.model_fields[inner]
            annotation: Any = described.annotation
            if described.metadata:
                annotation = Annotated[(annotation, *described.metadata)]
            _KEYS[key] = (column, TypeAdapter(annotation, config=ConfigDict(strict=True)))
    return _KEYS


_KEYS: dict[str, tuple[str, Any]] = {}


def _choices(key: str, column: str, value: Any, adapter: TypeAdapter[Any], where: str) -> tuple[Any, ...]:
    if isinstance(value, Mapping):
        values: list[Any] = _range(key, value, where)
    elif column in _LIST_VALUES:
        values = value if isinstance(value, list) and any(isinstance(item, list) for item in value) else [value]
    else:
        values = value if isinstance(value, list) else [value]
    if not values:
        raise PlanError(where, f"{key} has no choices", "name at least one value, or leave the key out")
    return tuple(dict.fromkeys(_checked(key, item, adapter, where) for item in values))


def _checked(key: str, value: Any, adapter: TypeAdapter[Any], where: str) -> Any:
    from pydantic import ValidationError

    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        expected = str(first.get("ctx", {}).get("expected", ""))
        shown = repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."
        if expected:
            names = [part.strip(" '") for part in expected.replace(" or ", ",").split(",")]
            raise PlanError(where, f"{key} cannot be {shown}", nearest(str(value), names, f"use {expected}")) from None
        raise PlanError(where, f"{key} cannot be {shown}", first["msg"].replace("Input should", "it should")) from None


def _range(key: str, value: Mapping[str, Any], where: str) -> list[Any]:
    """Expand ``{low, high, step | pow2}``; both ends are included."""
    unknown = [name for name in value if name not in _RANGE_KEYS]
    if unknown:
        hint = nearest(str(unknown[0]), _RANGE_KEYS, "a range has low, high and step or pow2")
        raise PlanError(where, f"unknown key {unknown[0]!r} in the range of {key}", hint)
    if "low" not in value or "high" not in value:
        raise PlanError(where, f"the range of {key} has no {'high' if 'low' in value else 'low'}", "give both ends")
    low, high, step = value["low"], value["high"], value.get("step", 1)
    for name, bound in (("low", low), ("high", high), ("step", step)):
        if isinstance(bound, bool) or not isinstance(bound, int | float) or not math.isfinite(bound):
            raise PlanError(where, f"{name} of {key} is {bound!r}", "give a number")
    pow2 = value.get("pow2", False)
    if not isinstance(pow2, bool):
        raise PlanError(where, f"pow2 of {key} is {pow2!r}", "give true or false")
    if low > high:
        raise PlanError(where, f"the range of {key} is empty: low {low} is above high {high}", "swap them")
    if pow2:
        if "step" in value or low <= 0 or not float(low).is_integer():
            raise PlanError(where, f"the range of {key} mixes pow2 with a step or a low that is no positive integer")
        return [int(low) << power for power in range(64) if int(low) << power <= high]
    if step <= 0:
        raise PlanError(where, f"step of {key} is {step}", "give a positive step")
    count = math.floor((high - low) / step + 1e-9) + 1
    if count > _MOST_CHOICES:
        raise PlanError(where, f"the range of {key} has {count:,} values", f"leave at most {_MOST_CHOICES:,}")
    return [low + index * step for index in range(count)]
