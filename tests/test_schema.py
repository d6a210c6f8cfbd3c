"""The published formats: every promised key is there, the schemas accept what is written and refuse the rest."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from support.models import SMALL_MIXTRAL

import moeplan
from moeplan.answers.described import docstrings, nested_models
from moeplan.answers.documents import Estimate, SearchDocument
from moeplan.answers.schema import schema
from moeplan.plan import Plan

# The published shape of an estimate and of a search, as documented for users: keys and kinds of values.
ESTIMATE = json.loads(
    """
{"schema_version": 1, "plan": {}, "fits": true, "limit": "which stage and memory term binds",
 "memory": {"peak_allocated_gib": 0, "peak_reserved_gib": 0, "usable_gib": 0, "headroom_gib": 0,
            "stages": [{"stage": 0, "peak_allocated_gib": 0, "peak_reserved_gib": 0, "parameters_gib": 0,
                        "gradients_gib": 0, "optimizer_gib": 0, "activations_gib": 0, "buffers_gib": 0,
                        "overhead_gib": 0}]},
 "time": {"step_s": 0, "compute_s": 0, "exposed_communication_s": 0, "bubble_s": 0, "optimizer_s": 0},
 "throughput": {"tokens_per_s": 0, "tokens_per_s_per_gpu": 0, "model_tflops_per_gpu": 0, "mfu": 0},
 "parameters": {"total": 0, "active": 0, "per_gpu": 0},
 "cost": {"usd_per_hour": 0, "usd_per_billion_tokens": 0, "days_per_trillion_tokens": 0},
 "assumptions": [], "warnings": []}
"""
)
SEARCH = json.loads(
    """
{"schema_version": 1, "request": {}, "best": {"plan": {}, "estimate": {}}, "top": [], "pareto": [], "near_misses": [],
 "counts": {"candidates": 0, "legal": 0, "evaluated": 0, "fitting": 0},
 "certificate": {"exhaustive": true, "optimum": 0, "gap": 0.0},
 "study": {"name": "", "storage": "", "trials": 0, "sampler": "", "seed": 0}}
"""
)
PLAN: dict[str, Any] = {
    "model": SMALL_MIXTRAL,
    "hardware": {"gpu": "h100", "gpus": 16},
    "parallel": {"tp": 2, "pp": 2, "ep": 4},
}


def assert_shaped(value: Any, shape: Any, path: str = "$") -> None:
    """``value`` has every key of ``shape`` with the same kind of value."""
    if isinstance(shape, dict):
        assert isinstance(value, dict), path
        for key, inner in shape.items():
            assert key in value, f"{path}.{key}"
            assert_shaped(value[key], inner, f"{path}.{key}")
    elif isinstance(shape, list):
        assert isinstance(value, list), path
        for item in value:
            for inner in shape:
                assert_shaped(item, inner, f"{path}[]")
    elif isinstance(shape, bool):
        assert isinstance(value, bool), path
    elif isinstance(shape, int | float):
        assert isinstance(value, int | float), path
        assert not isinstance(value, bool), path
    else:
        assert isinstance(value, type(shape)), path


@pytest.fixture(scope="module")
def estimate() -> Estimate:
    return moeplan.estimate(PLAN, breakdown=True)


@pytest.fixture(scope="module")
def found() -> SearchDocument:
    return moeplan.search(model=SMALL_MIXTRAL, gpu="h100", gpus=16, space="quick", top=4)


def test_an_estimate_has_every_published_key(estimate: Estimate) -> None:
    document = json.loads(estimate.model_dump_json())
    assert_shaped(document, ESTIMATE)
    assert_shaped(json.loads(moeplan.load_plan(PLAN).model_dump_json()), document["plan"])
    jsonschema.validate(document, schema("estimate"))


def test_a_search_has_every_published_key(found: SearchDocument) -> None:
    document = json.loads(found.model_dump_json())
    assert_shaped(document, SEARCH)
    assert_shaped(document["best"]["estimate"], ESTIMATE)
    jsonschema.validate(document, schema("search"))


def test_documents_are_read_back_unchanged_and_never_change(estimate: Estimate, found: SearchDocument) -> None:
    assert Estimate.model_validate_json(estimate.model_dump_json()) == estimate
    assert SearchDocument.model_validate_json(found.model_dump_json()) == found
    with pytest.raises(ValueError, match="frozen"):
        estimate.fits = False


def test_plans_told_together_are_told_alike_alone(found: SearchDocument) -> None:
    for candidate in (*found.top, *found.pareto):
        alone = moeplan.estimate(candidate.plan)
        assert alone.time == candidate.estimate.time
        assert alone.memory == candidate.estimate.memory
        assert alone.model_dump(exclude={"assumptions"}) == candidate.estimate.model_dump(exclude={"assumptions"})
        again = moeplan.load_plan(json.loads(candidate.plan.model_dump_json()))
        assert moeplan.estimate(again).throughput == candidate.estimate.throughput


def test_the_schemas_refuse_what_they_do_not_know(estimate: Estimate) -> None:
    document = json.loads(estimate.model_dump_json())
    for change in ({"surprise": 1}, {"fits": "yes"}, {"schema_version": 2}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(document | change, schema("estimate"))
    for change in ({"precision": "bf15"}, {"hardware": {"gpu": "h100", "gpus": 0}}, {"surprise": 1}, {"model": 5}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(PLAN | change, schema("plan"))
    jsonschema.validate(PLAN, schema("plan"))
    jsonschema.validate(moeplan.load_plan(PLAN).to_mapping(), schema("plan"))


def test_the_schemas_are_schemas_and_describe_every_key_of_a_plan() -> None:
    for name in ("plan", "estimate", "search"):
        jsonschema.Draft202012Validator.check_schema(schema(name))
    published = schema("plan")
    for model in nested_models(Plan):
        properties = (published if model is Plan else published["$defs"][model.__name__])["properties"]
        for key, text in docstrings(model).items():
            assert properties[key]["description"] == text
    undescribed = [
        f"{model.__name__}.{key}"
        for model in nested_models(Plan)
        for key in model.model_fields
        if key not in docstrings(model) and not hasattr(model.model_fields[key].annotation, "model_fields")
    ]
    assert undescribed == []


def test_the_parts_of_an_estimate_add_up(estimate: Estimate) -> None:
    time = estimate.time
    terms = time.compute_s + time.exposed_communication_s + time.bubble_s + time.optimizer_s
    assert terms == pytest.approx(time.step_s, rel=1e-12)
    for stage in estimate.memory.stages:
        parts = (
            stage.parameters_gib + stage.gradients_gib + stage.optimizer_gib + stage.activations_gib + stage.buffers_gib
        )
        assert parts == pytest.approx(stage.peak_allocated_gib, rel=1e-9)
        assert stage.peak_reserved_gib >= stage.peak_allocated_gib
    memory = estimate.memory
    needed = max(stage.peak_reserved_gib + stage.overhead_gib for stage in memory.stages)
    assert memory.headroom_gib == pytest.approx(memory.usable_gib - needed, abs=1e-9)
    assert estimate.fits == (needed <= memory.usable_gib)
    assert memory.peak_allocated_gib == max(stage.peak_allocated_gib for stage in memory.stages)


def test_throughput_and_cost_follow_from_the_step(estimate: Estimate) -> None:
    plan, speed, cost = estimate.plan, estimate.throughput, estimate.cost
    assert speed.tokens_per_s == pytest.approx(plan.tokens_per_step / estimate.time.step_s)
    assert speed.tokens_per_s_per_gpu * plan.hardware.gpus == pytest.approx(speed.tokens_per_s)
    price = plan.gpu().usd_per_hour
    assert price is not None
    assert cost.usd_per_hour == pytest.approx(16 * (price.low + price.high) / 2)
    hours = 1e9 / speed.tokens_per_s / 3600
    assert cost.usd_per_billion_tokens == pytest.approx(cost.usd_per_hour * hours)
    assert cost.days_per_trillion_tokens == pytest.approx(1000 * hours / 24)
    assert speed.mfu == pytest.approx(
        speed.model_tflops_per_gpu / 989.4, rel=1e-3
    )  # NVIDIA's dense bf16 peak of H100 SXM


def test_the_range_holds_the_figure(estimate: Estimate) -> None:
    assert estimate.uncertainty is not None
    assert estimate.uncertainty.step_s.low < estimate.time.step_s < estimate.uncertainty.step_s.high
    bounds = estimate.uncertainty.tokens_per_s
    assert bounds.low < estimate.throughput.tokens_per_s < bounds.high


def test_parameters_of_the_fullest_rank(estimate: Estimate) -> None:
    # Stage 0 of two: four layers and the embedding; tp 2 halves attention (and the embedding), ep 4 leaves two of
    # eight experts, routers and norms are whole.
    hidden, inner, kv = 1024, 3584, 4 * 64
    attention = (hidden * hidden * 2 + hidden * kv * 2) / 2
    experts = 2 * 3 * hidden * inner
    layer = attention + experts + 8 * hidden + 2 * hidden
    # The last stage has the head instead of the embedding, and the final norm.
    assert estimate.parameters.per_gpu == 4 * layer + 32000 * hidden / 2 + hidden
    assert (
        estimate.parameters.total == 8 * (2 * attention + 8 * experts / 2 + 10 * hidden) + 2 * 32000 * hidden + hidden
    )


def test_defaults_in_effect_are_told() -> None:
    told = " ".join(moeplan.estimate(PLAN).assumptions)
    for key in ("batch.sequence_length 4096", 'precision "bf16"', "optimizer.sharding 1", "hardware.gpus_per_node 8"):
        assert key in told
    assert "parallel.tp" not in told


def test_a_gpu_without_a_price_costs_null() -> None:
    gpu = {"like": "h100", "name": "free", "usd_per_hour": None}
    estimate = moeplan.estimate({**PLAN, "hardware": {"gpu": gpu, "gpus": 16}})
    document = json.loads(estimate.model_dump_json())
    assert document["cost"]["usd_per_hour"] is None
    assert document["cost"]["usd_per_billion_tokens"] is None
    assert document["cost"]["days_per_trillion_tokens"] > 0
    jsonschema.validate(document, schema("estimate"))


def test_the_api_is_there_before_and_after_its_packages_are_imported() -> None:
    import moeplan.search.space

    assert moeplan.search.space is not None
    assert callable(moeplan.search)
    for name in moeplan.__all__:
        assert getattr(moeplan, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = moeplan.nonsense
