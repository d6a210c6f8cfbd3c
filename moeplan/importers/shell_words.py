"""Words of a shell script: split and expanded as POSIX shells do, never run.

Command substitutions, and variables that the script does not set, become *unknown* text: a readable name between NUL
characters, so that whoever uses a word can tell that its value is not in the script.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from moeplan.errors import PlanError

Value: TypeAlias = str | tuple[str, ...]

_NAME = re.compile(r"[A-Za-z_]\w*")
_ARRAY_START = re.compile(r"([A-Za-z_]\w*)(\+?)=\(")
_HEREDOC = re.compile(r"<<(-?)\s*(['\"]?)([A-Za-z_]\w*)\2")
_REDIRECTION = re.compile(r"(?:\d*|&)(?:>>|>\||>&|<&|<<<|>|<)")
_OPERATORS = ("&&", "||", ";;", "\n", ";", "|", "&", "(", ")")
_MARK = "\0"
# Expansion that feeds on itself (X="$X$X" a hundred times) must not fill the memory.
_MAX_VALUE = 1 << 20


@dataclass(frozen=True, slots=True)
class Token:
    """One piece of a script.

    Attributes:
        kind: ``word`` (raw text with its quotes), ``operator``, ``array`` (``name=( ... )``), ``heredoc`` (its body) or
            ``redirection``.
        text: Raw text of a word, the operator, an array's name, or a here-document's body.
        items: Raw words inside an array.
        append: ``+=`` rather than ``=``.
    """

    kind: str
    text: str
    items: tuple[str, ...] = ()
    append: bool = False


def unknown(what: str) -> str:
    """Text that stands for a value which the script does not hold."""
    # Blanks would split it into words.
    text = "\u00a0".join(what.replace(_MARK, "").split())
    return f"{_MARK}{text}{_MARK}"


def is_unknown(text: str) -> bool:
    """Whether any part of ``text`` is a value which the script does not hold."""
    return _MARK in text


def shown(text: str) -> str:
    """``text`` for people: unknown parts by their names."""
    return text.replace(_MARK, "").replace("\u00a0", " ")


def tokenize(text: str) -> list[Token]:
    """Split a script into words and operators; comments go, lines that end in a backslash are joined.

    Raises:
        PlanError: A quote or a bracket is never closed.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace(_MARK, "")
    found: list[Token] = []
    waiting: list[tuple[str, bool]] = []  # delimiters of here-documents whose bodies start on the next line
    at = 0
    while at < len(text):
        if text.startswith("\\\n", at):
            at += 2
        elif text[at] in " \t":
            at += 1
        elif text[at] == "#":
            at = _line_end(text, at)
        elif text[at] == "\n" and waiting:
            found.append(Token("operator", "\n"))
            at, bodies = _heredoc_bodies(text, at + 1, waiting)
            # The body belongs to the command before it, so it goes in front of the line's end.
            found[-1:-1] = [Token("heredoc", body) for body in bodies]
            waiting = []
        elif match := _HEREDOC.match(text, at):
            waiting.append((match.group(3), bool(match.group(1))))
            at = match.end()
        elif (match := _REDIRECTION.match(text, at)) and not text.startswith(("<(", ">("), at):
            at = _end_of_redirection(text, match.end())
        elif sign := next((symbol for symbol in _OPERATORS if text.startswith(symbol, at)), None):
            found.append(Token("operator", sign))
            at += len(sign)
        elif text.startswith(("<(", ">("), at):
            # Process substitution: a file name that only running it would give.
            end = _closing(text, at + 1, "(", ")") + 1
            found.append(Token("word", text[at:end]))
            at = end
        elif match := _ARRAY_START.match(text, at):
            at, items = _array(text, match.end())
            found.append(Token("array", match.group(1), items, append=bool(match.group(2))))
        else:
            end = max(_word_end(text, at), at + 1)
            found.append(Token("word", text[at:end]))
            at = end
    return found


def expand(raw: str, variables: Mapping[str, Value]) -> list[str]:
    """Expand one raw word into the words that the shell would pass on."""
    fields: list[str] = []
    current: list[str] = []
    opened = False  # an empty but quoted word still counts

    def close() -> None:
        nonlocal opened
        if current or opened:
            fields.append("".join(current))
        current.clear()
        opened = False

    for piece, quoted, words in _pieces(raw, variables):
        if words is not None:
            for index, word in enumerate(words):
                if index:
                    close()
                current.append(word)
                opened = True
        elif quoted:
            current.append(piece)
            opened = True
        else:
            parts = re.split(r"[ \t\n]+", piece)
            for index, part in enumerate(parts):
                if index:
                    close()
                if part:
                    current.append(part)
    close()
    return fields


def expand_text(raw: str, variables: Mapping[str, Value]) -> str:
    """Expand a raw word without splitting it, as on the right of an assignment."""
    text = "".join(" ".join(words) if words is not None else piece for piece, _, words in _pieces(raw, variables))
    if len(text) > _MAX_VALUE:
        raise PlanError("script", "a variable grows past 1 MiB", "is it the right file?")
    return text


def arithmetic(expression: str, variables: Mapping[str, Value]) -> str:
    """The value of ``$((expression))`` over integers, or unknown text where it is not plain integer arithmetic."""
    text = re.sub(r"\$\{?([A-Za-z_]\w*|[0-9]+)\}?", lambda match: _operand(match.group(1), variables), expression)
    # The conditional of C, which Python spells differently; nested ones stay unknown.
    choice = re.fullmatch(r"([^?:]+)\?([^?:]+):([^?:]+)", text)
    if choice is not None:
        condition = arithmetic(choice.group(1), variables)
        if is_unknown(condition):
            return unknown(f"$(({expression.strip()}))")
        return arithmetic(choice.group(2 if condition != "0" else 3), variables)
    try:
        return str(_integer(ast.parse(text.strip(), mode="eval").body, variables, 0))
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, OverflowError):
        return unknown(f"$(({expression.strip()}))")


def _operand(name: str, variables: Mapping[str, Value]) -> str:
    """A variable inside arithmetic: its name, or the value of an argument (whose name is a number itself)."""
    value = variables.get(name, "unset")
    return name if not name.isdigit() else value if isinstance(value, str) else value[0]


_COMPARED: dict[type[ast.cmpop], Callable[[int, int], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


def _integer(node: ast.AST, variables: Mapping[str, Value], depth: int) -> int:
    if depth > 50:
        raise ValueError("too deep")
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.Name):
        value = variables.get(node.id, "")
        return int(value) if isinstance(value, str) else int(value[0])
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_integer(node.operand, variables, depth + 1)
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARED:
        left, right = _integer(node.left, variables, depth + 1), _integer(node.comparators[0], variables, depth + 1)
        return int(_COMPARED[type(node.ops[0])](left, right))
    if isinstance(node, ast.BinOp):
        left, right = _integer(node.left, variables, depth + 1), _integer(node.right, variables, depth + 1)
        if abs(left) > 1 << 62 or abs(right) > 1 << 62:
            raise ValueError("out of a shell's range")
        match node.op:
            case ast.Add():
                return left + right
            case ast.Sub():
                return left - right
            case ast.Mult():
                return left * right
            case ast.Div() | ast.FloorDiv():
                # Shells truncate towards zero.
                quotient = abs(left) // abs(right)
                return quotient if (left < 0) == (right < 0) else -quotient
            case ast.Mod():
                return left - right * _integer(ast.parse(f"({left}) / ({right})", mode="eval").body, {}, depth + 1)
            case ast.Pow() if 0 <= right < 63:
                return int(left**right)
    raise ValueError("not integer arithmetic")


def _pieces(raw: str, variables: Mapping[str, Value]) -> Iterator[tuple[str, bool, tuple[str, ...] | None]]:
    """Literal and expanded parts: (text, is it safe from splitting, the words of a ``"${array[@]}"`` or None)."""
    at = 0
    in_quotes = False
    while at < len(raw):
        character = raw[at]
        if character == "\\" and at + 1 < len(raw):
            following = raw[at + 1]
            at += 2
            if following != "\n":
                # Inside double quotes a backslash only protects these.
                yield (following if not in_quotes or following in '$`"\\' else f"\\{following}"), True, None
        elif character == "'" and not in_quotes:
            end = raw.index("'", at + 1)
            yield raw[at + 1 : end], True, None
            at = end + 1
        elif character == '"':
            in_quotes = not in_quotes
            if in_quotes:
                yield "", True, None
            at += 1
            if in_quotes and _is_array_only(raw, at):
                end = raw.index('"', at)
                yield "", True, _array_words(raw[at:end], variables)
                at = end + 1
                in_quotes = False
        elif character == "$" or character == "`":
            end, value = _substitution(raw, at, variables)
            yield value, in_quotes, None
            at = end
        else:
            yield character, True, None
            at += 1


def _is_array_only(raw: str, at: int) -> bool:
    return re.match(r'\$\{[A-Za-z_]\w*\[@\]\}"', raw[at:]) is not None


def _array_words(reference: str, variables: Mapping[str, Value]) -> tuple[str, ...]:
    name = reference[2 : reference.index("[")]
    value = variables.get(name)
    if value is None:
        return (unknown(f"${{{name}[@]}}"),)
    return value if isinstance(value, tuple) else (value,)


def _substitution(raw: str, at: int, variables: Mapping[str, Value]) -> tuple[int, str]:
    """The end and the value of ``$name``, ``${...}``, ``$(...)``, ``$((...))`` or a backquoted command."""
    if raw[at] == "`":
        end = raw.find("`", at + 1)
        end = len(raw) - 1 if end < 0 else end
        return end + 1, unknown(raw[at : end + 1])
    if raw.startswith("$((", at):
        end = _closing(raw, at + 1, "(", ")")
        return end + 1, arithmetic(raw[at + 3 : end - 1], variables)
    if raw.startswith("$(", at):
        end = _closing(raw, at + 1, "(", ")")
        return end + 1, unknown(raw[at : end + 1])
    if raw.startswith("${", at):
        end = _closing(raw, at + 1, "{", "}")
        return end + 1, _parameter(raw[at + 2 : end], variables)
    match = _NAME.match(raw, at + 1) or re.compile(r"[0-9@*#?$!-]").match(raw, at + 1)
    if match is None:
        return at + 1, "$"
    return match.end(), _text_of(variables.get(match.group()), f"${match.group()}")


def _parameter(body: str, variables: Mapping[str, Value]) -> str:
    match = re.match(r"([A-Za-z_]\w*|[0-9]+|[@*#?])(\[[^\]]*\])?(.*)\Z", body, re.DOTALL)
    if match is None:
        return unknown(f"${{{body}}}")
    name, index, rest = match.groups()
    value = variables.get(name)
    if index and value is not None and index not in ("[@]", "[*]"):
        position = index[1:-1]
        items = value if isinstance(value, tuple) else (value,)
        value = items[int(position)] if position.isdigit() and int(position) < len(items) else None
    kind = re.match(r":?[-=+?]", rest)
    if not rest:
        return _text_of(value, f"${{{body}}}")
    if kind is None:
        # ${x%.json}, ${x/a/b} and the like: nothing that a number of layers or a degree is made of.
        return unknown(f"${{{body}}}")
    present = value is not None and not (kind.group().startswith(":") and value in ("", ()))
    alternative = expand_text(rest[kind.end() :], variables)
    if kind.group()[-1] == "+":
        return alternative if present else ""
    if kind.group()[-1] == "?" and not present:
        return unknown(f"${{{name}}}")
    return _text_of(value, "") if present else alternative


def _text_of(value: Value | None, name: str) -> str:
    if value is None:
        # A script that is read has no arguments.
        return "" if name in ("$@", "$*", "${@}", "${*}") else unknown(name)
    return value if isinstance(value, str) else " ".join(value)


def _line_end(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end


def _heredoc_bodies(text: str, at: int, waiting: list[tuple[str, bool]]) -> tuple[int, list[str]]:
    bodies = []
    for delimiter, strips_tabs in waiting:
        lines = []
        while at < len(text):
            end = _line_end(text, at)
            line = text[at:end]
            at = min(end + 1, len(text))
            if (line.lstrip("\t") if strips_tabs else line) == delimiter:
                break
            lines.append(line)
        bodies.append("\n".join(lines))
    return at, bodies


def _end_of_redirection(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t":
        at += 1
    if at < len(text) and text[at] == "&":
        at += 1
    return _word_end(text, at) if at < len(text) and text[at] != "\n" else at


def _array(text: str, at: int) -> tuple[int, tuple[str, ...]]:
    items: list[str] = []
    while at < len(text):
        if text.startswith("\\\n", at):
            at += 2
        elif text[at] in " \t\n":
            at += 1
        elif text[at] == "#":
            at = _line_end(text, at)
        elif text[at] == ")":
            return at + 1, tuple(items)
        else:
            end = max(_word_end(text, at), at + 1)
            items.append(text[at:end])
            at = end
    raise PlanError("script", "an array's ( is never closed", "close it")


def _word_end(text: str, at: int) -> int:
    """Where the word that starts at ``at`` ends: the next unquoted blank or operator."""
    while at < len(text):
        character = text[at]
        if character in " \t\n;&|()<>":
            return at
        if character == "\\":
            at += 2
        elif character == "'":
            at = _find(text, "'", at + 1) + 1
        elif character == '"':
            at = _double_quote_end(text, at) + 1
        elif character == "`":
            at = _find(text, "`", at + 1) + 1
        elif text.startswith("$(", at):
            at = _closing(text, at + 1, "(", ")") + 1
        elif text.startswith("${", at):
            at = _closing(text, at + 1, "{", "}") + 1
        else:
            at += 1
    return min(at, len(text))


def _double_quote_end(text: str, at: int) -> int:
    at += 1
    while at < len(text) and text[at] != '"':
        if text[at] == "\\":
            at += 2
        elif text.startswith("$(", at):
            at = _closing(text, at + 1, "(", ")") + 1
        else:
            at += 1
    if at >= len(text):
        raise PlanError("script", 'a " is never closed', "close it")
    return at


def _closing(text: str, at: int, opening: str, closing: str) -> int:
    """The bracket that closes the one at ``at``; quoted brackets do not count."""
    depth = 0
    while at < len(text):
        if text[at] == "\\":
            at += 1
        elif text[at] == "'":
            at = _find(text, "'", at + 1)
        elif text[at] == opening:
            depth += 1
        elif text[at] == closing:
            depth -= 1
            if depth == 0:
                return at
        at += 1
    raise PlanError("script", f"a {opening} is never closed", "close it")


def _find(text: str, character: str, at: int) -> int:
    end = text.find(character, at)
    if end < 0:
        raise PlanError("script", f"a {character} is never closed", "close it")
    return end
