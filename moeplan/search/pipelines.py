"""Ways to cut a model into virtual pipeline stages: Megatron's even split, or a balanced layout where there is none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from moeplan.errors import PlanError
from moeplan.estimator.layout import even_chunks, layout_chunks, parse_layout
from moeplan.model.architecture import Architecture, Layer
from moeplan.operators.base import unsharded

# A balanced cut is found by bisection on the largest stage; 2^-40 of the total is far below one layer's share.
_BISECTIONS = 40
# Keeps rounding from opening a stage that exact sums would not.
_TOLERANCE = 1 + 1e-9


@dataclass(frozen=True, slots=True)
class Pipeline:
    """One way to cut the model.

    Attributes:
        pp: Pipeline ranks.
        vpp: Virtual stages per rank.
        mtp_layers: The candidate's value of that column (None: the model's own number).
        layout: Megatron's layout string, or None for the even split.
    """

    pp: int
    vpp: int
    mtp_layers: int | None
    layout: str | None


def pipelines(
    architecture: Architecture,
    pp_choices: Iterable[int],
    vpp_choices: Sequence[int],
    mtp_choices: Sequence[int | None],
    layouts: Sequence[str | None] | None,
) -> list[Pipeline]:
    """Every way to cut the model that the choices leave.

    Args:
        architecture: The model.
        pp_choices: Pipeline degrees.
        vpp_choices: Virtual stages per rank.
        mtp_choices: Values of ``mtp_layers``.
        layouts: Layout strings (None among them: the even split), or None to make balanced ones where needed.

    Returns:
        Distinct pipelines in a fixed order, each of which Megatron accepts as far as the layers go.
    """
    costs = (_costs(architecture, active=True), _costs(architecture, active=False))
    found: list[Pipeline] = []
    for pp in pp_choices:
        for mtp in mtp_choices:
            trained = 0 if architecture.mtp_layer is None else architecture.mtp_layers if mtp is None else mtp
            if layouts is not None:
                found += _given(architecture, pp, vpp_choices, mtp, trained, layouts)
                continue
            for vpp in vpp_choices:
                if vpp > 1 and pp == 1:
                    continue
                found += [Pipeline(pp, vpp, mtp, layout) for layout in _made(architecture, pp, vpp, trained, costs)]
    return list(dict.fromkeys(found))


def _given(
    architecture: Architecture,
    pp: int,
    vpp_choices: Sequence[int],
    mtp: int | None,
    trained: int,
    layouts: Sequence[str | None],
) -> list[Pipeline]:
    """The user's own layouts, as far as they suit this pp."""
    found = []
    for layout in layouts:
        if layout is None:
            even = [vpp for vpp in vpp_choices if even_chunks(pp, vpp, len(architecture.layers), trained) is not None]
            found += [Pipeline(pp, vpp, mtp, None) for vpp in even if vpp == 1 or pp > 1]
            continue
        stages = len(parse_layout(layout))
        try:
            layout_chunks(layout, pp, len(architecture.layers), trained)
        except PlanError:
            continue
        found.append(Pipeline(pp, stages // pp, mtp, layout))
    return found


def _made(architecture: Architecture, pp: int, vpp: int, trained: int, costs: Sequence[Costs]) -> list[str | None]:
    """The even split where Megatron has one; balanced layouts where it has none or multi-token prediction tilts it."""
    layers = len(architecture.layers)
    stages = pp * vpp
    found: list[str | None] = []
    if even_chunks(pp, vpp, layers, trained) is not None:
        found.append(None)
        if not trained:
            return found
    if stages == 1 or stages > layers + 2:
        return found
    for balance in costs:
        layout = balanced_layout(balance, pp, vpp, trained)
        if layout is not None and layout not in found:
            found.append(layout)
    return found


@dataclass(frozen=True, slots=True)
class Costs:
    """Relative cost of everything that a stage may hold.

    Attributes:
        layers: Each decoder layer, in order.
        embedding: The embedding.
        mtp: One multi-token-prediction layer with its pass through the head.
        head: The head and the loss.
    """

    layers: tuple[float, ...]
    embedding: float
    mtp: float
    head: float


def balanced_layout(costs: Costs, pp: int, vpp: int, mtp_layers: int) -> str | None:
    """Cut the model so that the dearest virtual stage is as cheap as it can be, in Megatron's notation.

    Every stage holds something, multi-token prediction and the loss end the last stages, and each stage takes layers
    greedily up to the smallest limit that suffices (bisection), which is optimal for contiguous cuts.

    Returns:
        A layout of ``pp * vpp`` stages, or None when there are more stages than things to put in them.
    """
    symbols = "E" + "t" * len(costs.layers) + "m" * mtp_layers + "L"
    # The first layer stays with E, which alone would leave a stage idle, and all m together, as Megatron wants.
    weights = [costs.embedding, *costs.layers, *([costs.mtp] * mtp_layers), costs.head]
    glued = [index == 1 or symbols[index - 1 : index + 1] == "mm" for index in range(len(symbols))]
    items: list[tuple[str, float]] = []
    for symbol, weight, joins in zip(symbols, weights, glued, strict=True):
        if joins:
            items[-1] = (items[-1][0] + symbol, items[-1][1] + weight)
        else:
            items.append((symbol, weight))
    stages = pp * vpp
    if stages > len(items):
        return None
    weights_of_items = [weight for _, weight in items]
    low, high = max(weights_of_items), sum(weights_of_items)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if _filled(weights_of_items, middle) <= stages:
            high = middle
        else:
            low = middle
    cut = _greedy(items, high, stages)
    return _notation(cut)


def _filled(weights: list[float], limit: float) -> int:
    """How many stages :func:`_greedy` fills, without saying with what."""
    stages, load = 1, 0.0
    for weight in reversed(weights):
        if load > 0 and load + weight > limit * _TOLERANCE:
            stages, load = stages + 1, 0.0
        load += weight
    return stages


def _greedy(items: list[tuple[str, float]], limit: float, stages: int = 1) -> list[str]:
    """Fill stages from the back up to ``limit``, but leave at least one item for each of ``stages`` still to come.

    Going backwards leaves the slack to the first stages, which keep the most micro batches in flight.
    """
    cut: list[str] = []
    current, load = "", 0.0
    for position, (symbols, weight) in enumerate(reversed(items)):
        stages_left = stages - len(cut) - 1
        must_close = current and len(items) - position <= stages_left
        if current and (must_close or load + weight > limit * _TOLERANCE):
            cut.append(current)
            current, load = "", 0.0
        current = symbols + current
        load += weight
    return [*cut, current][::-1]


def _notation(stages: list[str]) -> str:
    """Megatron's shorthand: runs of equal stages as ``(tt|)*n``, runs of layers as ``t*n``."""

    def short(stage: str) -> str:
        runs = [(symbol, len(list(group))) for symbol, group in groupby(stage)]
        return "".join(f"{symbol}*{count}" if count > 3 else symbol * count for symbol, count in runs)

    text = ""
    runs = [(stage, len(list(group))) for stage, group in groupby(stages)]
    for position, (stage, count) in enumerate(runs):
        last = position == len(runs) - 1
        separator = "" if last else "|"
        if count > 1 and not last:
            text += f"({stage}|)*{count}"
        else:
            text += "|".join([short(stage)] * count) + separator
    return text


def _costs(architecture: Architecture, active: bool) -> Costs:
    """What stages are balanced by.

    Args:
        architecture: The model.
        active: Parameters that a token meets, which are its work: six FLOPs each (Kaplan et al. 2020,
            arXiv:2001.08361), none for looking up an embedding. Otherwise every parameter held, which is memory.
    """
    kinds = [_parameters(layer, active) for layer in architecture.kinds]
    table = _parameters(Layer((architecture.embedding,)), active)
    head = _parameters(Layer((architecture.final_norm, architecture.head)), active)
    if architecture.head.tied:
        head += table
    mtp = 0.0
    if architecture.mtp_layer is not None:
        # Every depth runs the head once more, and its stage holds the embedding once more (DeepSeek-V3, section 2.2).
        mtp = _parameters(architecture.mtp_layer, active) + (head if active else table)
    return Costs(tuple(kinds[kind] for kind in architecture.layer_kinds), 0.0 if active else table, mtp, head)


def _parameters(layer: Layer | None, active: bool) -> float:
    if layer is None:
        return 0.0
    moe = layer.moe
    share = moe.top_k / moe.experts if moe is not None and active else 1.0
    return float(
        sum(
            float(weight.elements[0]) * (share if weight.component == "routed_experts" else 1.0)
            for weight in layer.weights(unsharded())
        )
    )
