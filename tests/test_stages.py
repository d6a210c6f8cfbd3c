"""The pipeline's structure against Megatron's own rules, closed forms and a replay of the schedule."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeplan.errors import PlanError
from moeplan.estimator.columns import DEFAULTS
from moeplan.estimator.in_flight import live_chunks, off_mixtures
from moeplan.estimator.layout import even_chunks, layout_chunks, parse_layout
from moeplan.estimator.stages import parts, structure
from moeplan.estimator.table import Table
from moeplan.model.architecture import Architecture, Layer
from moeplan.operators.attention import Attention
from moeplan.operators.embedding import Embedding, Head, TokenPredictionProjection
from moeplan.operators.mlp import DenseMLP
from moeplan.operators.moe import MoE
from moeplan.operators.norm import Norm

_ATTENTION = (Norm(64), Attention(64, 4, 4, 16, 16), Norm(64))
DENSE = Layer((*_ATTENTION, DenseMLP(64, 256)))
SPARSE = Layer((*_ATTENTION, MoE(64, 8, 2, 32)))


def model(dense: int, sparse: int, mtp: int = 0, tied: bool = False) -> Architecture:
    return Architecture(
        name="tiny",
        family="tiny",
        embedding=Embedding(1000, 64),
        layers=(DENSE,) * dense + (SPARSE,) * sparse,
        final_norm=Norm(64),
        head=Head(1000, 64, tied=tied),
        mtp_layer=Layer((TokenPredictionProjection(64), *SPARSE.operators)) if mtp else None,
        mtp_layers=mtp,
    )


def one(architecture: Architecture, all_stages: bool = True, **values: object):  # type: ignore[no-untyped-def]
    row = {**DEFAULTS, "gpus": 64, "global_batch_size": 1024, **values}
    return structure(architecture, Table.of_rows([row]), all_stages=all_stages)


@pytest.mark.parametrize(
    ("text", "stages"),
    [
        # DeepSeek-V3 on PP16 VPP2 and PP8 VPP4, and a Qwen3-235B layout of Megatron-Bridge's recipes.
        ("Et*3|(tt|)*29m|L", 32),
        ("Et|(tt|)*30mL", 32),
        ("Et*2|(t*2|)*34,t*3|(t*2|)*3,tL", 40),
    ],
)
def test_published_layouts_expand_to_their_stages(text: str, stages: int) -> None:
    assert len(parse_layout(text)) == stages


def test_deepseek_v3_layout_places_every_layer_once() -> None:
    chunks = layout_chunks("Et*3|(tt|)*29m|L", pp=16, layers=61, mtp_layers=1)
    assert [chunk.layers for chunk in chunks] == [3] + [2] * 29 + [0, 0]
    assert sum(chunk.layers for chunk in chunks) == 61
    assert [chunk.mtp for chunk in chunks].index(1) == 30
    assert chunks[0].embedding and chunks[-1].head


@pytest.mark.parametrize(
    "text", ["Ex|tL", "E(t|t", "tE|tL", "Et|t", "EtL|ttL", "Et|ttt|L", "t*999999999", "", "((((((t)*99)*99)*99)*99)"]
)
def test_a_layout_that_is_wrong_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(PlanError) as caught:
        layout_chunks(text, pp=2, layers=4, mtp_layers=0)
    assert "\n" not in str(caught.value)


@given(pp=st.sampled_from([1, 2, 4, 8]), vpp=st.integers(1, 4), layers=st.integers(1, 96))
def test_an_even_split_is_contiguous_and_differs_only_at_the_ends(pp: int, vpp: int, layers: int) -> None:
    chunks = even_chunks(pp, vpp, layers, 0)
    virtual = pp * vpp
    if chunks is None:
        assert layers % virtual and ((layers + 2) % virtual or virtual == 1)
        return
    assert sum(chunk.layers for chunk in chunks) == layers
    assert [chunk.first for chunk in chunks] == list(np.cumsum([0, *(chunk.layers for chunk in chunks[:-1])]))
    assert len({chunk.layers for chunk in chunks[1:-1]}) <= 1


@given(pp=st.integers(1, 16), micro_batches=st.integers(1, 64), data=st.data())
def test_1f1b_keeps_what_its_table_says(pp: int, micro_batches: int, data: st.DataObject) -> None:
    # DualPipe's table: 1F1B keeps PP micro batches on the first stage; fewer further down, never more than there are.
    stage = data.draw(st.integers(0, pp - 1))
    assert live_chunks(pp, stage, 1, micro_batches).tolist() == [[min(pp - stage, micro_batches)]]


@given(pp=st.integers(2, 8), virtual=st.integers(2, 4), groups=st.integers(1, 5), data=st.data())
def test_interleaved_peak_is_that_of_a_replay(pp: int, virtual: int, groups: int, data: st.DataObject) -> None:
    stage = data.draw(st.integers(0, pp - 1))
    micro_batches = pp * groups
    alive: Counter[int] = Counter()
    seen = set()
    forward = [c for _ in range(groups) for c in range(virtual) for _ in range(pp)]
    backward = [virtual - 1 - c for c in forward]
    warmup = min((pp - stage - 1) * 2 + (virtual - 1) * pp, len(forward))
    for chunk in forward[:warmup]:
        alive[chunk] += 1
    if warmup == len(forward):
        seen.add(tuple(alive[c] for c in range(virtual)))
    for step in range(warmup, len(forward)):
        alive[forward[step]] += 1
        seen.add(tuple(alive[c] for c in range(virtual)))
        alive[backward[step - warmup]] -= 1
    # After the last forward only backwards remain, which free memory.
    assert {tuple(row) for row in live_chunks(pp, stage, virtual, micro_batches).astype(int).tolist()} == seen


@pytest.mark.parametrize(("pp", "vpp", "layers"), [(4, 2, 32), (8, 4, 64), (16, 3, 96)])
def test_interleaved_first_stage_pays_the_published_penalty(pp: int, vpp: int, layers: int) -> None:
    # Korthikanti et al. 2022, section 4.2.3: the first stage keeps L (1 + (p-1)/(p m)) layers' activations alive.
    stages = one(model(0, layers), pp=pp, vpp=vpp)
    first = stages.live[0][stages.stage[0] == 0][:, 0].max()
    assert first == pytest.approx(layers * (1 + (pp - 1) / (pp * vpp)))


@given(
    pp=st.sampled_from([1, 2, 4]),
    vpp=st.sampled_from([1, 2]),
    sparse=st.sampled_from([8, 14, 16, 24]),
    mtp=st.integers(0, 1),
)
def test_stages_together_hold_the_model(pp: int, vpp: int, sparse: int, mtp: int) -> None:
    architecture = model(2, sparse - 2, mtp)
    vpp = vpp if pp > 1 else 1
    if even_chunks(pp, vpp, sparse, mtp) is None:
        return
    stages = one(architecture, pp=pp, vpp=vpp)
    per_stage = {int(s): counts for s, counts in zip(stages.stage[0], stages.counts[0], strict=True)}
    expected = [2, sparse - 2, *([mtp] if mtp else []), 1, 1]
    assert np.sum(list(per_stage.values()), axis=0).tolist() == expected
    assert len(parts(architecture)) == len(expected)


def test_left_out_stages_are_at_most_a_kept_one_in_everything() -> None:
    architecture = model(3, 61, 1)
    values = {"pp": 8, "pipeline_layout": "Et*8|(t*8|)*6t*8mL"}
    everything, kept = one(architecture, **values), one(architecture, all_stages=False, **values)
    assert kept.moments[0] < everything.moments[0]
    for moment in range(everything.moments[0]):
        assert any(
            np.all(kept.counts[0][k] >= everything.counts[0][moment])
            and np.all(kept.live[0][k] >= everything.live[0][moment])
            for k in range(kept.moments[0])
        )


@given(
    pp=st.sampled_from([2, 4, 8]), vpp=st.sampled_from([1, 2]), dense=st.integers(0, 5), micro_batches=st.integers(1, 6)
)
def test_kept_stages_cover_every_stage(pp: int, vpp: int, dense: int, micro_batches: int) -> None:
    architecture = model(dense, 16 - dense, 1)
    values = {"pp": pp, "vpp": vpp, "gpus": pp, "global_batch_size": pp * micro_batches}
    everything, kept = one(architecture, **values), one(architecture, all_stages=False, **values)
    weights = np.random.default_rng(0).random((20, everything.live.shape[2]))
    for name in ("counts", "runs", "live"):
        largest = (getattr(everything, name)[0] @ weights.T).max(axis=0)
        np.testing.assert_allclose((getattr(kept, name)[0] @ weights.T).max(axis=0), largest)


def test_tied_heads_and_token_prediction_bring_a_second_embedding_to_the_last_stage() -> None:
    for architecture in (model(0, 8, tied=True), model(0, 8, mtp=1)):
        stages = one(architecture, pp=4)
        assert stages.embedding_copies[0].tolist() == [0, 0, 0, 1]
        assert one(architecture, pp=1).embedding_copies[0].tolist() == [0]
    assert one(model(0, 8), pp=4).embedding_copies[0].sum() == 0


def test_dualpipe_holds_twice_the_parameters_and_one_activation_more_than_the_pipeline_is_deep() -> None:
    # DeepSeek's DualPipe README: parameters 2x, activations PP + 1.
    plain, dual = one(model(0, 32), pp=8), one(model(0, 32), pp=8, schedule="dualpipe")
    assert dual.counts[0][:, 0].tolist() == (2 * plain.counts[0][:, 0]).tolist()
    assert set(dual.live[0][:, 0]) == {(8 + 1) * 32 / 8}


def test_block_recompute_takes_the_first_layers_of_every_virtual_stage() -> None:
    stages = one(model(0, 32), pp=4, vpp=2, recompute="full", recompute_layers=3)
    assert set(stages.recomputed_runs[0][:, 0]) == {6}
    full = one(model(0, 32), pp=4, vpp=2, recompute="full")
    assert full.recomputed_runs.max() == 0


def test_a_split_that_does_not_exist_names_those_that_do() -> None:
    with pytest.raises(PlanError, match="do not split over pp\\*vpp = 8") as caught:
        one(model(0, 61), pp=8)
    assert "63" in str(caught.value) and "61" in str(caught.value)


@given(
    st.lists(st.tuples(*[st.integers(0, 9)] * 3), min_size=1, max_size=8, unique=True),
    st.tuples(*[st.floats(0, 1)] * 3),
)
def test_rows_below_a_mixture_are_never_the_largest(points: list[tuple[int, ...]], weights: tuple[float, ...]) -> None:
    bounds = np.array(points, float)
    kept = off_mixtures(bounds)
    assert (bounds[kept] @ weights).max() == pytest.approx((bounds @ weights).max())


def test_only_the_ends_of_a_line_are_kept() -> None:
    line = np.array([[11, 59], [12, 57], [13, 55], [14, 53], [16, 49]], float)
    assert off_mixtures(line).tolist() == [0, 4]
