"""What launch files need of a model beside the shapes of its weights: nothing here changes a parameter count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

ScoreFunction = Literal["softmax", "sigmoid", "sqrtsoftplus"]


@dataclass(frozen=True, slots=True)
class ModelDetails:
    """Facts of the forward pass that a framework wants spelled out. None means: the model does not say.

    Attributes:
        rotary_base: Base of the rotary frequencies (``rope_theta``), None where nothing is said of it.
        rotary_percent: Share of a head that is rotated (``partial_rotary_factor``).
        rope_scaling: Hugging Face's mapping of a context extension (YaRN, llama3, ...), without ``rope_theta``.
        position: How positions enter.
        norm_epsilon: Epsilon of the norms.
        activation: Hugging Face's name of the feed-forward activation (``silu``, ``relu2``, ...).
        init_std: Standard deviation of the initial weights.
        score_function: What turns router logits into scores.
        normalize_scores: The chosen scores are divided by their sum (``norm_topk_prob``).
        router_groups: Groups that group-limited routing divides the experts into (``n_group``).
        router_group_top_k: Groups that a token may use (``topk_group``).
        routed_scaling: Factor on the routed output (``routed_scaling_factor``).
        aux_loss_coefficient: Weight of the load-balancing loss.
        correction_bias: The router balances itself with a per-expert bias (DeepSeek-V3), be it a
            buffer or a parameter.
        attention_multiplier: Softmax scale where it is not 1/sqrt(head_dim).
        embedding_multiplier: Factor on the embeddings.
        residual_multiplier: Factor on every residual branch.
        logits_scaling: Divisor of the logits.
        raw: The configuration that was read, as it stood.
    """

    rotary_base: float | None = None
    rotary_percent: float | None = None
    rope_scaling: Mapping[str, Any] | None = field(default=None, compare=False)
    position: Literal["rope", "learned", "alibi", "none"] = "rope"
    norm_epsilon: float | None = None
    activation: str | None = None
    init_std: float | None = None
    score_function: ScoreFunction = "softmax"
    normalize_scores: bool | None = None
    router_groups: int | None = None
    router_group_top_k: int | None = None
    routed_scaling: float | None = None
    aux_loss_coefficient: float | None = None
    correction_bias: bool = False
    attention_multiplier: float | None = None
    embedding_multiplier: float | None = None
    residual_multiplier: float | None = None
    logits_scaling: float | None = None
    raw: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
