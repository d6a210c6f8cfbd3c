"""Models as users hand them over: documents, counted models, multimodal wrappers, and everything that is wrong."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeplan.errors import PlanError
from moeplan.model import load_model, load_model_config, model_names

MIXTRAL = load_model_config("mixtral-8x7b")
DOCUMENT: dict[str, Any] = {
    "architecture": "decoder",
    "hidden_size": 512,
    "layers": 12,
    "vocabulary": 50304,
    "heads": 8,
    "ffn": 2048,
}


def refuse(reference: Any) -> str:
    """The message of the refusal, which is one line."""
    with pytest.raises(PlanError) as caught:
        load_model(reference)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_document_counts_as_gpt2s_closed_form() -> None:
    """Biases everywhere, LayerNorm, learned positions, tied embeddings: 12 L h^2 + 13 L h + (V + P) h + 2 h."""
    architecture = load_model(
        DOCUMENT
        | {
            "linear_bias": True,
            "norm": "layernorm",
            "position": "learned",
            "max_sequence_length": 1024,
            "tied_embeddings": True,
        }
    )
    h, layers = 512, 12
    assert architecture.total_parameters == 12 * layers * h * h + 13 * layers * h + (50304 + 1024) * h + 2 * h


def test_a_document_states_what_a_configuration_does() -> None:
    """DeepSeek-V3 written out as a document is the same architecture as its configuration."""
    config = load_model("deepseek-v3")
    document = load_model(
        {
            "architecture": "decoder",
            "hidden_size": 7168,
            "layers": 61,
            "vocabulary": 129280,
            "heads": 128,
            "ffn": 18432,
            "gated": True,
            "latent_attention": {
                "q_lora_rank": 1536,
                "kv_lora_rank": 512,
                "qk_nope_head_dim": 128,
                "qk_rope_head_dim": 64,
                "v_head_dim": 128,
            },
            "moe": {
                "experts": 256,
                "top_k": 8,
                "ffn": 2048,
                "shared_ffn": 2048,
                "layers": [0] * 3 + [1] * 58,
                "score_function": "sigmoid",
                "correction_bias": True,
            },
            "mtp_layers": 1,
        }
    )
    assert document.layers == config.layers
    assert document.mtp_layer == config.mtp_layer
    assert document.components == config.components


def test_a_hybrid_document_is_the_hybrid_configuration() -> None:
    """Megatron's layer letters and Nemotron's configuration name the same layers."""
    config = load_model("nemotron-3-nano-30b-a3b")
    raw = load_model_config("nemotron-3-nano-30b-a3b")
    document = load_model(
        {
            "architecture": "decoder",
            "hidden_size": 2688,
            "layers": 52,
            "vocabulary": 131072,
            "heads": 32,
            "kv_heads": 2,
            "head_dim": 128,
            "pattern": raw["hybrid_override_pattern"],
            "moe": {"experts": 128, "top_k": 6, "ffn": 1856, "shared_ffn": 3712, "score_function": "sigmoid"},
            "mamba": {"heads": 64, "head_dim": 64, "state": 128, "groups": 8},
        }
    )
    assert document.layers == config.layers


def test_moe_frequency_places_layers_as_megatron_does() -> None:
    """Megatron-LM: layer i is MoE where i % frequency == 0 (transformer_config.py, moe_layer_freq)."""
    architecture = load_model(DOCUMENT | {"moe": {"experts": 4, "top_k": 1, "layers": 3}})
    assert [layer.moe is not None for layer in architecture.layers] == [i % 3 == 0 for i in range(12)]


def test_a_counted_model_is_the_articles_example() -> None:
    """64 experts of 1B and 10B shared are 74B parameters, of which a quarter of the experts is active."""
    given_ = {"experts": 64, "expert_parameters": "1e9", "shared_parameters": "10B", "active_ratio": 0.25}
    architecture = load_model(given_)
    assert architecture.family == "counted"
    assert architecture.total_parameters == 74_000_000_000
    assert architecture.active_parameters() == 26_000_000_000
    assert architecture.components["routed_experts"] == 64_000_000_000


def test_a_folder_and_its_file_are_one_model(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(MIXTRAL))
    for reference in (folder, str(folder), folder / "config.json"):
        architecture = load_model(reference)
        assert architecture.name == "my-model"
        assert architecture.total_parameters == 46_702_792_704


def test_a_known_wrapper_counts_its_text_model() -> None:
    text = load_model_config("llama-4-scout-text")
    wrapper = {"model_type": "llama4", "text_config": text, "vision_config": {"hidden_size": 1408}}
    assert load_model(wrapper).total_parameters == 107_769_861_120


@pytest.mark.parametrize(
    ("name", "extras"),
    [
        # What the original files on the hub hold beside the shapes: training, serving and remote-code keys.
        ("minimax-m2", {"use_mtp": True, "num_mtp_modules": 3, "mtp_transformer_layers": 1, "use_routing_bias": True}),
        ("minimax-m2", {"shared_intermediate_size": 0, "attn_type_list": [1] * 62}),
        ("hunyuan-a13b", {"moe_intermediate_size": [3072] * 32, "use_cla": False, "use_mixed_mlp_moe": True}),
        ("deepseek-v3", {"auto_map": {"AutoConfig": "x.Y"}, "quantization_config": {"quant_method": "fp8"}}),
        ("kimi-k2", {"model_type": "kimi_k2", "pretraining_tp": 1}),
        ("longcat-flash", {"attention_method": "MLA"}),
        ("mimo-v2-flash", {"hybrid_layer_pattern": [int(i and (i + 1) % 6 != 0) for i in range(48)]}),
        ("mimo-v2-flash", {"moe_layer_freq": [0] + [1] * 47, "add_swa_attention_sink_bias": True}),
        ("llama-3-8b", {"torch_dtype": "float16", "use_cache": False, "task_specific_params": None}),
    ],
)
def test_keys_without_effect_change_nothing(name: str, extras: dict[str, Any]) -> None:
    config = load_model_config(name)
    assert load_model(config | extras).layers == load_model(config).layers


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("minimax-m2", {"shared_intermediate_size": 1024}, "shared_intermediate_size"),
        ("minimax-m2", {"attn_type_list": [0] * 62}, "attn_type_list"),
        ("hunyuan-a13b", {"moe_intermediate_size": [1024] * 32}, "moe_intermediate_size"),
        ("hunyuan-a13b", {"use_cla": True}, "use_cla"),
        ("deepseek-v3", {"moe_layer_freq": 2}, "moe_layer_freq"),
        ("dbrx", {"tie_word_embeddings": True}, "tie_word_embeddings"),
        ("afmoe", {}, "no such model"),
        ("trinity-mini", {"attention_bias": True}, "attention_bias"),
        ("glm-5", {"index_topk_freq": 4}, "index_topk_freq"),
        ("minimax-text-01", {"layer_types": ["full_attention"]}, "80"),
    ],
)
def test_keys_that_the_class_would_build_differently_are_refused(name: str, change: dict[str, Any], said: str) -> None:
    assert said in refuse(load_model_config(name) | change if change else name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "mixtrall"}, "did you mean 'mixtral'"),
        ({"model_type": "t5"}, "not an architecture"),
        ({"model_type": "llava", "text_config": {}}, "give its text_config alone"),
        ({"model_type": 3}, "not a string"),
        ({"hidden_size": -1}, "hidden_size"),
        ({"hidden_size": "4096"}, "not a whole number"),
        ({"hidden_size": 10**30}, "out of range"),
        ({"hidden_size": float("nan")}, "not a whole number"),
        ({"num_hidden_layers": 10**9}, "out of range"),
        ({"num_local_experts": 0}, "out of range"),
        ({"num_experts_per_tok": 9}, "more than the 8 experts"),
        ({"num_key_value_heads": 5}, "does not divide"),
        ({"num_experts": 16}, "contradicts"),
        ({"expert_dimension_multiplier": 2}, "expert_dimension_multiplier"),
        ({"mamba_d_state": 16}, "mamba_d_state"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"tie_word_embeddings": "yes"}, "not true or false"),
        ({"rope_parameters": [1]}, "not a mapping"),
    ],
)
def test_what_cannot_be_counted_is_refused_by_name(change: dict[str, Any], said: str) -> None:
    assert said in refuse(MIXTRAL | change)


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "num_local_experts", "vocab_size", "model_type"])
def test_a_missing_key_is_named(key: str) -> None:
    message = refuse({name: value for name, value in MIXTRAL.items() if name != key})
    assert key in message or "num_experts" in message


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("mixtral-8x70b", "did you mean 'mixtral-8x7b'"),
        ("", "empty"),
        ("no/such/path/config.json", "no such"),
        ({}, "model_type is missing"),
        (DOCUMENT | {"hiden_size": 3}, "hidden_size"),
        (DOCUMENT | {"norm": "batchnorm"}, "norm"),
        (DOCUMENT | {"architecture": "encoder"}, "architecture"),
        (DOCUMENT | {"moe": {"experts": 4, "top_k": 8}}, "top_k"),
        (DOCUMENT | {"moe": {"experts": 4, "top_k": 1, "layers": [1, 0]}}, "12"),
        (DOCUMENT | {"pattern": "M*-Q"}, "pattern"),
        (DOCUMENT | {"position": "learned"}, "learned_positions"),
        ({"experts": 64, "expert_parameters": 1e9, "expert_params": 2}, "expert_params"),
        ({"experts": 64, "expert_parameters": "lots"}, "not a number"),
        ({"experts": 64, "expert_parameters": 1e9, "active_ratio": 1.5}, "active_ratio"),
        ({"experts": float("inf"), "expert_parameters": 1e9}, "experts"),
        ({"expert_parameters": 1e9}, "experts is missing"),
    ],
)
def test_bad_references_are_refused(reference: Any, said: str) -> None:
    assert said in refuse(reference)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '{"model_type": "mixtral"', "\x00\x01", '"text"', "[" * 100_000])
def test_broken_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    assert "config.json" in refuse(path)


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path) -> None:
    assert "config.json" in refuse(tmp_path)


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.one_of(st.integers(-2, 2**40), st.text(max_size=4), st.none()), max_size=5),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=3),
)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_damage_is_counted_or_refused_in_one_line(data: st.DataObject) -> None:
    """Whatever replaces a value, there is an architecture with whole, positive counts or a refusal; never a crash."""
    config = copy.deepcopy(load_model_config(data.draw(st.sampled_from(model_names()))))
    for key in data.draw(st.lists(st.sampled_from(sorted(config)), min_size=1, max_size=2)):
        config[key] = data.draw(JUNK)
    try:
        architecture = load_model(config)
    except PlanError as error:
        assert "\n" not in str(error)
        return
    assert architecture.total_parameters > 0
    assert 0 < architecture.active_parameters() <= architecture.total_parameters
    assert all(count >= 0 for count in architecture.components.values())


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_damage_to_a_document_is_refused_or_counted(data: st.DataObject) -> None:
    document = DOCUMENT | {"moe": {"experts": 4, "top_k": 2}}
    key = data.draw(
        st.sampled_from([*document, "kv_heads", "window", "mamba", "latent_attention", "pattern", "qk_norm"])
    )
    try:
        architecture = load_model(document | {key: data.draw(JUNK)})
    except PlanError as error:
        assert "\n" not in str(error)
        return
    assert architecture.total_parameters > 0


@settings(max_examples=60, deadline=None)
@given(
    experts=st.integers(1, 512),
    top_k=st.integers(1, 8),
    hidden=st.sampled_from([64, 512, 4096]),
    ffn=st.integers(1, 4096),
    layers=st.integers(1, 6),
)
def test_mixtral_like_counts_follow_their_closed_form(
    experts: int, top_k: int, hidden: int, ffn: int, layers: int
) -> None:
    config = MIXTRAL | {
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "num_local_experts": max(experts, top_k),
        "num_experts_per_tok": top_k,
        "num_hidden_layers": layers,
    }
    count = max(experts, top_k)
    attention = hidden * hidden * 2 + 2 * hidden * hidden // 4
    layer = attention + count * 3 * hidden * ffn + count * hidden + 2 * hidden
    architecture = load_model(config)
    assert architecture.total_parameters == layers * layer + 2 * 32000 * hidden + hidden
    inactive = layers * (count - top_k) * 3 * hidden * ffn
    np.testing.assert_allclose(architecture.active_parameters(), architecture.total_parameters - inactive, atol=1)
