"""Which layers live on which pipeline stage: even splits and Megatron's layout strings."""

from __future__ import annotations

import re
from dataclasses import dataclass

from moeplan.errors import PlanError

_SYMBOLS = "EtmL"
# No real pipeline is longer; a layout such as "t*999999999" must not fill the memory before it is refused.
_MAX_ITEMS = 4096


@dataclass(frozen=True, slots=True)
class Chunk:
    """One virtual stage: the decoder layers it holds and what else lives there.

    Attributes:
        first: Index of its first decoder layer.
        layers: Number of decoder layers.
        mtp: Multi-token-prediction layers.
        embedding: Holds the embedding.
        head: Holds the final norm, the head and the loss.
    """

    first: int
    layers: int
    mtp: int
    embedding: bool
    head: bool


def parse_layout(text: str) -> list[str]:
    """Expand a Megatron layout string into one string of symbols per virtual stage, in order of execution.

    ``E`` embedding, ``t`` decoder layer, ``m`` multi-token-prediction layer, ``L`` loss, ``|`` next stage, ``x*n`` and
    ``(...)*n`` repetition; commas are decoration. Source: Megatron-LM
    ``megatron/core/transformer/pipeline_parallel_layer_layout.py``.

    Raises:
        PlanError: The string is not a layout.
    """
    compact = text.replace(",", "").replace(" ", "")
    stray = re.search(rf"[^{_SYMBOLS}|()*0-9]", compact)
    if stray:
        raise PlanError(
            "parallel.pipeline_layout", f"{stray.group()!r} in {text!r} is no layout symbol", "use E t m L | * ( )"
        )
    expanded = compact
    while "(" in expanded:
        match = re.search(r"\(([^()]*)\)(?:\*(\d+))?", expanded)
        if match is None:
            raise PlanError("parallel.pipeline_layout", f"unbalanced parentheses in {text!r}")
        expanded = _splice(expanded, match, text)
    while True:
        match = re.search(rf"([{_SYMBOLS}|])\*(\d+)", expanded)
        if match is None:
            break
        expanded = _splice(expanded, match, text)
    if not re.fullmatch(rf"[{_SYMBOLS}|]+", expanded):
        raise PlanError("parallel.pipeline_layout", f"cannot read {text!r}", "write it like 'Et*3|(tt|)*29m|L'")
    return expanded.split("|")


def _splice(expanded: str, match: re.Match[str], text: str) -> str:
    repeated = int(match.group(2) or 1)
    if repeated * max(len(match.group(1)), 1) + len(expanded) > _MAX_ITEMS:
        raise PlanError("parallel.pipeline_layout", f"{text!r} names more than {_MAX_ITEMS} items")
    return expanded[: match.start()] + match.group(1) * repeated + expanded[match.end() :]


def layout_chunks(text: str, pp: int, layers: int, mtp_layers: int) -> list[Chunk]:
    """The virtual stages that a layout string describes, checked as Megatron checks them.

    Returns:
        Chunks in order of execution; chunk ``i`` lives on stage ``i % pp``.

    Raises:
        PlanError: The string does not describe this model on ``pp`` stages.
    """
    where = "parallel.pipeline_layout"
    stages = parse_layout(text)
    if len(stages) % pp:
        raise PlanError(where, f"{text!r} has {len(stages)} stages, which pp={pp} does not divide")
    everything = "".join(stages)
    for symbol, expected, name in (
        ("E", 1, "embeddings (E)"),
        ("L", 1, "losses (L)"),
        ("t", layers, "decoder layers (t)"),
        ("m", mtp_layers, "multi-token-prediction layers (m)"),
    ):
        if everything.count(symbol) != expected:
            raise PlanError(where, f"{text!r} has {everything.count(symbol)} {name}, the model has {expected}")
    if not everything.startswith("E") or not everything.endswith("L"):
        raise PlanError(where, f"{text!r} must begin with E and end with L")
    if sum("m" in stage for stage in stages) > 1:
        raise PlanError(where, f"{text!r} spreads multi-token prediction over stages", "keep every m in one stage")
    chunks = []
    first = 0
    for stage in stages:
        count = stage.count("t")
        chunks.append(Chunk(first, count, stage.count("m"), "E" in stage, "L" in stage))
        first += count
    return chunks


def even_chunks(pp: int, vpp: int, layers: int, mtp_layers: int) -> list[Chunk] | None:
    """The even split: over the layers, or with embedding and loss counted as a layer each.

    Returns:
        Chunks in order of execution, or None when neither divides by ``pp * vpp`` (the plan then needs a layout).
        Multi-token prediction lives with the loss.
    """
    virtual = pp * vpp
    if layers % virtual == 0:
        counts = [layers // virtual] * virtual
    elif (layers + 2) % virtual == 0 and virtual > 1:
        # Megatron's account_for_embedding_in_pipeline_split and account_for_loss_in_pipeline_split.
        counts = [(layers + 2) // virtual] * virtual
        counts[0] -= 1
        counts[-1] -= 1
    else:
        return None
    chunks = []
    first = 0
    for position, count in enumerate(counts):
        last = position == virtual - 1
        chunks.append(Chunk(first, count, mtp_layers if last else 0, position == 0, last))
        first += count
    return chunks
