"""A mapping read key by key: types and ranges are checked, aliases resolved, and what was not read is noticed."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from moeplan.errors import PlanError, nearest

LARGEST = 2**31 - 1
"""No width, head count or expert count of a real model comes near it; sums over them stay exact in float64."""
MOST_LAYERS = 10_000
"""Layers are held one by one, so an absurd number must not cost the machine's memory."""

_REQUIRED: Any = object()


class Fields:
    """Typed access to one mapping; the first name of a key is its own, further ones are aliases.

    A key whose value is null counts as absent, as Hugging Face treats it. Two aliases that disagree are an error.

    Args:
        mapping: The document.
        where: What the user called it, for messages.
    """

    def __init__(self, mapping: Mapping[str, Any], where: str) -> None:
        for key in mapping:
            if not isinstance(key, str):
                raise PlanError(where, f"key {key!r} is not a string")
        self.mapping = mapping
        self.where = where
        self.read: set[str] = set()

    def error(self, key: str, problem: str, remedy: str = "") -> PlanError:
        """An error about one key."""
        return PlanError(f"{self.where}: {key}", problem, remedy)

    def has(self, *names: str) -> bool:
        """Whether any of the names has a value."""
        self.read.update(names)
        return any(self.mapping.get(name) is not None for name in names)

    def raw(self, *names: str, default: Any = _REQUIRED) -> Any:
        """The value under the first name present, unchecked."""
        self.read.update(names)
        found = [(name, self.mapping[name]) for name in names if self.mapping.get(name) is not None]
        if not found:
            if default is _REQUIRED:
                remedy = nearest(names[0], self.mapping.keys() - self.read)
                others = f" (or {', '.join(names[1:])})" if len(names) > 1 else ""
                raise PlanError(self.where, f"{names[0]}{others} is missing", remedy or "add it")
            return default
        for name, value in found[1:]:
            if value != found[0][1]:
                raise self.error(name, f"{value!r} contradicts {found[0][0]} = {found[0][1]!r}", "keep one of them")
        return found[0][1]

    def integer(self, *names: str, default: Any = _REQUIRED, least: int = 1, most: int = LARGEST) -> Any:
        """An integer within bounds (or the default, unchecked)."""
        value = self.raw(*names, default=default)
        return value if value is default else self.check_integer(names[0], value, least, most)

    def check_integer(self, key: str, value: Any, least: int = 1, most: int = LARGEST) -> int:
        """``value`` as an integer within bounds, or an error about ``key``."""
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value or value in _INFINITE:
            raise self.error(key, f"{value!r} is not a whole number")
        if int(value) != value:
            raise self.error(key, f"{value!r} is not a whole number")
        if not least <= value <= most:
            raise self.error(key, f"{value!r} is out of range", f"give a whole number from {least} to {most}")
        return int(value)

    def number(self, *names: str, default: Any = _REQUIRED, least: float = -math.inf) -> Any:
        """A finite float, at least ``least`` (or the default, unchecked)."""
        value = self.raw(*names, default=default)
        if value is default:
            return value
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.error(names[0], f"{value!r} is not a finite number")
        if value < least:
            raise self.error(names[0], f"{value!r} is out of range", f"give a number of at least {least}")
        return float(value)

    def flag(self, *names: str, default: Any = _REQUIRED) -> Any:
        """A boolean (or the default, unchecked). An explicit null under a default of true is neither: it is refused."""
        if default is True:
            for name in names:
                if name in self.mapping and self.mapping[name] is None:
                    raise self.error(name, "null is neither true nor false", "say which")
        value = self.raw(*names, default=default)
        if value is not default and not isinstance(value, bool):
            raise self.error(names[0], f"{value!r} is not true or false")
        return value

    def text(self, *names: str, default: Any = _REQUIRED, choices: Collection[str] = ()) -> Any:
        """A string, one of ``choices`` if any are given (or the default, unchecked)."""
        value = self.raw(*names, default=default)
        if value is default:
            return value
        if not isinstance(value, str):
            raise self.error(names[0], f"{value!r} is not a string")
        if choices and value not in choices:
            remedy = nearest(value, choices, f"give one of {', '.join(sorted(choices))}")
            raise self.error(names[0], f"{value!r} is not understood", remedy)
        return value

    def sequence(self, *names: str, default: Any = _REQUIRED, length: int | None = None) -> Any:
        """A list, of ``length`` entries if given (or the default, unchecked)."""
        value = self.raw(*names, default=default)
        if value is default:
            return value
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise self.error(names[0], f"{value!r} is not a list")
        if length is not None and len(value) != length:
            raise self.error(names[0], f"has {len(value)} entries", f"give one for each of the {length} layers")
        return list(value)

    def integers(self, *names: str, default: Any = _REQUIRED, length: int | None = None, least: int = 0) -> Any:
        """A list of integers (or the default, unchecked)."""
        value = self.sequence(*names, default=default, length=length)
        if value is default:
            return value
        return [self.check_integer(names[0], entry, least) for entry in value]

    def section(self, *names: str, default: Any = _REQUIRED) -> Any:
        """A nested mapping as :class:`Fields` of its own (or the default, unchecked)."""
        value = self.raw(*names, default=default)
        if value is default:
            return value
        if not isinstance(value, Mapping):
            raise self.error(names[0], f"{value!r} is not a mapping")
        return Fields(value, f"{self.where}: {names[0]}")

    def ignore(self, *names: str) -> None:
        """Mark keys as understood and without effect on shapes."""
        self.read.update(names)

    def unread(self, harmless: Collection[str] = ()) -> list[str]:
        """Keys that nothing has read and that are not known to be harmless, in order; null means absent."""
        return [k for k, v in self.mapping.items() if v is not None and k not in self.read and k not in harmless]

    def fixed(self, key: str, value: Any, why: str) -> None:
        """A key that may be given but has one value only.

        Raises:
            PlanError: It has another.
        """
        if self.raw(key, default=value) != value:
            raise self.error(key, f"{self.mapping[key]!r} {why}", f"only {value!r} is understood")


_INFINITE = (math.inf, -math.inf)
