"""Shell scripts read as data: assignments, simple conditions and the words of every command. Nothing is executed."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from moeplan.errors import PlanError
from moeplan.importers.shell_words import Token, Value, expand, expand_text, is_unknown, tokenize

_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)(\+?)=(.*)\Z", re.DOTALL)
_DECLARATIONS = ("export", "readonly", "local", "declare", "typeset")
_PREFIX_KEYWORDS = ("if", "then", "elif", "else", "do", "while", "until", "{", "!", "time")
_SHELLS = ("bash", "sh", "zsh")
_MAX_DEPTH = 20
_COMPARISONS = {
    "-eq": lambda a, b: a == b,
    "-ne": lambda a, b: a != b,
    "-lt": lambda a, b: a < b,
    "-le": lambda a, b: a <= b,
    "-gt": lambda a, b: a > b,
    "-ge": lambda a, b: a >= b,
}


@dataclass
class Script:
    """What a script says.

    Attributes:
        commands: The expanded words of every command, in order, commands inside ``bash -c`` and here-documents too.
        variables: The value of every variable at the end.
        environment: Variables that are exported or set in front of a command.
        directives: The ``#SBATCH`` lines, without that word.
        notes: What was not followed (a loop after its first round, a condition that the script alone cannot decide).
    """

    commands: list[list[str]] = field(default_factory=list)
    variables: dict[str, Value] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    directives: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class _Statement:
    """One simple command and the operator in front of it."""

    before: str
    tokens: list[Token]

    @property
    def keyword(self) -> str:
        first = self.tokens[0]
        return first.text if first.kind == "word" else ""


def read_script(text: str, variables: Mapping[str, str] | None = None) -> Script:
    """Read a shell script without running any of it.

    Args:
        text: The script.
        variables: Values that it is started with: environment variables by name, arguments as ``1``, ``2``, ...

    Raises:
        PlanError: A quote or bracket is never closed, or the script is nested too deeply.
    """
    script = Script(directives=re.findall(r"^#SBATCH[ \t]+(.*?)[ \t]*$", text, re.MULTILINE))
    script.variables.update(variables or {})
    try:
        _run(script, _statements(tokenize(text)), {}, 0)
    except RecursionError:
        raise PlanError("script", "is nested too deeply", "is it a shell script?") from None
    return script


def _statements(tokens: Iterable[Token]) -> list[_Statement]:
    found: list[_Statement] = []
    before = "\n"
    current: list[Token] = []

    def close(operator: str) -> None:
        nonlocal before, current
        if current:
            found.append(_Statement(before, current))
            current = []
            before = operator
        elif operator not in ("\n", ";"):
            before = operator

    for token in tokens:
        if token.kind == "operator":
            # "name()" defines a function: keep the brackets with the name.
            if token.text == ")" and found and not current and found[-1].tokens[-1].kind == "word" and before == "(":
                found[-1].tokens.append(Token("word", "()"))
                before = "\n"
                continue
            close(token.text)
            continue
        current.append(token)
        if len(current) == 1 and token.kind == "word" and token.text in _PREFIX_KEYWORDS:
            close("\n")
    close("\n")
    return found


def _run(script: Script, statements: Sequence[_Statement], functions: dict[str, list[_Statement]], depth: int) -> None:
    at = 0
    succeeded: bool | None = None  # of the command before; None where nobody can tell
    while at < len(statements):
        statement = statements[at]
        keyword = statement.keyword
        if (statement.before == "&&" and succeeded is False) or (statement.before == "||" and succeeded is not False):
            at += 1
            continue
        if keyword == "if":
            at = _if(script, statements, at, functions, depth)
        elif keyword in ("for", "select", "while", "until"):
            at = _loop(script, statements, at, functions, depth)
        elif keyword == "case":
            at = _case(script, statements, at, functions, depth)
        elif keyword == "function" or statement.tokens[-1].text == "()":
            at = _function(statements, at, functions)
        else:
            succeeded = _simple(script, statement, functions, depth)
            at += 1


def _simple(script: Script, statement: _Statement, functions: dict[str, list[_Statement]], depth: int) -> bool | None:
    tokens = [token for token in statement.tokens if token.kind != "heredoc"]
    heredocs = [token.text for token in statement.tokens if token.kind == "heredoc"]
    declared = bool(tokens) and tokens[0].text in _DECLARATIONS
    exported = declared and (tokens[0].text == "export" or any(token.text == "-x" for token in tokens))
    rest = tokens[1:] if declared else tokens
    assigned: list[str] = []
    while rest:
        name = _assign(script, rest[0])
        if name is None:
            if declared:
                rest = rest[1:]  # "-x", or a name that an earlier line set
                continue
            break
        assigned.append(name)
        rest = rest[1:]
    if exported or (assigned and rest):
        names = [*assigned, *(token.text for token in tokens[1:] if exported and token.text.isidentifier())]
        for name in names:
            value = script.variables.get(name, "")
            script.environment[name] = value if isinstance(value, str) else " ".join(value)
    if declared or not rest:
        return True if assigned else None
    words = [word for token in rest if token.kind == "word" for word in expand(token.text, script.variables)]
    if not words:
        return None
    if words[0] in ("[", "[[", "test"):
        return _test(words)
    return _command(script, words, heredocs, functions, depth)


def _command(
    script: Script, words: list[str], heredocs: list[str], functions: dict[str, list[_Statement]], depth: int
) -> bool | None:
    if depth > _MAX_DEPTH:
        script.notes.append("calls nest too deeply and were not followed further")
        return None
    if words[0] in functions:
        _run(script, functions[words[0]], functions, depth + 1)
        return None
    if words[0] == "eval":
        _run(script, _statements(tokenize(" ".join(words[1:]))), functions, depth + 1)
        return None
    script.commands.append(words)
    if words[0] in ("true", "false"):
        return words[0] == "true"
    if words[0] == "read" and heredocs:
        script.variables[words[-1]] = expand_text(heredocs[0].replace('"', '\\"'), script.variables)
    elif heredocs and any(word in (*_SHELLS, "sbatch") for word in words):
        for body in heredocs:
            _run(script, _statements(tokenize(body)), functions, depth + 1)
    for position, word in enumerate(words[:-1]):
        # srun ... bash -c "cd /x && torchrun ..." runs the string.
        if word in ("-c", "-lc", "-ec") and any(other.rsplit("/", 1)[-1] in _SHELLS for other in words[:position]):
            _run(script, _statements(tokenize(words[position + 1].replace("\\\n", " "))), functions, depth + 1)
            break
    return None


def _assign(script: Script, token: Token) -> str | None:
    """Carry out an assignment; the name that it sets, or None where the token is none."""
    variables = script.variables
    if token.kind == "array":
        items = tuple(word for raw in token.items for word in expand(raw, variables))
        if token.append:
            before = variables.get(token.text, ())
            items = (*(before if isinstance(before, tuple) else (before,)), *items)
        variables[token.text] = items
        return token.text
    match = _ASSIGNMENT.match(token.text)
    if token.kind != "word" or match is None:
        return None
    name, append, raw = match.groups()
    value = expand_text(raw, variables)
    before = variables.get(name, "")
    if append and isinstance(before, tuple):
        variables[name] = (before[0] + value, *before[1:]) if before else (value,)
    else:
        variables[name] = f"{before}{value}" if append else value
    return name


def _block(statements: Sequence[_Statement], at: int, opening: Sequence[str], closing: str) -> int:
    """The index of the statement that closes the block which starts at ``at``, or the end."""
    nesting = 0
    for index in range(at, len(statements)):
        keyword = statements[index].keyword
        if keyword in opening:
            nesting += 1
        elif keyword == closing:
            nesting -= 1
            if nesting == 0:
                return index
    return len(statements)


def _if(
    script: Script,
    statements: Sequence[_Statement],
    at: int,
    functions: dict[str, list[_Statement]],
    depth: int,
) -> int:
    end = _block(statements, at, ("if",), "fi")
    marks = [at]
    nesting = 0
    for index in range(at, end):
        keyword = statements[index].keyword
        nesting += {"if": 1, "fi": -1}.get(keyword, 0)
        if nesting == 1 and keyword in ("then", "elif", "else"):
            marks.append(index)
    marks.append(end)
    position = 0
    while position < len(marks) - 1:
        start, following = marks[position], marks[position + 1]
        if statements[start].keyword == "else":
            _run(script, statements[start + 1 : following], functions, depth)
            break
        outcome = _condition(script, statements[start + 1 : following])
        if outcome is None:
            script.notes.append("an if whose condition the script alone does not decide was taken as false")
        if position + 2 >= len(marks):
            break
        if outcome:
            _run(script, statements[following + 1 : marks[position + 2]], functions, depth)
            break
        position += 2
    return end + 1


def _condition(script: Script, statements: Sequence[_Statement]) -> bool | None:
    outcome: bool | None = None
    negated = False
    for index, statement in enumerate(statements):
        if statement.keyword == "!":
            negated = True
            continue
        words = [word for token in statement.tokens for word in expand(token.text, script.variables)]
        result = (
            _test(words) if words and words[0] in ("[", "[[", "test") else {"true": True}.get(words[0] if words else "")
        )
        if negated and result is not None:
            result = not result
        negated = False
        if index == 0 or statement.before not in ("&&", "||"):
            outcome = result
        elif statement.before == "&&":
            outcome = False if False in (outcome, result) else None if None in (outcome, result) else True
        else:
            outcome = True if True in (outcome, result) else None if None in (outcome, result) else False
    return outcome


def _test(words: list[str]) -> bool | None:
    """The outcome of ``[ ... ]`` where its words alone decide it, else None."""
    inner = [word for word in words[1:] if word not in ("]", "]]")]
    if inner and inner[0] == "!":
        outcome = _test([words[0], *inner[1:]])
        return None if outcome is None else not outcome
    if len(inner) == 2 and inner[0] in ("-z", "-n"):
        # A variable that nobody set is empty.
        empty = not inner[1] or is_unknown(inner[1])
        return empty if inner[0] == "-z" else not empty
    if len(inner) == 1 and inner[0] in ("-z", "-n"):
        return inner[0] == "-z"
    if len(inner) != 3 or any(is_unknown(word) for word in inner):
        return None
    left, operator, right = inner
    if operator in ("=", "==", "!="):
        matched = fnmatch.fnmatchcase(left, right) if words[0] == "[[" else left == right
        return matched == (operator != "!=")
    if operator in _COMPARISONS and re.fullmatch(r"-?\d+", left) and re.fullmatch(r"-?\d+", right):
        return bool(_COMPARISONS[operator](int(left), int(right)))
    return None


def _loop(
    script: Script,
    statements: Sequence[_Statement],
    at: int,
    functions: dict[str, list[_Statement]],
    depth: int,
) -> int:
    end = _block(statements, at, ("for", "select", "while", "until"), "done")
    first = statements[at]
    words = [token.text for token in first.tokens if token.kind == "word"]
    if first.keyword == "for" and len(words) > 3 and words[2] == "in":
        values = [word for raw in words[3:] for word in expand(raw, script.variables)]
        if values:
            script.variables[words[1]] = values[0]
            if len(values) > 1:
                script.notes.append(f"a loop over {words[1]} was followed for its first value, {values[0]!r}")
            body = [statement for statement in statements[at + 1 : end] if statement.keyword != "do"]
            _run(script, body, functions, depth)
    else:
        script.notes.append(f"a {first.keyword} loop was not followed")
    return end + 1


def _case(
    script: Script,
    statements: Sequence[_Statement],
    at: int,
    functions: dict[str, list[_Statement]],
    depth: int,
) -> int:
    """``case WORD in pattern) commands ;; ... esac``; ``|`` and ``)`` have split patterns into statements."""
    end = _block(statements, at, ("case",), "esac")
    head = statements[at].tokens
    subject = expand_text(head[1].text, script.variables) if len(head) > 1 else ""
    patterns: list[str] = [token.text for token in head[3:]]
    body: list[_Statement] = []
    matched = False
    for statement in statements[at + 1 : end]:
        if statement.before == ")":
            matched = any(fnmatch.fnmatchcase(subject, expand_text(p, script.variables)) for p in patterns)
            patterns = []
        elif statement.before == ";;" or (patterns and statement.before == "|"):
            if matched:
                break
            patterns = [*(patterns if statement.before == "|" else []), *(token.text for token in statement.tokens)]
            continue
        if matched:
            body.append(_Statement("\n" if statement.before == ")" else statement.before, statement.tokens))
    _run(script, body, functions, depth)
    return end + 1


def _function(statements: Sequence[_Statement], at: int, functions: dict[str, list[_Statement]]) -> int:
    words = [token.text for token in statements[at].tokens if token.text not in ("function", "()", "{")]
    start = at + 1
    if start < len(statements) and statements[start].keyword == "{":
        start += 1
    nesting = 1
    end = start
    while end < len(statements):
        nesting += {"{": 1, "}": -1}.get(statements[end].keyword, 0)
        if nesting == 0:
            break
        end += 1
    if words:
        functions[words[0]] = list(statements[start:end])
    return end + 1
