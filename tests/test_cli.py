"""The command line as a user meets it: exit statuses, one document on stdout, one line per error, nothing heavy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from moeplan.cli.app import COMMANDS, run

DENSE = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 8192,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}
MOE = DENSE | {
    "model_type": "mixtral",
    "architectures": ["MixtralForCausalLM"],
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}


@pytest.fixture
def moe_config(tmp_path: Path) -> str:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(MOE))
    return str(path)


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = run(arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def answer(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> Any:
    """The document on stdout: all of stdout must be one JSON document."""
    given, out, err = call(capsys, *arguments, "--json")
    assert given == status, err
    return json.loads(out)


# --- estimate ---------------------------------------------------------------------------------------------------------


def test_estimate_answers_from_flags_and_from_the_same_plan_in_a_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    flags = ["estimate", "mixtral-8x7b", "--gpu", "h100", "--gpus", "64", "--tp", "2", "--ep", "8"]
    from_flags = answer(capsys, *flags)
    file = tmp_path / "plan.yaml"
    file.write_text("model: mixtral-8x7b\nhardware: {gpu: h100, gpus: 64}\nparallel: {tp: 2, ep: 8}\n")
    assert answer(capsys, "estimate", str(file)) == from_flags
    assert from_flags["fits"] is True
    assert from_flags["plan"]["parallel"]["tp"] == 2


def test_set_reaches_any_key_and_wins_over_flags(capsys: pytest.CaptureFixture[str]) -> None:
    base = ["estimate", "mixtral-8x7b", "--gpu", "h100", "--gpus", "64", "--ep", "8"]
    flagged = answer(
        capsys, *base, "--tp", "2", "--recompute-modules", "moe_act,layernorm", "--no-overlap-param-gather"
    )
    assigned = answer(
        capsys, *base, "--tp", "4", "--set", "parallel.tp=2", "--set", "recompute.granularity=selective",
        "--set", "recompute.modules=[moe_act, layernorm]", "--set", "overlap.param_gather=false",
    )  # fmt: skip
    assert assigned["plan"] == flagged["plan"]
    assert assigned["memory"] == flagged["memory"]


def test_every_plan_key_has_a_flag() -> None:
    from moeplan.cli.estimate_command import command
    from moeplan.estimator.columns import DEFAULTS

    assert {parameter.name for parameter in command.params} >= {*DEFAULTS, "gpu"}


def test_an_estimate_is_read_back_as_its_plan(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    first = answer(capsys, "estimate", "mixtral-8x7b", "--gpu", "h100", "--gpus", "64", "--tp", "2", "--ep", "8")
    (tmp_path / "answer.json").write_text(json.dumps(first))
    again = answer(capsys, "estimate", str(tmp_path / "answer.json"))
    for key in ("plan", "memory", "time", "throughput", "cost", "fits", "limit"):
        assert again[key] == first[key]


def test_breakdown_adds_up_to_the_estimate(capsys: pytest.CaptureFixture[str]) -> None:
    told = answer(
        capsys, "estimate", "qwen3-30b-a3b", "--gpu", "h100", "--gpus", "16", "--pp", "2", "--ep", "8", "--breakdown",
        "--recompute-modules", "moe_act",
    )  # fmt: skip
    breakdown, time = told["breakdown"], told["time"]
    for stage, parts in zip(told["memory"]["stages"], breakdown["stages"], strict=True):
        assert sum(part["value"] for part in parts["parts"]) == pytest.approx(stage["peak_allocated_gib"], rel=1e-6)
    compute = sum(part["value"] for part in breakdown["compute"]) + breakdown["recompute_s"]
    assert compute == pytest.approx(time["compute_s"], rel=1e-6)
    assert sum(part["value"] for part in breakdown["communication"]) == pytest.approx(
        time["exposed_communication_s"], rel=1e-6
    )
    assert breakdown["speed_of_light_s"] < time["step_s"]


def test_savings_are_what_the_changed_plan_really_saves(capsys: pytest.CaptureFixture[str]) -> None:
    base = ["estimate", "mixtral-8x7b", "--gpu", "h100", "--gpus", "64", "--ep", "8", "--recompute-modules", "moe_act"]
    told = answer(capsys, *base, "--breakdown")
    saving = next(saving for saving in told["savings"] if saving["change"].startswith("optimizer.gradient_dtype"))
    changed = answer(capsys, *base, "--gradient-dtype", "bf16")

    def needed(document: Any) -> float:
        return float(document["memory"]["usable_gib"] - document["memory"]["headroom_gib"])

    assert needed(changed) - needed(told) == pytest.approx(saving["memory_gib"], abs=1e-6)
    assert changed["time"]["step_s"] / told["time"]["step_s"] - 1 == pytest.approx(saving["step_time"], abs=1e-9)


def test_a_plan_that_does_not_fit_ends_with_three(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "estimate", "mixtral-8x7b", "--gpu", "h100", "--gpus", "1")
    assert status == 3
    assert "does not fit" in out


def test_an_illegal_plan_ends_with_two_and_every_reason(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = call(capsys, "estimate", "mixtral-8x7b", "--gpu", "h100", "--gpus", "64", "--tp", "3")
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert "3" in err


def test_margin_moves_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    base = ["estimate", "mixtral-8x7b", "--gpu", "h100", "--gpus", "64", "--ep", "8", "--tp", "2"]
    loose = answer(capsys, *base, "--margin-gib", "0")
    tight = answer(capsys, *base, "--margin-gib", "5")
    assert loose["memory"]["headroom_gib"] - tight["memory"]["headroom_gib"] == pytest.approx(5)
    assert answer(capsys, *base, "--margin-gib", "60", status=3)["fits"] is False


# --- search, max-batch, compare ---------------------------------------------------------------------------------------

SMALL = ("--gpu", "h100", "--gpus", "8", "--space", "quick")


def test_search_finds_a_plan_that_estimates_to_the_same_figures(
    capsys: pytest.CaptureFixture[str], moe_config: str, tmp_path: Path
) -> None:
    found = answer(capsys, "search", moe_config, *SMALL)
    best = found["best"]
    (tmp_path / "best.json").write_text(json.dumps(best["plan"]))
    again = answer(capsys, "estimate", str(tmp_path / "best.json"))
    for key in ("memory", "time", "throughput", "fits", "limit"):
        assert again[key] == best["estimate"][key]
    assert found["certificate"]["exhaustive"] is True
    assert found["certificate"]["optimum"] == pytest.approx(best["estimate"]["throughput"]["tokens_per_s"])
    speeds = [one["estimate"]["throughput"]["tokens_per_s"] for one in found["top"]]
    assert speeds == sorted(speeds, reverse=True)


def test_the_same_question_gives_the_same_bytes(capsys: pytest.CaptureFixture[str], moe_config: str) -> None:
    question = ("search", moe_config, *SMALL, "--sampler", "tpe", "--trials", "8", "--seed", "3", "--json")
    first = call(capsys, *question)
    assert first == call(capsys, *question)
    assert first[0] == 0


def test_flags_narrow_the_space(capsys: pytest.CaptureFixture[str], moe_config: str) -> None:
    found = answer(capsys, "search", moe_config, *SMALL, "--tp", "2,4", "--set", "batch.micro_batch_size=[1, 2]")
    assert {one["plan"]["parallel"]["tp"] for one in found["top"]} <= {2, 4}
    assert {one["plan"]["batch"]["micro_batch_size"] for one in found["top"]} <= {1, 2}


def test_when_nothing_fits_the_nearest_misses_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    question = ("search", "mixtral-8x7b", "--gpu", "t4", "--gpus", "8", "--space", "quick", "--precision", "fp16")
    found = answer(capsys, *question, status=3)
    assert found["best"] is None
    overflow = found["near_misses"][0]["overflow_gib"]
    assert overflow == pytest.approx(-found["near_misses"][0]["estimate"]["memory"]["headroom_gib"])
    assert overflow > 0
    status, out, _ = call(capsys, *question)
    assert status == 3
    assert "nothing fits" in out
    assert "Nearest misses" in out


def test_search_writes_a_folder_whole_and_refuses_one_in_the_way(
    capsys: pytest.CaptureFixture[str], moe_config: str, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    question = ("search", moe_config, *SMALL, "-o", str(folder))
    status, out, err = call(capsys, *question, "--json")
    assert status == 0
    assert json.loads(out) == json.loads((folder / "search.json").read_text())
    assert {"best.yaml", "report.md", "megatron.sh", "search.json"} <= {path.name for path in folder.iterdir()}
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]
    estimate = answer(capsys, "estimate", str(folder / "best.yaml"))
    assert estimate["time"] == json.loads(out)["best"]["estimate"]["time"]
    status, out, err = call(capsys, *question)
    assert (status, out) == (2, "")
    assert "--overwrite" in err
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert call(capsys, *question, "--overwrite", "--json")[0] == 0
    assert {"pareto.svg", "memory.svg"} <= before.keys()
    same = {path.name for path in folder.iterdir() if path.read_bytes() == before[path.name]}
    # Report and launch files tell the command that made them.
    assert same >= {name for name in before if name.endswith((".svg", ".yaml", ".json"))}


def test_a_bad_target_is_refused_before_anything_is_written(
    capsys: pytest.CaptureFixture[str], moe_config: str, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    status, _, err = call(capsys, "search", moe_config, *SMALL, "-o", str(folder), "--to", "megatronn")
    assert status == 2
    assert "did you mean 'megatron'" in err
    assert not folder.exists()


def test_max_batch_is_the_largest_that_fits(capsys: pytest.CaptureFixture[str], moe_config: str) -> None:
    found = answer(capsys, "max-batch", moe_config, "--gpu", "t4", "--gpus", "4", "--precision", "fp16")
    best = found["best"]
    assert best["global_batch_size"] == max(one["global_batch_size"] for one in found["strategies"])
    assert best["estimate"]["fits"] is True
    plan = best["plan"]
    one_more = plan["batch"]["micro_batch_size"] + 1
    plan["batch"]["global_batch_size"] = plan["batch"]["global_batch_size"] // (one_more - 1) * one_more
    plan["batch"]["micro_batch_size"] = one_more
    from moeplan.api import estimate

    assert estimate(plan).fits is False


def test_compare_tells_every_strategy_and_the_mix_is_no_slower(
    capsys: pytest.CaptureFixture[str], moe_config: str
) -> None:
    found = answer(capsys, "compare", moe_config, *SMALL)
    assert [one["strategy"] for one in found["strategies"]] == ["data", "tensor", "expert", "pipeline", "mix"]
    speeds = {
        one["strategy"]: one["estimate"]["throughput"]["tokens_per_s"] for one in found["strategies"] if one["fits"]
    }
    assert speeds["mix"] == max(speeds.values())
    degrees = {one["strategy"]: one["plan"]["parallel"] for one in found["strategies"] if one["plan"]}
    assert degrees["data"]["tp"] == degrees["data"]["pp"] == degrees["data"]["ep"] == 1
    assert degrees["tensor"]["tp"] > 1
    assert degrees["pipeline"]["pp"] > 1


def test_a_counted_model_is_searched_too(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    counted = {"experts": 64, "expert_parameters": 1e9, "shared_parameters": 10e9, "active_ratio": 0.25}
    (tmp_path / "counted.json").write_text(json.dumps(counted))
    found = answer(
        capsys, "search", str(tmp_path / "counted.json"), "--gpu", "h100", "--gpus", "64", "--space", "quick"
    )
    best = found["best"]
    assert best["estimate"]["parameters"]["total"] == 74_000_000_000
    assert best["estimate"]["parameters"]["active"] == 26_000_000_000
    parallel = best["plan"]["parallel"]
    held = 10e9 / parallel["tp"] + 64e9 / (parallel["ep"] * parallel["etp"])
    assert best["estimate"]["parameters"]["per_gpu"] == held


# --- calculate --------------------------------------------------------------------------------------------------------


def test_the_article_s_example_with_right_figures(capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(
        capsys, "calculate", "--experts", "64", "--expert-params", "1B", "--shared-params", "10B", "--batch-size",
        "4096", "--active-ratio", "0.25", "--dtype", "fp16",
    )  # fmt: skip
    result = found["result"]
    assert result["parameters"] == 74_000_000_000
    assert result["parameters_gb"] == pytest.approx(148)
    assert result["memory"]["parameters_gib"] == pytest.approx(137.8, abs=0.05)
    assert result["tokens_per_expert"] == 16
    assert result["activation_bytes_per_expert"] == 65_536
    # Mixed precision with Adam: 2 bytes of parameter, 2 of gradient, 12 of optimizer (Rajbhandari et al. 2020).
    assert result["memory"]["optimizer_gib"] == pytest.approx(6 * result["memory"]["parameters_gib"])
    assert result["memory"]["gradients_gib"] == pytest.approx(result["memory"]["parameters_gib"])
    parts = [value for name, value in result["memory"].items() if name != "total_gib"]
    assert sum(parts) == pytest.approx(result["memory"]["total_gib"])
    assert any("0.143" in note for note in found["notes"])


def test_batch_tests_over_batch_size_and_active_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(
        capsys, "calculate", "--experts", "64", "--expert-params", "250M", "--batch-size", "1k,2k", "--active-ratio",
        ".125,0.25,1",
    )  # fmt: skip
    pairs = [(one["batch_size"], one["active_ratio"]) for one in found["results"]]
    assert pairs == [(batch, ratio) for batch in (1000, 2000) for ratio in (0.125, 0.25, 1.0)]
    totals = [one["memory"]["total_gib"] for one in found["results"]]
    assert totals[0] < totals[1] < totals[2]


# --- the catalog, launch and import -----------------------------------------------------------------------------------


def test_model_counts_parameters_by_component(capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, "model", "mixtral-8x7b")
    assert found["total"] == 46_702_792_704  # transformers' MixtralForCausalLM
    assert sum(found["components"].values()) == found["total"]


def test_the_catalog_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(answer(capsys, "gpus")["gpus"]) >= 25
    assert "mixtral-8x7b" in {model["name"] for model in answer(capsys, "models")["models"]}
    assert call(capsys, "gpus")[0] == call(capsys, "models")[0] == 0


def test_launch_and_import_are_inverse(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    plan = ["mixtral-8x7b", "--gpu", "h100", "--gpus", "64", "--tp", "2", "--ep", "8"]
    found = answer(capsys, "launch", *plan, "--to", "megatron", "-o", str(tmp_path))
    script = next(path for path in found["files"] if path.endswith(".sh"))
    imported = answer(capsys, "import", "megatron", script)
    assert imported["plan"]["parallel"] == found["plan"]["parallel"]
    assert imported["plan"]["batch"] == found["plan"]["batch"]
    status, _, err = call(capsys, "launch", *plan, "--to", "megatron", "-o", str(tmp_path))
    assert status == 2
    assert "already there" in err


def test_import_lists_what_it_could_not_use(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    plan = ["mixtral-8x7b", "--gpu", "h100", "--gpus", "64", "--tp", "2", "--ep", "8"]
    found = answer(capsys, "launch", *plan, "--to", "megatron", "-o", str(tmp_path / "run"))
    script = Path(next(path for path in found["files"] if path.endswith(".sh")))
    text = script.read_text().replace("--tensor-model-parallel-size", "--frobnicate 7 --tensor-model-parallel-size", 1)
    (tmp_path / "other.sh").write_text(text)
    imported = answer(capsys, "import", "megatron", str(tmp_path / "other.sh"))
    assert "frobnicate" in " ".join(unused["name"] for unused in imported["unused"])
    status, out, err = call(capsys, "import", "megatron", str(tmp_path / "other.sh"), "-o", str(tmp_path / "plan.yaml"))
    assert (status, out) == (0, "")
    assert "frobnicate" in err
    assert (tmp_path / "plan.yaml").is_file()


def test_calibrate_writes_factors_that_estimates_take(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    flags = ["estimate", "mixtral-8x7b", "--gpu", "h100", "--gpus", "64", "--tp", "2", "--ep", "8"]
    plain = answer(capsys, *flags)
    runs = [{"id": "a", "plan": plain["plan"], "measured": {"step_s": plain["time"]["step_s"] * 1.2}}]
    (tmp_path / "runs.yaml").write_text(json.dumps(runs))
    output = tmp_path / "calibration.yaml"
    status, _, err = call(capsys, "calibrate", str(tmp_path / "runs.yaml"), "-o", str(output))
    assert status == 0, err
    calibrated = answer(capsys, *flags, "--calibration", str(output))
    assert (plain["calibrated"], calibrated["calibrated"]) == (False, True)
    assert plain["time"]["step_s"] < calibrated["time"]["step_s"] < 1.25 * plain["time"]["step_s"]


# --- errors -----------------------------------------------------------------------------------------------------------

BAD = [
    (["serch"], "did you mean 'search'"),
    (["estimate"], "PLAN_OR_MODEL is missing"),
    (["estimate", "mixtral-8x7b", "--gpuz", "h100"], "did you mean"),
    (["estimate", "mixtral-8x7b", "--gpu", "h100"], "hardware.gpus"),
    (["estimate", "mixtral-8x7b", "--gpu", "h100", "--gpus", "many"], "--gpus"),
    (["estimate", "mixtral-8x7b", "--gpu", "h100", "--gpus", "0"], "hardware.gpus"),
    (["estimate", "mixtral-8x7b", "--gpu", "h100", "--gpus", "-8"], "hardware.gpus"),
    (["estimate", "mixtral-8x7b", "--gpu", "h100", "--gpus", "8", "--precision", "bf15"], "did you mean 'bf16'"),
    (["estimate", "mixtral-8x7b", "--gpu", "h100", "--gpus", "8", "--set", "parallel.tpp=2"], "did you mean 'tp'"),
    (["estimate", "mixtral-8x7b", "--gpu", "h100", "--gpus", "8", "--set", "nonsense"], "KEY=VALUE"),
    (["estimate", "mixtral-8x7b", "--gpu", "h100", "--gpus", "8", "--set", "model.a.b=1"], "single value"),
    (["estimate", "mixtral-8x7b", "--gpu", "h100", "--gpus", "8", "--offload-fraction", "nan"], "offload_fraction"),
    (["estimate", "mixtral-8x7b", "--gpu", "h100", "--gpus", "8", "--margin-gib", "nan"], "margin"),
    (["estimate", "mixtral-8x7b", "--gpu", "h100", "--gpus", "8", "--calibration", "no.yaml"], "no.yaml"),
    (["estimate", "mixtral-8x7c", "--gpu", "h100", "--gpus", "8"], "mixtral-8x7b"),
    (["estimate", "mixtral-8x7b", "--gpu", "h1000", "--gpus", "8"], "h100"),
    (["estimate", "no-such-plan.yaml"], "no such file"),
    (["search", "mixtral-8x7b", "--gpu", "h100"], "--gpus"),
    (["search", "--gpu", "h100", "--gpus", "8"], "model is missing"),
    (["search", "mixtral-8x7b", "--gpu", "h100", "--gpus", "8", "--objective", "thruput"], "throughput"),
    (["search", "mixtral-8x7b", "--gpu", "h100", "--gpus", "8", "--sampler", "tpee"], "tpe"),
    (["search", "mixtral-8x7b", "--gpu", "h100", "--gpus", "8", "--space", "defalt"], "default"),
    (["search", "mixtral-8x7b", "--gpu", "h100", "--gpus", "8", "--trials", "0"], "trials"),
    (["search", "mixtral-8x7b", "--gpu", "h100", "--gpus", "8", "--timeout", "nan"], "timeout"),
    (["search", "mixtral-8x7b", "--gpu", "h100", "--gpus", "8", "--seed", "-1"], "seed"),
    (["search", "mixtral-8x7b", "--gpu", "h100", "--gpus", "8", "--seed", "4294967296"], "seed"),
    (["search", "mixtral-8x7b", "--gpu", "h100", "--gpus", "8", "--top", "0"], "top"),
    (["search", "mixtral-8x7b", "--gpu", "h100", "--gpus", "8", "--workers", "-1"], "workers"),
    (["search", "mixtral-8x7b", "--gpu", "h100", "--gpus", "8", "--tp", "two"], "tp"),
    (["search", "mixtral-8x7b", "--gpu", "h100", "--gpus", "8", "--tp", ","], "--tp"),
    (
        ["launch", "mixtral-8x7b", "--gpu", "h100", "--gpus", "8", "--ep", "8", "-o", "x", "--to", "megatorn"],
        "megatron",
    ),
    (["import", "megatronn", "x"], "did you mean 'megatron'"),
    (["import", "megatron", "no-such-file.sh", "--gpu", "h100", "--gpus", "8"], "no-such-file.sh"),
    (["calculate", "--experts", "0", "--expert-params", "1B"], "experts"),
    (["calculate", "--experts", "8", "--expert-params", "1X"], "--expert-params"),
    (["calculate", "--experts", "8", "--expert-params", "1B", "--active-ratio", "2"], "active_ratio"),
    (["calculate", "--experts", "8", "--expert-params", "1B", "--dtype", "fp15"], "did you mean"),
    (["calculate", "--expert-params", "1B"], "--experts is missing"),
    (["model", "no-such-model"], "no-such-model"),
    (["schema", "pln"], "plan"),
    (["calibrate", "no-such-runs.yaml"], "no-such-runs.yaml"),
]


@pytest.mark.parametrize(("arguments", "told"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_bad_input_ends_with_two_and_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    status, out, err = call(capsys, *arguments)
    assert status == 2
    assert out == ""
    assert err.count("\n") == 1
    assert told in err
    assert "Traceback" not in err
    assert ": " in err


BAD_FILES = [
    "",
    "- a\n- b\n",
    "model: [unclosed\n",
    "model: !!python/object/apply:os.system ['true']\nhardware: {}\n",
    "model: mixtral-8x7b\nmodel: deepseek-v3\nhardware: {gpu: h100, gpus: 8}\n",
    "model: mixtral-8x7b\nhardware: {gpu: h100, gpus: .nan}\n",
    "model: mixtral-8x7b\nhardware: {gpu: h100, gpus: 8}\nparalel: {tp: 2}\n",
    "\x00",
]


@pytest.mark.parametrize("text", BAD_FILES)
def test_bad_plan_files_end_with_two_and_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str
) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(text)
    status, out, err = call(capsys, "estimate", str(file))
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert "plan.yaml" in err


def test_python_raises_what_the_command_line_prints(capsys: pytest.CaptureFixture[str]) -> None:
    import moeplan

    _, _, err = call(capsys, "estimate", "mixtral-8x7b", "--gpu", "h100", "--gpus", "64", "--tp", "3")
    with pytest.raises(moeplan.PlanError) as caught:
        moeplan.estimate({"model": "mixtral-8x7b", "hardware": {"gpu": "h100", "gpus": 64}, "parallel": {"tp": 3}})
    assert isinstance(caught.value, ValueError)
    assert str(caught.value) == err.strip()


# --- the process ------------------------------------------------------------------------------------------------------

_HEAVY = ("optuna", "matplotlib", "sqlalchemy", "pydantic", "numpy", "rich", "yaml", "torch")


def python(code: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parent.parent
    environment = os.environ | {"PYTHONPATH": str(root)}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True, text=True, env=environment, timeout=120, check=False, **options,
    )  # fmt: skip


@pytest.mark.parametrize("code", ["import moeplan", "from moeplan.cli.app import run; run(['--help'])"])
def test_importing_and_help_load_nothing_heavy(code: str) -> None:
    check = f"import sys\n{code}\nprint([name for name in {_HEAVY} if name in sys.modules])"
    done = python(check)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_an_estimate_as_json_loads_neither_optuna_nor_rich_nor_matplotlib() -> None:
    arguments = ["estimate", "mixtral-8x7b", "--gpu", "h100", "--gpus", "8", "--ep", "8", "--json"]
    heavy = ("optuna", "matplotlib", "sqlalchemy", "rich")
    check = f"import sys\nfrom moeplan.cli.app import run\nrun({arguments})\n" + (
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = python(check)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        status, out, err = call(capsys, command, "--help")
        assert (status, err) == (0, "")
        assert out.startswith(f"Usage: moeplan {command}")


def test_the_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    import moeplan

    assert moeplan.__version__ in call(capsys, "--version")[1]


def test_a_reader_that_leaves_is_no_error() -> None:
    code = "import sys; from moeplan.cli import main; main(sys.argv[1:])"
    root = Path(__file__).parent.parent
    process = subprocess.Popen(
        [sys.executable, "-c", code, "schema", "search"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(root)},
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")


def test_an_internal_error_is_one_line_and_status_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import moeplan.answers.schema as module

    def broken(document: str) -> None:
        raise RuntimeError("no such luck")

    monkeypatch.delenv("MOEPLAN_TRACEBACK", raising=False)
    monkeypatch.setattr(module, "schema", broken)
    status, out, err = call(capsys, "schema", "plan")
    assert (status, out) == (1, "")
    assert err.count("\n") == 1
    assert "no such luck" in err


def test_interrupting_ends_with_130(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import moeplan.answers.schema as module

    def interrupted(document: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "schema", interrupted)
    assert call(capsys, "schema", "plan")[0] == 130
