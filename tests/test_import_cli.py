"""The commands around files of others: import, calibrate and measure, from the command line to the files they leave."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from moeplan.cli.app import run
from moeplan.plan import load_plan

REFERENCE = Path(__file__).parent / "reference"
SCRIPT = """#!/bin/bash
#SBATCH --nodes=2 --gpus-per-node=8
MODEL="--num-layers 12 --hidden-size 768 --num-attention-heads 12 --seq-length 1024 --max-position-embeddings 1024"
srun python pretrain_gpt.py $MODEL --micro-batch-size 4 --global-batch-size 64 --bf16 --lr 1e-4 --odd-flag 7
"""


def test_import_writes_a_plan_that_estimate_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script, plan = tmp_path / "train.sh", tmp_path / "plan.yaml"
    script.write_text(SCRIPT)
    arguments = ["import", "megatron", str(script), "--gpu", "h100", "-o", str(plan), "--json"]
    assert run(arguments) == 0
    printed, told = capsys.readouterr()
    document = json.loads(printed)
    # GPT-2 small, which Megatron's defaults are.
    assert load_plan(plan).architecture().total_parameters == 124_439_808
    assert document["plan"]["hardware"]["gpus"] == 16
    assert [item["name"] for item in document["unused"]] == ["--odd-flag", "--lr"]
    assert "--odd-flag 7: is not an argument that moeplan knows" in told
    assert run(["estimate", str(plan), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fits"]
    assert run(arguments) == 2  # the plan is there already
    assert "--overwrite" in capsys.readouterr().err


def test_import_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "train.sh"
    script.write_text(SCRIPT.replace("--num-layers 12", "--num-layers twelve"))
    assert run(["import", "megatron", str(script), "--gpu", "h100"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "--num-layers is 'twelve'" in err


def test_variables_are_given_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "train.sh"
    script.write_text(SCRIPT.replace("--bf16", "--bf16 --tensor-model-parallel-size $TP"))
    assert run(["import", "megatron", str(script), "--gpu", "h100"]) == 2
    assert "--set NAME=VALUE" in capsys.readouterr().err
    assert run(["import", "megatron", str(script), "--gpu", "h100", "--set", "TP=4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["plan"]["parallel"]["tp"] == 4
    assert run(["import", "megatron", str(script), "--gpu", "h100", "--set", "TP"]) == 2
    assert "write NAME=VALUE" in capsys.readouterr().err


def test_calibrate_writes_what_estimate_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = json.loads((REFERENCE / "memory_measured.json").read_text())["cases"][:2]
    runs, calibration, plan = tmp_path / "runs.json", tmp_path / "calibration.yaml", tmp_path / "plan.json"
    runs.write_text(json.dumps(cases))
    plan.write_text(json.dumps(cases[0]["plan"]))
    assert run(["calibrate", str(runs), "-o", str(calibration)]) == 0
    out, err = capsys.readouterr()
    assert "peak_reserved_gib" in out
    assert "the runs do not identify gemm" in err
    for given, expected in (([], False), (["--calibration", str(calibration)], True)):
        assert run(["estimate", str(plan), "--json", *given]) == 0
        assert json.loads(capsys.readouterr().out)["calibrated"] is expected


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="torch is installed")
def test_measure_without_torch_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["measure"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "PyTorch is not installed" in err
