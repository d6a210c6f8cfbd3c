"""Every published run that the estimator is held against is a plan that loads, and says where it comes from."""

import json
from pathlib import Path

import pytest

from moeplan.plan import load_plan

FILES = sorted((Path(__file__).parent / "reference").glob("throughput_*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_published_run_loads_and_names_its_source(path: Path) -> None:
    cases = json.loads(path.read_text())["cases"]
    assert len({case["id"] for case in cases}) == len(cases)
    for case in cases:
        plan = load_plan(case["plan"])
        assert plan.batch.global_batch_size > 0, case["id"]
        assert case["source"] and case["release"] and case["note"], case["id"]
        assert case["measured"]["tokens_per_s_per_gpu"] > 0, case["id"]
