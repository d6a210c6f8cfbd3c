"""Megatron-LM's arguments with their values, and a record of which of them the importer has read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from moeplan.errors import PlanError, nearest
from moeplan.importers.imported import LOST, Unused
from moeplan.importers.megatron_unused import why_unused
from moeplan.importers.shell_words import is_unknown, shown


@dataclass
class Flags:
    """Arguments by name (without dashes), and which of them have been read.

    Attributes:
        values: The words after each argument; an empty tuple for a switch.
        where: The file, for messages.
        read: Names that some reader has asked for.
        lost: What a reader could not put into the plan.
        assumptions: What a reader filled in.
    """

    values: Mapping[str, tuple[str, ...]]
    where: str
    read: set[str] = field(default_factory=set)
    lost: list[Unused] = field(default_factory=list)
    assumptions: list[str] = field(default_factory=list)

    def has(self, *names: str) -> bool:
        """Whether any of these switches is given."""
        self.read.update(names)
        return any(name in self.values for name in names)

    def words(self, name: str) -> tuple[str, ...]:
        """The words of an argument, split at blanks and commas and out of brackets; none where it is absent."""
        self.read.add(name)
        found = self.values.get(name, ())
        self._check_known(name, found)
        return tuple(word for text in found for word in re.split(r"[\s,\[\]'\"]+", text) if word)

    def text(self, name: str, default: str | None = None) -> str | None:
        """The one word of an argument (the last where there are several, as argparse takes it)."""
        self.read.add(name)
        found = self.values.get(name)
        if found is None:
            return default
        if not found:
            raise PlanError(self.where, f"--{name} has no value", "give it one")
        self._check_known(name, found)
        return found[0]

    def integer(self, name: str, default: int | None = None) -> int | None:
        """A whole number.

        Raises:
            PlanError: The value is none.
        """
        text = self.text(name)
        if text is None:
            return default
        try:
            return int(text)
        except ValueError:
            raise PlanError(self.where, f"--{name} is {text[:60]!r}", "give a whole number") from None

    def count(self, name: str, default: int) -> int:
        """A whole number of at least one."""
        value = self.integer(name, default)
        if value is None or not 1 <= value < 1 << 40:
            raise PlanError(self.where, f"--{name} is {value}", "give a whole number above 0")
        return value

    def required(self, *names: str) -> int:
        """The first of these arguments that is given, as a whole number of at least one."""
        for name in names:
            if name in self.values:
                return self.count(name, 0)
        raise PlanError(self.where, f"--{names[0]} is missing", "Megatron-LM needs it: add it")

    def number(self, name: str, default: float) -> float:
        """A number."""
        text = self.text(name)
        if text is None:
            return default
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if value != value or abs(value) == float("inf"):
            raise PlanError(self.where, f"--{name} is {text[:60]!r}", "give a number")
        return value

    def choice(self, name: str, choices: Sequence[str], default: str) -> str:
        """One of a few words (spelled as Megatron spells them)."""
        text = self.text(name, default) or default
        if text not in choices:
            remedy = nearest(text, choices, f"one of {', '.join(choices)}")
            raise PlanError(self.where, f"--{name} is {text[:60]!r}", remedy)
        return text

    def lose(self, name: str, why: str, value: str | None = None) -> None:
        """Note that the plan does not hold this argument."""
        self.read.add(name)
        given = " ".join(self.values.get(name, ())) if value is None else value
        self.lost.append(Unused(f"--{name}", shown(given), f"{LOST}: {why}"))

    def unused(self) -> tuple[Unused, ...]:
        """What nobody has read, and what could not be represented, most important first."""
        rest = [
            Unused(f"--{name}", shown(" ".join(words)), reason)
            for name, words in self.values.items()
            if name not in self.read and (reason := why_unused(name, words)) is not None
        ]
        return tuple(sorted([*self.lost, *rest], key=lambda item: not item.matters))

    def _check_known(self, name: str, words: Sequence[str]) -> None:
        missing = next((word for word in words if is_unknown(word)), None)
        if missing is not None:
            raise PlanError(
                self.where,
                f"--{name} needs {shown(missing)[:80]!r}, which the file does not set",
                "pass --set NAME=VALUE, or write it into the file",
            )


def normalized(name: str) -> str:
    """An argument's name as the tables here spell it."""
    return name.lstrip("-").replace("_", "-")


def from_words(words: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Arguments from a command line: every word after ``--name`` up to the next one is its value."""
    found: dict[str, tuple[str, ...]] = {}
    name = None
    for word in words:
        if re.match(r"--[A-Za-z]", word):
            head, equals, value = word[2:].partition("=")
            name = normalized(head)
            found[name] = (value,) if equals else ()
        elif name is not None and word.strip("\\"):
            found[name] = (*found[name], word)
    return found


def from_mapping(mapping: Mapping[str, Any], where: str) -> dict[str, tuple[str, ...]]:
    """Arguments from a YAML or JSON mapping: ``true`` is a switch, ``false`` and null are absent."""
    found = {}
    for key, value in mapping.items():
        if value is False or value is None:
            continue
        if isinstance(value, Mapping):
            raise PlanError(where, f"--{normalized(str(key))} holds a mapping", "give a value, a list or true")
        items = value if isinstance(value, (list, tuple)) else () if value is True else (value,)
        # YAML written for a shell keeps the shell's backslashes (Et*3\\|\\(tt\\|\\)).
        found[normalized(str(key))] = tuple(str(item).replace("\\", "") for item in items)
    return found
