"""Text put safely into files of other languages: one line of comment, shell words, TOML and Python strings."""

from __future__ import annotations

import json
import shlex
import unicodedata
from collections.abc import Iterable
from typing import Any


def one_line(text: str) -> str:
    """``text`` on one line without control characters: safe behind ``#`` in any language.

    Control and format characters (category C: terminal escapes, right-to-left overrides) become ``?``; white space of
    any kind, line separators too, becomes a blank.
    """
    spaced = " ".join(text.split())
    return "".join("?" if unicodedata.category(letter).startswith("C") else letter for letter in spaced)


def comment(lines: Iterable[str], mark: str = "#") -> list[str]:
    """Every line behind a comment mark."""
    return [f"{mark} {one_line(line)}".rstrip() for line in lines]


def shell(word: str) -> str:
    """``word`` as one word of POSIX shell, on one line unless it holds a line break itself.

    Raises:
        ValueError: The word holds a NUL, which no argument can.
    """
    if "\0" in word:
        raise ValueError("a shell word cannot hold a NUL character")
    return shlex.quote(word)


def toml_string(text: str) -> str:
    """``text`` as a TOML basic string (https://toml.io/en/v1.0.0#string): quotes, backslashes and controls escaped."""
    escaped = []
    for letter in text:
        if letter in '"\\':
            escaped.append("\\" + letter)
        elif ord(letter) < 0x20 or 0x7F <= ord(letter) < 0xA0 or letter in "\u2028\u2029":
            escaped.append(f"\\u{ord(letter):04X}")
        elif 0xD800 <= ord(letter) <= 0xDFFF:
            raise ValueError("a TOML string cannot hold a lone surrogate")
        else:
            escaped.append(letter)
    return '"' + "".join(escaped) + '"'


def toml_value(value: Any) -> str:
    """A scalar, or a list of what this takes, in TOML (raises TypeError for anything else)."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return toml_string(value)
    if isinstance(value, list | tuple):
        return _listed([toml_value(item) for item in value])
    raise TypeError(f"TOML has no value for {type(value).__name__}")


def python_string(text: str) -> str:
    """``text`` as a Python string literal in ASCII (JSON's escapes mean the same in Python)."""
    return json.dumps(text, ensure_ascii=True) if not any(ord(c) > 0xFFFF for c in text) else ascii(text)


def python_value(value: Any) -> str:
    """A scalar, or a list of what this takes, as a Python literal (raises TypeError for anything else)."""
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    if isinstance(value, str):
        return python_string(value)
    if isinstance(value, list | tuple):
        return _listed([python_value(item) for item in value])
    raise TypeError(f"no Python literal for {type(value).__name__}")


def _listed(items: list[str]) -> str:
    """A list on one line, or one item on each where they are lists themselves."""
    if any(item.startswith("[") for item in items):
        return "[\n" + "".join(f"        {item},\n" for item in items) + "    ]"
    return "[" + ", ".join(items) + "]"
