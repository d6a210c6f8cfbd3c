"""YAML of plain values: mappings, lists, text, numbers, booleans and nulls, and nothing that builds objects."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from moeplan.errors import PlanError

# Values of a document once its YAML aliases are written out: past this it is a bomb ("billion laughs"), not a plan.
VALUE_LIMIT = 1_000_000
DEPTH_LIMIT = 100
PLAIN_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "str", "int", "float", "bool", "null"))


def yaml_text(mapping: Mapping[str, Any]) -> str:
    """Write plain values as YAML that ``parse_mapping``, like any reader of YAML 1.1 or 1.2, reads back equal."""
    import yaml

    return yaml.dump(dict(mapping), Dumper=_dumper_class(), sort_keys=False, width=120)


def parse_yaml(text: str, where: str) -> Any:
    """Parse one YAML document of plain values; ``where`` names it in messages.

    Raises:
        PlanError: The text is not well-formed, repeats a key, asks for objects, or is nested or multiplied without end.
    """
    import yaml

    loader = None
    try:
        _check_depth(text, where)
        loader = _loader_class()(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_nodes(node, where)
        return loader.construct_document(node)
    except PlanError:
        raise
    except yaml.constructor.ConstructorError as error:
        _refuse_yaml(where, str(error.problem or error), error.problem_mark)
    except yaml.MarkedYAMLError as error:
        _refuse_yaml(where, str(error.problem or error.context or error), error.problem_mark)
    except yaml.YAMLError as error:  # characters that YAML does not allow
        raise PlanError(where, f"is not YAML: {error}", "is it the right file?") from None
    except (ValueError, OverflowError) as error:  # an integer of more digits than Python converts
        raise PlanError(where, f"is not usable YAML: {error}", "correct it") from None
    finally:
        if loader is not None:
            loader.dispose()


def _refuse_yaml(where: str, problem: str, mark: Any) -> NoReturn:
    place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark is not None else ""
    raise PlanError(where, f"is not YAML: {problem}{place}", "correct it there") from None


def _scalars() -> dict[str, tuple[re.Pattern[str], list[str]]]:
    """Pattern and first characters of each scalar that is not text."""
    number = r"[0-9][0-9_]*"
    real = rf"[-+]?(?:{number}(?:\.[0-9_]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
    special = r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
    return {
        "null": (re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
        "bool": (re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
        "int": (re.compile(rf"^[-+]?{number}$"), list("-+0123456789")),
        "float": (re.compile(rf"^(?:{real}|{special})$"), list("-+0123456789.")),
        "merge": (re.compile(r"^<<$"), ["<"]),
    }


@functools.cache
def _dumper_class() -> Any:
    """A safe dumper that quotes text which YAML 1.1 or 1.2 would read as something else."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    for name, (pattern, initials) in _scalars().items():
        Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{name}", pattern, initials)
    return Dumper


@functools.cache
def _loader_class() -> Any:
    """A safe loader with the scalars of YAML 1.2's core schema (https://yaml.org/spec/1.2.2/#103-core-schema).

    PyYAML's own are those of YAML 1.1, where ``1e9`` is text, ``no`` is false, ``010`` is eight and ``1:30`` is ninety.
    """
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012  PyYAML's own class attribute

    def integer(loader: Any, node: Any) -> int:
        return int(loader.construct_scalar(node).replace("_", ""), 10)

    for name, (pattern, initials) in _scalars().items():
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{name}", pattern, initials)
    Loader.add_constructor("tag:yaml.org,2002:int", integer)
    return Loader


def _check_depth(text: str, where: str) -> None:
    """Refuse deep nesting before anything recurses over it: libyaml's composer would overflow the C stack."""
    import yaml

    depth = 0
    for event in yaml.parse(text, Loader=_loader_class()):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEPTH_LIMIT:
                raise PlanError(where, f"is nested more than {DEPTH_LIMIT} deep", "flatten it")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _check_nodes(root: Any, where: str) -> None:
    """Refuse keys that are repeated or not text, values that hold themselves, and aliases that multiply without end."""
    import yaml

    sizes: dict[int, int | None] = {}  # None while the node is open: meeting it then is a loop

    def size(node: Any) -> int:
        known = sizes.get(id(node), 0)
        if known is None:
            raise PlanError(where, "holds a value that contains itself", "write it out without the alias")
        if known:
            return known
        if node.tag not in PLAIN_TAGS:
            place = f"line {node.start_mark.line + 1}, column {node.start_mark.column + 1}"
            raise PlanError(where, f"asks to build an object, {node.tag!r} ({place})", "write plain values only")
        sizes[id(node)] = None
        total = 1
        if isinstance(node, yaml.MappingNode):
            _check_keys(node, where)
            total += sum(size(value) for _, value in node.value)
        elif isinstance(node, yaml.SequenceNode):
            total += sum(size(value) for value in node.value)
        if total > VALUE_LIMIT:
            raise PlanError(where, f"holds more than {VALUE_LIMIT:,} values", "write out its aliases")
        sizes[id(node)] = total
        return total

    size(root)


def _check_keys(node: Any, where: str) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if key.tag == "tag:yaml.org,2002:merge":
            continue
        if key.tag != "tag:yaml.org,2002:str":
            shown = key.value if isinstance(key.value, str) else "of several values"
            raise PlanError(where, f"key {shown} (line {line}) is not text", "quote it")
        if key.value in seen:
            raise PlanError(where, f"key {key.value!r} is given twice (line {line})", "keep one")
        seen.add(key.value)
