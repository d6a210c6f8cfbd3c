"""Text put safely into files of other languages: one line of comment, shell words, TOML and Python strings."""

from __future__ import annotations

import json
import shlex
import unicodedata
from collections.abc import Iterable


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


def toml_value(value: bool | int | float | str | list[str] | tuple[str, ...]) -> str:
    """A scalar or a list of strings in TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return toml_string(value)
    return "[" + ", ".join(toml_string(item) for item in value) + "]"


def python_string(text: str) -> str:
    """``text`` as a Python string literal in ASCII (JSON's escapes mean the same in Python)."""
    return json.dumps(text, ensure_ascii=True) if not any(ord(c) > 0xFFFF for c in text) else ascii(text)
