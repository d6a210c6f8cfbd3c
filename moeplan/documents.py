"""Documents on disk: YAML and JSON read safely, validation told in one line, text written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeplan.errors import PlanError, nearest
from moeplan.plain_yaml import parse_yaml

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

SIZE_LIMIT_BYTES = 8 * 2**20


def read_mapping(path: str | os.PathLike[str], limit_bytes: int = SIZE_LIMIT_BYTES) -> dict[str, Any]:
    """Read a YAML or JSON file whose top level is a mapping.

    JSON is read as JSON when the name ends in ``.json``, everything else as YAML (of which JSON is a part), with the
    numbers, booleans and nulls of YAML 1.2: ``1e9`` is a number, ``no`` is text. Only plain values are ever built.
    NaN and infinities pass through: the validator of the document judges them.

    Raises:
        PlanError: The file cannot be read, is too large, is not well-formed, repeats a key, or holds no mapping.
    """
    where = os.fspath(path)
    return parse_mapping(_read_text(Path(path), where, limit_bytes), where, is_json=where.lower().endswith(".json"))


def parse_mapping(text: str, where: str, is_json: bool = False) -> dict[str, Any]:
    """Parse ``text`` as ``read_mapping`` parses a file; ``where`` names it in messages."""
    value = _parse(text, where, is_json)
    if value is None:
        raise PlanError(where, "is empty", "write 'key: value' lines in it")
    if not isinstance(value, dict):
        raise PlanError(where, f"holds {_kind(value)} where a mapping belongs", "write 'key: value' lines")
    return value


def read_text(path: str | os.PathLike[str], limit_bytes: int = SIZE_LIMIT_BYTES) -> str:
    """Read a text file (raises PlanError when it cannot be read, is too large or is no UTF-8)."""
    return _read_text(Path(path), os.fspath(path), limit_bytes)


def read_list_or_mapping(
    path: str | os.PathLike[str], limit_bytes: int = SIZE_LIMIT_BYTES
) -> list[Any] | dict[str, Any]:
    """Read a YAML or JSON file whose top level is a list or a mapping, as :func:`read_mapping` reads the latter."""
    where = os.fspath(path)
    value = _parse(_read_text(Path(path), where, limit_bytes), where, where.lower().endswith(".json"))
    if not isinstance(value, list | dict):
        raise PlanError(where, "holds neither a list nor a mapping", "write '- ' items or 'key: value' lines")
    return value


def _parse(text: str, where: str, is_json: bool) -> Any:
    try:
        return _parse_json(text, where) if is_json else parse_yaml(text, where)
    except RecursionError:
        raise PlanError(where, "is nested too deeply", "flatten it") from None


def write_text_atomically(
    path: str | os.PathLike[str], text: str, overwrite: bool = False, executable: bool = False
) -> None:
    """Write ``text`` as UTF-8 to ``path``, whole or not at all; folders on the way are made.

    Raises:
        PlanError: The file is there and ``overwrite`` is false, or it cannot be written.
    """
    target = Path(path)
    try:
        # A device or a pipe (/dev/stdout) cannot be renamed over: it is written through.
        if target.exists() and not target.is_file():
            target.write_text(text, encoding="utf-8")
            return
        _write_beside_and_rename(target.resolve() if overwrite else target, text, overwrite, executable)
    except FileExistsError:
        raise PlanError(os.fspath(path), "is already there", "pass --overwrite, or name another file") from None
    except (OSError, ValueError) as error:
        raise PlanError(
            os.fspath(path), f"cannot be written: {_reason(error)}", "name a place you may write to"
        ) from None


def explain_validation(error: ValidationError, where: str, model: type[BaseModel] | None = None) -> PlanError:
    """Turn pydantic's first error into our one-line message, with the path of the key at fault.

    Args:
        error: What pydantic raised.
        where: The document, as the user named it.
        model: The model that was validated; with it, an unknown key is answered with the nearest known one.
    """
    details = error.errors(include_url=False)
    # An unknown key explains a missing one (a typing error makes both), so it is told first.
    first = next((detail for detail in details if detail["type"] == "extra_forbidden"), details[0])
    location = [part for part in first["loc"] if not _is_union_tag(part)]
    key = ".".join(str(part) for part in location) or "the document"
    kind, context, value = first["type"], first.get("ctx", {}), first.get("input")
    if kind == "extra_forbidden":
        known = _known_keys(model, location[:-1])
        fallback = f"known keys: {', '.join(sorted(known))}" if known else "remove it"
        return PlanError(where, f"unknown key {key!r}", nearest(str(location[-1]), known, fallback))
    if kind == "missing":
        missing = [".".join(map(str, detail["loc"])) for detail in details if detail["type"] == "missing"]
        if len(missing) > 1:
            return PlanError(where, f"keys {', '.join(missing)} are missing", "add them")
        return PlanError(where, f"key {key!r} is missing", "add it")
    raised = context.get("error")
    if isinstance(raised, PlanError):
        return PlanError(f"{where}: {key}" if location else where, f"{raised.where}: {raised.problem}", raised.remedy)
    if raised is not None:
        return PlanError(where, f"{key}: {raised}" if location else str(raised))
    if kind in ("literal_error", "enum"):
        expected = str(context["expected"])
        names = re.findall(r"'([^']*)'", expected)
        return PlanError(where, f"{key} is {_shown(value)}", nearest(str(value), names, f"choose {expected}"))
    message = first["msg"].replace("Input should be", "must be")
    message = re.sub(r"a valid (?:dictionary|mapping)( or (?:an )?instance of \w+)?", "a mapping", message)
    message = re.sub(r"a valid (?:tuple|list|set)\b", "a list", message)
    if not message.startswith("must"):
        message = f"is refused: {message}"
    return PlanError(where, f"{key} {message}, not {_shown(value)}")


def _read_text(path: Path, where: str, limit_bytes: int) -> str:
    try:
        with path.open("rb") as stream:
            raw = stream.read(limit_bytes + 1)
    except FileNotFoundError:
        raise PlanError(where, "there is no such file", "check the path") from None
    except IsADirectoryError:
        raise PlanError(where, "is a folder", "name a file in it") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise PlanError(where, f"cannot be read: {_reason(error)}", "check the path and its permissions") from None
    if len(raw) > limit_bytes:
        raise PlanError(where, f"is larger than {limit_bytes / 2**20:g} MiB", "is it the right file?")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PlanError(where, f"is not UTF-8 text (byte {error.start})", "is it the right file?") from None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _parse_json(text: str, where: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        mapping = dict(pairs)
        if len(mapping) < len(pairs):
            names = [name for name, _ in pairs]
            repeated = next(name for name in names if names.count(name) > 1)
            raise PlanError(where, f"key {repeated!r} is given twice", "keep one")
        return mapping

    if not text.strip():
        return None
    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise PlanError(
            where, f"is not JSON: {error.msg} (line {error.lineno}, column {error.colno})", "correct it there"
        ) from None
    except PlanError:
        raise
    except ValueError as error:  # an integer of more digits than Python converts
        raise PlanError(where, f"is not usable JSON: {error}", "correct it") from None


def _write_beside_and_rename(target: Path, text: str, overwrite: bool, executable: bool) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, f"{target.parent} is a file, not a folder") from None
    if not overwrite and target.is_symlink():
        raise FileExistsError(target)
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name[:100]}.", dir=target.parent)
    beside = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes files that only their owner reads; give it what open() would have given.
        mask = os.umask(0)
        os.umask(mask)
        beside.chmod((0o777 if executable else 0o666) & ~mask)
        if overwrite:
            beside.replace(target)
        else:
            _rename_if_absent(beside, target)
    finally:
        beside.unlink(missing_ok=True)


def _rename_if_absent(beside: Path, target: Path) -> None:
    try:
        os.link(beside, target)  # fails when the target is there, without a moment in between
    except OSError as error:
        # Some network file systems have no hard links.
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        if target.exists():
            raise FileExistsError(target) from None
        beside.replace(target)


def _known_keys(model: type[BaseModel] | None, path: Iterable[Any]) -> list[str]:
    """Field names of the model that ``path`` leads to, or nothing where the path leaves models."""
    if model is None:
        return []
    for part in path:
        if isinstance(part, int):
            continue
        field = next((f for name, f in model.model_fields.items() if part in (name, f.alias)), None)
        inner = _inner_model(field.annotation) if field is not None else None
        if inner is None:
            return []
        model = inner
    return [field.alias or name for name, field in model.model_fields.items()]


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    from pydantic import BaseModel

    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _inner_model(argument)
        if found is not None:
            return found
    return None


def _is_union_tag(part: object) -> bool:
    """Whether a part of pydantic's path names a branch of a union (``int``, ``list[str]``) and not a key."""
    return isinstance(part, str) and (
        part in ("int", "float", "str", "bool", "none") or bool(re.search(r"[\[(]", part))
    )


def _shown(value: object) -> str:
    with contextlib.suppress(ValueError):  # an integer of more digits than Python converts
        text = repr(value) if not isinstance(value, Mapping) else "a mapping"
        return text if len(text) <= 60 else f"{text[:57]}..."
    return "a number of thousands of digits"


def _kind(value: object) -> str:
    if isinstance(value, list):
        return "a list"
    return "text" if isinstance(value, str) else "a single value"


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
