"""Counts against transformers' own classes, where transformers and torch are installed (they are no dependency)."""

from __future__ import annotations

import random

import pytest

from moeplan.errors import PlanError
from moeplan.model import load_model, load_model_config
from moeplan.model.families import FAMILIES
from moeplan.model.reader import WRAPPERS

pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("torch", reason="torch is not installed")

import transformers_counts as classes

# transformers allocates rows for LongCat's identity experts; DBRX reads a nested rope_theta that its defaults lack.
LEFT_OUT = {"longcat_flash", "dbrx"}
CHECKED = sorted(name for name in FAMILIES if classes.has_class(name) and name not in LEFT_OUT)
# Read as null, because files that transformers saved circulate without their nulls.
MEANT = {("deepseek_v2", "q_lora_rank left out"), ("deepseek_v3", "q_lora_rank left out")}


@pytest.mark.parametrize("family", CHECKED)
def test_components_match_the_class(family: str) -> None:
    mapping = classes.default_config(family)
    expected = classes.class_counts(mapping)
    architecture = load_model(mapping)
    assert architecture.total_parameters == expected.pop("total")
    assert {name: count for name, count in architecture.components.items() if count} == expected


@pytest.mark.parametrize("family", CHECKED)
def test_a_changed_key_is_counted_as_the_class_does_or_refused(family: str) -> None:
    found = list(classes.variants(classes.default_config(family)))
    for what, mapping in random.Random(family).sample(found, 8):
        try:
            ours = load_model(mapping).total_parameters
        except PlanError:
            continue
        try:
            theirs = classes.class_counts(mapping)["total"]
        except Exception:  # the class itself refuses this value
            continue
        assert ours == theirs or (family, what) in MEANT, what


@pytest.mark.parametrize("name", ["dbrx", "llama-4-maverick-text", "minimax-text-01", "jamba-v0.1", "deepseek-v3.2"])
def test_released_models_match_the_class(name: str) -> None:
    assert load_model(name).total_parameters == classes.class_counts(load_model_config(name))["total"]


@pytest.mark.parametrize("wrapper", sorted(set(WRAPPERS) - {"kimi_vl"}))
def test_wrappers_count_the_text_model_of_the_multimodal_class(wrapper: str) -> None:
    mapping, expected = classes.text_model_counts(wrapper)
    assert load_model(mapping).total_parameters == expected
