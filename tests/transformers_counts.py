"""Parameter counts from transformers' own classes on the meta device: nothing is allocated, no network is used."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Iterator
from typing import Any

# What a class needs beyond its defaults to be built at all, or to show every kind of layer it has.
PRESETS: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"]},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "deepseek_v4": {
        "layer_types": [
            "heavily_compressed_attention",
            "compressed_sparse_attention",
            "sliding_attention",
            "compressed_sparse_attention",
        ]
    },
    "dots1": {"n_routed_experts": 8, "n_shared_experts": 2, "num_experts_per_tok": 2, "head_dim": 32},
    "granitemoehybrid": {
        "layer_types": ["linear_attention", "full_attention", "linear_attention", "linear_attention"],
        "shared_intermediate_size": 512,
    },
    "granitemoeshared": {"shared_intermediate_size": 512},
    "hunyuan_v1_dense": {"head_dim": 32},
    "hunyuan_v1_moe": {"head_dim": 32, "num_experts": 8, "moe_topk": 2},
    "jamba": {"attn_layer_offset": 1, "attn_layer_period": 3},
    "kimi_linear": {"layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"]},
    "lfm2": {"layer_types": ["conv", "conv", "full_attention", "conv"]},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"]},
    "minimax_m3_vl_text": {
        "layer_types": ["full_attention", "minimax_m3_sparse", "minimax_m3_sparse", "full_attention"],
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
    },
    "ministral": {"head_dim": 32},
    "ministral3": {"head_dim": 32},
    "mistral": {"head_dim": 32},
    "nemotron": {"head_dim": 128, "num_key_value_heads": 8},
    "nemotron_h": {"hidden_size": 2048, "moe_latent_size": 256, "use_bias": True, "mlp_bias": True},
}
LAYERS = 4
_GENERIC = frozenset(
    """model_type id2label label2id transformers_version architectures bos_token_id eos_token_id pad_token_id dtype
    is_encoder_decoder return_dict output_attentions output_hidden_states problem_type _name_or_path use_cache
    chunk_size_feed_forward add_cross_attention""".split()  # noqa: SIM905
)


def quiet() -> None:
    """Silence transformers: its advice about kernels and deprecations says nothing here."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)


def has_class(model_type: str) -> bool:
    """Whether this version of transformers can build a causal language model of the family."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return model_type in CONFIG_MAPPING and model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def default_config(model_type: str) -> dict[str, Any]:
    """The family's default configuration at :data:`LAYERS` layers, as ``config.json`` would hold it, without nulls."""
    from transformers import CONFIG_MAPPING

    preset = PRESETS.get(model_type, {})
    error: Exception | None = None
    for depth in ("num_hidden_layers", "num_layers", "n_layers", "n_layer"):
        try:
            config = CONFIG_MAPPING[model_type](**{depth: LAYERS, **preset})
        except Exception as failure:  # a class that computes its depth refuses it; try the next spelling
            error = failure
            continue
        mapping = json.loads(json.dumps(config.to_dict(), default=str))
        return {key: value for key, value in mapping.items() if value is not None}
    raise RuntimeError(f"{model_type}: no default configuration") from error


def class_counts(mapping: dict[str, Any]) -> dict[str, int]:
    """Parameters by component of the family's own class, and ``total``; tied tensors count once."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    config = CONFIG_MAPPING[mapping["model_type"]].from_dict(copy.deepcopy(mapping))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    classes = {name: type(module).__name__ for name, module in model.named_modules()}
    counts: dict[str, int] = {"total": 0}
    for name, parameter in model.named_parameters():
        parts = name.split(".")[:-1]
        owners = [classes[".".join(parts[: i + 1])] for i in range(len(parts))]
        component = classify(name, owners)
        counts[component] = counts.get(component, 0) + parameter.numel()
        counts["total"] += parameter.numel()
    return counts


def text_model_counts(wrapper: str) -> tuple[dict[str, Any], int]:
    """A multimodal class at :data:`LAYERS` text layers: its configuration, and the parameters of its text model."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

    config = CONFIG_MAPPING[wrapper]()
    text = config.text_config
    text.num_hidden_layers = LAYERS
    for key in ("layer_types", "mlp_layer_types", "indexer_types", "no_rope_layers"):
        if getattr(text, key, None) is not None:
            setattr(text, key, getattr(text, key)[:LAYERS])
    if wrapper == "llama4":
        text.moe_layers = list(range(LAYERS))
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    other = ("vision", "visual", "multi_modal", "merge")
    parameters = (p.numel() for name, p in model.named_parameters() if not any(word in name for word in other))
    mapping = json.loads(json.dumps(config.to_dict(), default=str))
    return mapping, sum(parameters)


def classify(name: str, owners: list[str]) -> str:
    """The component of a parameter by its name and by the classes of the modules that hold it."""

    def owned(*words: str) -> bool:
        return any(word in owner for owner in owners if "DecoderLayer" not in owner for word in words)

    def named(*words: str) -> bool:
        return any(word in name for word in words)

    if any(word in name.split(".")[-2] for word in ("norm", "ln_")):
        return "norms"
    if named("lm_head"):
        return "lm_head"
    if named("embed", ".wte.", ".wpe."):
        return "embedding"
    if owned("HyperConnection", "ResidualScal", "HyperHead") or named("_hc.", "hc_head", "input_hidden_states_"):
        return "other"
    if named("latent_proj") or name.endswith((".mlp.bias", ".experts.bias")):
        return "other"
    if owned("Mamba", "Mixer", "DeltaNet", "DeltaAttention", "ShortConv", "Lightning"):
        return "other"
    if named("router", "e_score_correction_bias", "expert_bias", ".mlp.gate.", "feed_forward.gate.", "mixer.gate."):
        return "router"
    if named("shared_expert", "shared_mlp"):
        return "shared_experts"
    if named(".experts.") or owned("Experts"):
        return "routed_experts"
    if owned("Attention", "Indexer") or named("self_attn"):
        return "attention"
    return "dense_mlp"


def variants(mapping: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The configuration with one key left out, set to null, switched or changed, for each of its keys."""
    for key, value in mapping.items():
        if key in _GENERIC:
            continue
        yield f"{key} left out", {k: v for k, v in mapping.items() if k != key}
        yield f"{key} = null", {**mapping, key: None}
        if isinstance(value, bool):
            yield f"{key} = {not value}", {**mapping, key: not value}
        elif isinstance(value, int):
            for changed in (2 * value, value // 2):
                yield f"{key} = {changed}", {**mapping, key: changed}
        elif isinstance(value, float):
            yield f"{key} = {1.5 * value}", {**mapping, key: 1.5 * value}
