"""Search spaces: the shipped ones load, the format is strict, one key asks for one thing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moeplan.errors import PlanError
from moeplan.search.space import load_space, space_names


def test_shipped_spaces() -> None:
    names = space_names()
    assert {"default", "active-ratio", "precision", "fsdp", "everything"} <= set(names)
    default = load_space()
    for name in names:
        space = load_space(name)
        assert space.choices.keys() >= default.choices.keys()
    # What changes the trained model is opened only by the spaces that say so.
    changing = ("top_k", "precision", "global_batch_size", "sequence_length", "capacity_factor", "mtp_layers")
    assert default.opened(changing) == ()
    assert load_space("quick").opened(changing) == ()
    assert load_space("active-ratio").opened(changing) == ("top_k",)
    assert load_space("precision").opened(changing) == ("precision",)


def test_lists_ranges_and_single_values() -> None:
    space = load_space(
        {
            "precision": ["bf16", "fp8", "bf16"],
            "parallel": {"tp": {"low": 1, "high": 9, "pow2": True}, "cp": {"low": 2, "high": 8, "step": 3}, "pp": 4},
            "optimizer": {"offload_fraction": {"low": 0.0, "high": 1.0, "step": 0.25}},
            "recompute": {"modules": ["core_attn", "moe"]},
            "moe": {"top_k": [None, 4]},
        }
    )
    assert space.choices["precision"] == ("bf16", "fp8")
    assert space.choices["tp"] == (1, 2, 4, 8)
    assert space.choices["cp"] == (2, 5, 8)
    assert space.choices["pp"] == (4,)
    assert space.choices["offload_fraction"] == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert space.choices["recompute_modules"] == (("core_attn", "moe"),)
    assert space.choices["top_k"] == (None, 4)
    # Everything else is the default space's.
    assert space.choices["micro_batch_size"] == load_space().choices["micro_batch_size"]


def test_lists_of_lists_are_choices_of_lists() -> None:
    space = load_space({"recompute": {"modules": [["core_attn"], ["moe", "layernorm"]]}})
    assert space.choices["recompute_modules"] == (("core_attn",), ("moe", "layernorm"))


def test_files_and_overlays(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("model: deepseek-v3\nhardware: {gpu: h100, gpus: [64, 128]}\nparallel: {tp: [1, 2]}\n")
    space = load_space(str(path))
    assert (space.model, space.gpu) == ("deepseek-v3", "h100")
    assert space.choices["gpus"] == (64, 128)
    narrowed = space.overlaid({"parallel": {"tp": 2, "pp": [1, 2]}}, "flags")
    assert narrowed.choices["tp"] == (2,)
    assert narrowed.choices["pp"] == (1, 2)
    assert narrowed.model == "deepseek-v3"
    assert space.pinned({"tp": 8}).choices["tp"] == (8,)


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ({"paralel": {"tp": 1}}, "did you mean 'parallel'"),
        ({"parallel": {"tpp": 1}}, "did you mean 'parallel.tp'"),
        ({"parallel": {"tp": 0}}, "parallel.tp cannot be 0"),
        ({"parallel": {"tp": True}}, "parallel.tp cannot be True"),
        ({"parallel": {"tp": "8"}}, "parallel.tp cannot be '8'"),
        ({"parallel": {"tp": []}}, "no choices"),
        ({"parallel": 3}, "write a mapping"),
        ({"precision": ["bf61"]}, "did you mean 'bf16'"),
        ({"recompute": {"modules": ["moee"]}}, "did you mean 'moe'"),
        ({"batch": {"micro_batch_size": {"low": 1}}}, "no high"),
        ({"batch": {"micro_batch_size": {"low": 4, "high": 1}}}, "empty"),
        ({"batch": {"micro_batch_size": {"low": 1, "high": float("nan")}}}, "give a number"),
        ({"batch": {"micro_batch_size": {"low": 1, "high": 4, "stepp": 1}}}, "did you mean 'step'"),
        ({"batch": {"micro_batch_size": {"low": 1, "high": 4, "step": 0}}}, "positive step"),
        ({"batch": {"micro_batch_size": {"low": 1, "high": 10**9}}}, "leave at most"),
        ({"batch": {"micro_batch_size": {"low": 0, "high": 8, "pow2": True}}}, "pow2"),
        ({"model": ["a", "b"]}, "one model"),
    ],
)
def test_bad_spaces_are_refused_in_one_line(document: dict[str, Any], told: str) -> None:
    with pytest.raises(PlanError) as caught:
        load_space(document)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_names_and_files(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="did you mean 'default'"):
        load_space("defalt")
    with pytest.raises(PlanError):
        load_space(str(tmp_path / "none.yaml"))
    bad = tmp_path / "bad.yaml"
    bad.write_text("parallel: {tp: [1, 2")
    with pytest.raises(PlanError, match=r"bad\.yaml"):
        load_space(str(bad))


def test_too_many_knobs_are_refused_before_they_fill_the_memory() -> None:
    from support.search_cases import request

    from moeplan.search import search

    wide = {
        "optimizer": {"offload_fraction": {"low": 0.0, "high": 1.0, "step": 0.001}},
        "moe": {"load_imbalance": {"low": 1.0, "high": 2.0, "step": 0.01}},
    }
    with pytest.raises(PlanError, match="offload_fraction"):
        search(request(space=wide))
