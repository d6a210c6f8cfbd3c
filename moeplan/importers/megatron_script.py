"""Finding Megatron-LM's arguments in what users have: launch scripts, batch scripts, YAML and JSON mappings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from moeplan.errors import PlanError
from moeplan.importers.megatron_flags import from_mapping, from_words, normalized
from moeplan.importers.shell import Script, read_script
from moeplan.importers.shell_words import expand_text, is_unknown

# A command is Megatron's when it has some of these: every training run names its model and its batch.
_TELLTALE = frozenset(
    [
        "global-batch-size",
        "hidden-size",
        "hybrid-layer-pattern",
        "hybrid-override-pattern",
        "max-position-embeddings",
        "micro-batch-size",
        "num-attention-heads",
        "num-layers",
        "pipeline-model-parallel-size",
        "seq-length",
        "tensor-model-parallel-size",
    ]
)
# Keys under which configurations nest the arguments: Megatron-LM's own CI, and lists of cases.
_NESTED = ("MODEL_ARGS", "megatron_args", "model_args", "args", "arguments")


@dataclass
class Launch:
    """What a launch file holds.

    Attributes:
        flags: Megatron's arguments.
        environment: Environment variables that it sets.
        gpus: GPUs in all as the launcher has them, or None.
        gpus_per_node: GPUs of one host as the launcher has them, or None.
        notes: What was not followed.
    """

    flags: dict[str, tuple[str, ...]]
    environment: dict[str, str] = field(default_factory=dict)
    gpus: int | None = None
    gpus_per_node: int | None = None
    notes: list[str] = field(default_factory=list)


def read_launch(source: str | Mapping[str, Any], where: str, variables: Mapping[str, str] | None = None) -> Launch:
    """Find Megatron's arguments in a script's text or in a mapping.

    Args:
        source: The text or the mapping.
        where: The file, for messages.
        variables: Values of variables that it leaves open.

    Raises:
        PlanError: There are none, or the text cannot be read.
    """
    given = dict(variables or {})
    mapping = source if isinstance(source, Mapping) else _as_mapping(source, where)
    if mapping is not None:
        return _from_mapping(mapping, where, given)
    try:
        script = read_script(str(source), given)
    except PlanError as error:
        raise PlanError(where, error.problem, "is it a shell script?") from None
    words = _megatron_words(script)
    if words is None:
        raise PlanError(
            where, "has no Megatron-LM arguments (--num-layers, --hidden-size, ...)", "name the script that has them"
        )
    nodes, per_node = world(script)
    return Launch(
        flags=from_words(words),
        environment={name: value for name, value in script.environment.items() if not is_unknown(value)},
        gpus=nodes * per_node if nodes and per_node else None,
        gpus_per_node=per_node,
        notes=list(dict.fromkeys(script.notes)),
    )


def _as_mapping(text: str, where: str) -> dict[str, Any] | None:
    """The text as YAML or JSON where it plainly is that: an opening brace, or ``key: value`` lines and no ``#!``."""
    from moeplan.documents import parse_mapping

    stripped = text.lstrip("\ufeff \t\r\n")
    if stripped.startswith("{"):
        return parse_mapping(text, where, is_json=True)
    if stripped.startswith("#!"):
        return None
    lines = [line for line in stripped.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if lines and re.match(r"(---|[\"']?[-\w]+[\"']?:(\s|$))", lines[0]):
        return parse_mapping(text, where)
    return None


def _from_mapping(mapping: Mapping[str, Any], where: str, given: Mapping[str, str]) -> Launch:
    arguments = next((mapping[key] for key in _NESTED if isinstance(mapping.get(key), Mapping)), None)
    environment: Any = next((mapping[key] for key in ("ENV_VARS", "env", "environment") if key in mapping), {})
    if arguments is None:
        arguments = mapping
    held = {str(k): str(v) for k, v in environment.items()} if isinstance(environment, Mapping) else {}
    # Mappings for a launcher that fills in its own variables (${TP}).
    flags = {
        name: tuple(expand_text(word, {**held, **given}) if "$" in word else word for word in words)
        for name, words in from_mapping(arguments, where).items()
    }
    if not _TELLTALE & set(flags):
        raise PlanError(
            where, "has no Megatron-LM arguments (num-layers, hidden-size, ...)", "map argument names to values"
        )
    gpus = mapping.get("gpus") if arguments is not mapping else None
    return Launch(
        flags=flags,
        environment=held,
        gpus=gpus if isinstance(gpus, int) and not isinstance(gpus, bool) else None,
    )


def _megatron_words(script: Script) -> list[str] | None:
    """The arguments of the command that has most of Megatron's, else of all variables together."""
    # What is only shown is not what runs.
    best = max((words for words in script.commands if words[0] not in ("echo", "printf")), key=_score, default=[])
    if _score(best) >= 2:
        program = next((index for index, word in enumerate(best) if word.endswith(".py")), -1)
        return best[program + 1 :]
    # A file that only defines the arguments, for another to use.
    held = [
        word
        for value in script.variables.values()
        for word in (value if isinstance(value, tuple) else value.split())
        if len(value) > 1
    ]
    return held if _score(held) >= 2 else None


def _score(words: Sequence[str]) -> int:
    names = {normalized(word.partition("=")[0]) for word in words if word.startswith("--")}
    return len(names & _TELLTALE)


def world(script: Script) -> tuple[int | None, int | None]:
    """Nodes and GPUs per node, as torchrun or sbatch have them."""
    nodes: int | None = None
    per_node: int | None = None
    for words in script.commands:
        launcher = next((i for i, word in enumerate(words) if re.search(r"torchrun$|torch\.distributed", word)), None)
        if launcher is None:
            continue
        options = _options(words[launcher + 1 :])
        nodes = _number(options, "nnodes") or nodes
        per_node = _number(options, "nproc-per-node") or per_node
    options = _options([word for line in script.directives for word in line.split()])
    nodes = nodes or _number(options, "nodes", "N")
    per_node = per_node or _number(options, "gpus-per-node", "gres", "ntasks-per-node")
    return nodes, per_node


def _options(words: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for index, word in enumerate(words):
        if word.endswith(".py"):
            break
        if word.startswith("-"):
            name, equals, value = word.lstrip("-").partition("=")
            following = words[index + 1] if index + 1 < len(words) else ""
            found[name.replace("_", "-")] = value if equals else following
    return found


def _number(options: Mapping[str, str], *names: str) -> int | None:
    for name in names:
        # "8", "gpu:8", "gpu:h100:8"; "2:4" of an elastic torchrun is a range and no number of nodes.
        match = re.fullmatch(r"(?:gpu:(?:[\w.-]+:)?)?(\d{1,6})", options.get(name, ""))
        if match:
            return int(match.group(1))
    return None
