"""What the modules that say a model in Megatron-LM's flags share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby

from moeplan.launch.refusal import Refusal
from moeplan.model.architecture import Architecture

FlagList = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class ModelFlags:
    """A model in Megatron's flags.

    Attributes:
        flags: Flag -> words, in the order to write them.
        refusals: Why Megatron-Core cannot build the model; with any, the flags are not to be used.
        notes: Where Megatron-Core's model differs from the original without changing a shape.
    """

    flags: FlagList
    refusals: list[Refusal]
    notes: list[str] = field(default_factory=list)


def operators(architecture: Architecture, kind: type | tuple[type, ...]) -> list[object]:
    """The distinct operators of a kind over the decoder layers, in order of appearance."""
    return list(
        dict.fromkeys(
            operator for layer in architecture.layers for operator in layer.operators if isinstance(operator, kind)
        )
    )


def refuse(found: ModelFlags, reason: str) -> None:
    remedy = "use a target that builds the model from its own code (deepspeed, accelerate-fsdp2)"
    found.refusals.append(Refusal(f"Megatron-Core {reason}", remedy))


def pattern(bits: Iterable[int]) -> str:
    """Zeros and ones per layer as the list expression that Megatron evaluates, e.g. ``([0]*3+[1]*58)``."""
    runs = [(bit, len(list(run))) for bit, run in groupby(bits)]
    # A short period repeated is easier on the eye: [1,0]*18.
    whole = [bit for bit, length in runs for _ in range(length)]
    for period in range(2, len(whole) // 2 + 1):
        if len(whole) % period == 0 and whole[:period] * (len(whole) // period) == whole and len(runs) > 3:
            return f"([{','.join(map(str, whole[:period]))}]*{len(whole) // period})"
    return "(" + "+".join(f"[{bit}]*{length}" for bit, length in runs) + ")"


def number(value: float) -> str:
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)
