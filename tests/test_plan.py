"""The plan document: round trips, limits, and what is said of a bad one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeplan.documents import parse_mapping
from moeplan.errors import PlanError
from moeplan.estimator.columns import DEFAULTS
from moeplan.plan import OFFLOAD_MODULES, RECOMPUTE_MODULES, Plan, load_plan

MINIMAL = {"model": "mixtral-8x7b", "hardware": {"gpu": "h100", "gpus": 64}}

# The example of the published format, key for key.
PUBLISHED = """
model: deepseek-v3
hardware:
  gpu: h100-sxm-80gb
  gpus: 256
  gpus_per_node: 8
batch:
  sequence_length: 4096
  micro_batch_size: 1
  global_batch_size: 2048
parallel: {tp: 1, pp: 4, vpp: 1, cp: 1, ep: 64, etp: 1,
           cp_comm: p2p, pipeline_layout: null}
precision: bf16
optimizer: {name: adam, sharding: 1, state_dtype: fp32, gradient_dtype: fp32, offload_fraction: 0.0}
recompute: {granularity: none, modules: [], layers: null}
moe: {top_k: null, dispatcher: alltoall, capacity_factor: null, load_imbalance: 1.0}
mtp_layers: null
kernels: {fused_cross_entropy: true, cuda_graphs: false}
framework: megatron
overlap: {grad_reduce: true, param_gather: true, tp: false, ep: false}
"""

_powers = st.integers(0, 6).map(lambda power: 1 << power)
_recompute = st.one_of(
    st.just({"granularity": "none"}),
    st.lists(st.sampled_from(RECOMPUTE_MODULES), unique=True, min_size=1).map(
        lambda modules: {"granularity": "selective", "modules": modules}
    ),
    st.builds(
        lambda method, layers: {"granularity": "full", "method": method, "layers": layers},
        st.sampled_from([None, "uniform", "block"]),
        st.none() | st.integers(1, 61),
    ),
)
plans = st.fixed_dictionaries(
    {
        "model": st.sampled_from(["mixtral-8x7b", "./config.json", "1e9", "no", "null", "a: b", "ünïcode/é"])
        | st.text(min_size=1, max_size=30)
        | st.just({"experts": 64, "expert_parameters": 1e9}),
        "hardware": st.fixed_dictionaries(
            {
                "gpu": st.sampled_from(["h100", "a100-80gb"]) | st.just({"like": "h100", "name": "mine"}),
                "gpus": st.integers(1, 1 << 20),
                "gpus_per_node": st.sampled_from([4, 8, 72]),
            }
        ),
    },
    optional={
        "batch": st.fixed_dictionaries(
            {},
            optional={
                "sequence_length": st.integers(1, 1 << 20),
                "micro_batch_size": st.integers(1, 64),
                "global_batch_size": st.none() | st.integers(1, 1 << 20),
            },
        ),
        "parallel": st.fixed_dictionaries(
            {},
            optional={
                **dict.fromkeys(("tp", "pp", "vpp", "cp", "ep", "etp"), _powers),
                "sp": st.sampled_from([None, True, False]),
                "cp_comm": st.sampled_from(["p2p", "a2a", "allgather"]),
                "pipeline_layout": st.sampled_from([None, "Et*3|(tt|)*29m|L"]),
                "schedule": st.sampled_from(["1f1b", "zero_bubble", "dualpipe"]),
            },
        ),
        "precision": st.sampled_from(["fp32", "tf32", "fp16", "bf16", "fp8", "mxfp8", "nvfp4"]),
        "optimizer": st.fixed_dictionaries(
            {}, optional={"sharding": st.integers(0, 3), "offload_fraction": st.floats(0, 1)}
        ),
        "recompute": _recompute,
        "activation_offload": st.fixed_dictionaries(
            {}, optional={"modules": st.lists(st.sampled_from(OFFLOAD_MODULES), unique=True), "fraction": st.just(0.5)}
        ),
        "moe": st.fixed_dictionaries(
            {},
            optional={
                "top_k": st.none() | st.integers(1, 64),
                "capacity_factor": st.none() | st.floats(0.5, 4),
                "load_imbalance": st.floats(1, 8),
            },
        ),
        "mtp_layers": st.none() | st.integers(0, 4),
        "overlap": st.fixed_dictionaries({}, optional={"tp": st.booleans(), "ep": st.booleans()}),
    },
)


@given(plans)
def test_a_plan_round_trips_through_yaml_json_and_its_row(document: dict[str, Any]) -> None:
    plan = load_plan(document)
    assert load_plan(parse_mapping(plan.to_yaml(), "plan.yaml")) == plan
    assert load_plan(json.loads(plan.model_dump_json())) == plan
    row = plan.row()
    assert list(row) == list(DEFAULTS)
    assert plan.with_row(row) == plan
    assert plan.with_row(row).row() == row


@given(plans, st.integers(1, 8))
def test_with_row_changes_the_columns_given_and_nothing_else(document: dict[str, Any], tp: int) -> None:
    plan = load_plan(document)
    changed = plan.with_row({"tp": tp, "precision": "fp8", "recompute": "none", "recompute_modules": ()}
                            | {"recompute_method": None, "recompute_layers": None})  # fmt: skip
    expected = plan.row() | {"tp": tp, "precision": "fp8", "recompute": "none", "recompute_modules": ()}
    assert changed.row() == expected | {"recompute_method": None, "recompute_layers": None}


def test_the_published_example_is_a_plan_and_its_values_are_the_defaults() -> None:
    document = parse_mapping(PUBLISHED, "plan")
    plan = load_plan(document)
    told = plan.to_mapping()

    def assert_contained(part: dict[str, Any], whole: dict[str, Any]) -> None:
        for key, value in part.items():
            if isinstance(value, dict):
                assert_contained(value, whole[key])
            else:
                assert whole[key] == value, key

    assert_contained(document, told)
    plain = load_plan(MINIMAL)
    for section in ("precision", "optimizer", "recompute", "moe", "mtp_layers", "kernels", "framework", "overlap"):
        assert plain.to_mapping()[section] == told[section], section


def test_defaults_of_the_document_are_those_of_the_columns() -> None:
    row = load_plan(MINIMAL).row()
    differing = {name for name, value in row.items() if value != DEFAULTS[name]}
    # What a plan cannot leave out, and the batch that follows from it.
    assert differing == {"gpus", "global_batch_size"}


@pytest.mark.parametrize("gpus", [1, 7, 64, 2048])
@pytest.mark.parametrize("sequence_length", [512, 4096, 131_072])
@pytest.mark.parametrize("micro_batch_size", [1, 3])
def test_the_default_batch_divides_and_holds_four_mebitokens(
    gpus: int, sequence_length: int, micro_batch_size: int
) -> None:
    batch = {"sequence_length": sequence_length, "micro_batch_size": micro_batch_size}
    plan = load_plan({"model": "m", "hardware": {"gpu": "h100", "gpus": gpus}, "batch": batch})
    size = plan.global_batch_size
    assert size % (gpus * micro_batch_size) == 0
    assert size * sequence_length >= 1 << 22
    assert size == gpus * micro_batch_size or size * sequence_length < 1 << 23


def test_degrees_follow_folded_expert_parallelism() -> None:
    plan = load_plan({**MINIMAL, "parallel": {"tp": 2, "pp": 2, "cp": 2, "ep": 8, "etp": 2}})
    parallel = plan.parallel
    assert parallel.tp * parallel.cp * plan.dp == parallel.etp * parallel.ep * plan.edp == 64 // parallel.pp
    assert plan.micro_batches * plan.dp * plan.batch.micro_batch_size == plan.global_batch_size


def test_degrees_that_do_not_divide_are_told() -> None:
    with pytest.raises(PlanError, match=r"tp\*pp\*cp = 3 does not divide 64 GPUs"):
        _ = load_plan({**MINIMAL, "parallel": {"tp": 3}}).dp


def test_selective_without_modules_means_core_attention_as_in_megatron() -> None:
    plan = load_plan({**MINIMAL, "recompute": {"granularity": "selective"}})
    assert plan.recompute.modules == ("core_attn",)


def test_a_plan_never_changes() -> None:
    plan = load_plan(MINIMAL)
    with pytest.raises(ValueError, match="frozen"):
        plan.precision = "fp8"
    source: dict[str, Any] = {"model": {"experts": 8}, "hardware": {"gpu": "h100", "gpus": 8}}
    inline = load_plan(source)
    source["model"]["experts"] = 9
    assert inline.model == {"experts": 8}


BAD = [
    ({"hardware": {"gpu": "h100", "gpus": True}}, "hardware.gpus"),
    ({"hardware": {"gpu": "h100", "gpus": "8"}}, "hardware.gpus"),
    ({"hardware": {"gpu": "h100", "gpus": 8.5}}, "hardware.gpus"),
    ({"hardware": {"gpu": "h100", "gpus": 0}}, "hardware.gpus"),
    ({"hardware": {"gpu": "h100", "gpus": -8}}, "hardware.gpus"),
    ({"hardware": {"gpu": "h100", "gpus": 10**30}}, "hardware.gpus"),
    ({"hardware": {"gpu": "h100", "gpus": float("nan")}}, "hardware.gpus"),
    ({"hardware": {"gpu": "h100", "gpuz": 8}}, "unknown key 'hardware.gpuz'; did you mean"),
    ({"hardware": {"gpu": "h100"}}, "hardware.gpus"),
    ({"hardware": {"gpu": 5, "gpus": 8}}, "hardware.gpu"),
    ({"hardware": 5}, "hardware"),
    ({"model": None}, "model"),
    ({"model": ""}, "model"),
    ({"model": {}}, "model"),
    ({"precision": "bf15"}, "did you mean 'bf16'"),
    ({"parralel": {}}, "did you mean 'parallel'"),
    ({"batch": {"sequence_length": 0}}, "batch.sequence_length"),
    ({"batch": {"sequence_length": 1 << 40}}, "batch.sequence_length"),
    ({"recompute": {"granularity": "selective", "modules": ["mlpp"]}}, "did you mean 'mlp'"),
    ({"recompute": {"granularity": "selective", "modules": ["mlp", "mlp"]}}, "twice"),
    ({"recompute": {"modules": ["mlp"]}}, "selective"),
    ({"recompute": {"layers": 2}}, "full"),
    ({"moe": {"capacity_factor": float("inf")}}, "moe.capacity_factor"),
    ({"moe": {"capacity_factor": 0}}, "moe.capacity_factor"),
    ({"moe": {"load_imbalance": 0.5}}, "moe.load_imbalance"),
    ({"optimizer": {"offload_fraction": 1.5}}, "optimizer.offload_fraction"),
    ({"optimizer": {"sharding": 4}}, "optimizer.sharding"),
    ({"overlap": {"tp": 1}}, "overlap.tp"),
]


@pytest.mark.parametrize(("change", "told"), BAD)
def test_a_bad_plan_is_refused_in_one_line_that_names_the_key(change: dict[str, Any], told: str) -> None:
    with pytest.raises(PlanError) as caught:
        load_plan({**MINIMAL, **change})
    message = str(caught.value)
    assert told in message
    assert "\n" not in message
    assert len(message) < 400


def test_a_model_beside_the_plan_file_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / "config.json").write_text("{}")
    file = tmp_path / "plans" / "plan.yaml"
    file.write_text("model: ./config.json\nhardware: {gpu: h100, gpus: 8}\n")
    monkeypatch.chdir(tmp_path)
    assert Path(str(load_plan(file).model)) == tmp_path / "plans" / "config.json"
    monkeypatch.chdir(tmp_path / "plans")
    assert load_plan("plan.yaml").model == "./config.json"


def test_an_answer_is_read_as_the_plan_inside_it(tmp_path: Path) -> None:
    plan = load_plan(MINIMAL)
    for name, document in (
        ("estimate.json", {"schema_version": 1, "plan": plan.to_mapping(), "fits": True}),
        ("search.json", {"best": {"plan": plan.to_mapping(), "estimate": {}}, "top": []}),
    ):
        (tmp_path / name).write_text(json.dumps(document))
        assert load_plan(tmp_path / name) == plan


def test_an_unknown_column_is_refused() -> None:
    with pytest.raises(PlanError, match="no such column"):
        load_plan(MINIMAL).with_row({"tpp": 2})


def test_a_plan_is_a_value(tmp_path: Path) -> None:
    plan = load_plan(MINIMAL)
    assert load_plan(plan) is plan
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
