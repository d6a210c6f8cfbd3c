"""Launch files are written together or not at all, and no name that enters them can act."""

from __future__ import annotations

import ast
import json
import stat
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from support.launch_shell import started

from moeplan import PlanError, __version__, estimate, launch
from moeplan.launch.files import write_together
from moeplan.launch.words import comment, one_line, python_string, shell, toml_string
from moeplan.plan import Plan, load_plan

# Words that would act in a shell, end a string, or begin another line.
DANGEROUS = (
    "$(touch owned)",
    "`touch owned`",
    "a; touch owned",
    "'; touch owned #",
    '" && touch owned "',
    "line\ntouch owned",
    "carriage\rtouch owned",
    "line separator\u2028touch owned",
    "next line\u0085touch owned",
    "$HOME",
    "\\\\n\\",
    '"""',
    "# not a comment",
    "*?[a]",
    "😀 ünïcode",
    "\x1b[31mred",
    "-rf",
    "=x",
    "}}{{%s{0}",
)


def plan_with(**values: Any) -> Plan:
    base = load_plan(
        {"model": "qwen3-30b-a3b", "hardware": {"gpu": "h100", "gpus": 16}, "parallel": {"ep": 8}, "mtp_layers": 0}
    )
    return base.with_values(values)


def renamed(tmp_path: Path, name: str) -> Plan:
    """A plan whose model lies in a folder called ``name``."""
    from moeplan.model import load_model

    folder = tmp_path / name.replace("/", "_").replace("\0", "")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(dict(load_model("qwen3-30b-a3b").details.raw)))
    return plan_with(model=str(folder))


@pytest.mark.parametrize("name", DANGEROUS)
def test_dangerous_model_names_stay_words(tmp_path: Path, name: str) -> None:
    """A model path that would act in a shell changes nothing in what is started, and every file still parses."""
    plan = renamed(tmp_path / "models", name)
    command = f"moeplan launch {name}"
    scratch = tmp_path / "run"
    scratch.mkdir()
    plain, _ = started(launch.render(plan_with(), "megatron")["megatron.sh"], scratch, **ENVIRONMENT)
    for target in ("megatron", "megatron-bridge", "deepspeed", "torchtitan", "accelerate"):
        runs, _ = launch.adapt(plan, target)
        files = launch.render(runs, target, command=command)
        for file, text in files.items():
            if file.endswith((".sh", ".sbatch")):
                _same_lines_as_harmless(text, launch.render(plan_of_harmless(runs), target)[file])
            elif file.endswith(".json"):
                assert "train_batch_size" in json.loads(text)
            elif file.endswith(".toml"):
                assert tomllib.loads(text)["model"]["flavor"] == "30B-A3B"
            elif file.endswith(".yaml"):
                assert yaml.safe_load(text)["num_processes"] == 16
            else:
                ast.parse(text)
        if target == "megatron":
            words, _ = started(files["megatron.sh"], scratch, **ENVIRONMENT)
            assert words == plain
    assert not list(tmp_path.rglob("owned"))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


ENVIRONMENT = {"MEGATRON_PATH": "/megatron", "MASTER_ADDR": "first"}


def plan_of_harmless(plan: Plan) -> Plan:
    return plan.with_values({"model": "qwen3-30b-a3b"})


def _same_lines_as_harmless(text: str, harmless: str) -> None:
    """Only comment lines may differ from the file of a model with a harmless name (and Slurm's job name)."""

    def acting(lines: str) -> list[str]:
        return [line for line in lines.split("\n") if not line.startswith("#") or line.startswith("#SBATCH")]

    ours, theirs = acting(text), acting(harmless)
    job = "#SBATCH --job-name=moeplan-"
    assert [line for line in ours if not line.startswith(job)] == [line for line in theirs if not line.startswith(job)]
    for line in ours:
        if line.startswith(job):
            assert all(letter.isascii() and (letter.isalnum() or letter in "-_.") for letter in line[len(job) :])


@given(st.text())
def test_quoting_round_trips(text: str) -> None:
    """What is quoted for a language reads back in that language's own parser as it was."""
    import shlex

    if "\0" not in text:
        assert shlex.split(shell(text)) == [text]
    assert ast.literal_eval(python_string(text)) == text
    if not any(0xD800 <= ord(letter) <= 0xDFFF for letter in text):
        assert tomllib.loads(f"x = {toml_string(text)}")["x"] == text
    assert len(one_line(text).splitlines()) <= 1
    assert all(line.startswith("#") and "\n" not in line for line in comment([text]))


def test_words_refuse_what_no_quoting_can_carry() -> None:
    with pytest.raises(ValueError, match="NUL"):
        shell("a\0b")
    with pytest.raises(ValueError, match="surrogate"):
        toml_string("\ud800")


@pytest.mark.parametrize("target", launch.TARGETS)
def test_every_file_begins_with_what_it_is(target: str) -> None:
    """Version, plan, prediction with its range, the honest word, and the command."""
    plan, _ = launch.adapt(plan_with(), target)
    predicted = estimate(launch.as_run(plan, target))
    files = launch.render(plan, target, estimate(plan), "moeplan launch plan.yaml")
    assert files
    for name, text in files.items():
        head = text[: text.index("moeplan-carried")] if "moeplan-carried" in text else text[:3000]
        for said in (
            f"written by moeplan {__version__}",
            "model: qwen3-30b-a3b; hardware: 16 x h100, 8 per node",
            f"ep={plan.parallel.ep}",
            f"peak memory {predicted.memory.peak_reserved_gib:.1f} GiB reserved",
            f"step time {predicted.time.step_s:.3g} s",
            "estimate, not a measurement",
            "made by: moeplan launch plan.yaml",
        ):
            assert said in head, (name, said)
        assert predicted.uncertainty is None or f"{predicted.uncertainty.step_s.low:.3g} to" in head, name


def test_writes_all_files_and_makes_scripts_runnable(tmp_path: Path) -> None:
    written = launch.write(plan_with(), ["megatron", "deepspeed"], tmp_path / "a" / "b")
    assert [path.name for path in written] == ["megatron.sh", "megatron.sbatch", "deepspeed.json", "deepspeed.sh"]
    assert names(tmp_path / "a" / "b") == sorted(path.name for path in written)
    for path in written:
        assert bool(path.stat().st_mode & stat.S_IXUSR) == (path.suffix in (".sh", ".sbatch"))


def test_one_target_may_stand_alone(tmp_path: Path) -> None:
    assert [path.name for path in launch.write(plan_with(), "megatron", tmp_path)] == ["megatron.sh", "megatron.sbatch"]


def test_adapted_files_say_what_was_adapted_and_predict_the_adapted_plan(tmp_path: Path) -> None:
    """The heading of an adapted plan holds its own prediction, not that of the plan that was asked for."""
    plan = plan_with(**{"parallel.tp": 2})
    asked = estimate(plan)
    launch.write(plan, ["torchtitan"], tmp_path, estimate=asked, adapt=True)
    runs, changes = launch.adapt(plan, "torchtitan")
    text = (tmp_path / "torchtitan.toml").read_text()
    assert changes and all(one_line(f"note: adapted: {change}") in text for change in changes)
    assert f"{estimate(runs).memory.peak_reserved_gib:.1f} GiB reserved" in text
    assert estimate(runs).memory.peak_reserved_gib != pytest.approx(asked.memory.peak_reserved_gib, rel=0.01)


def test_existing_file_is_not_overwritten_and_nothing_else_is_written(tmp_path: Path) -> None:
    (tmp_path / "deepspeed.sh").write_text("mine")
    with pytest.raises(PlanError, match=r"deepspeed\.sh: is already there; pass --overwrite"):
        launch.write(plan_with(), ["megatron", "deepspeed"], tmp_path)
    assert names(tmp_path) == ["deepspeed.sh"]
    launch.write(plan_with(), ["deepspeed"], tmp_path, overwrite=True)
    assert (tmp_path / "deepspeed.sh").read_text() != "mine"
    assert names(tmp_path) == ["deepspeed.json", "deepspeed.sh"]


def test_a_failure_half_way_takes_everything_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second rename fails: the first file's old text is back, and no other file is left."""
    (tmp_path / "a.sh").write_text("old a")
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if Path(target).name == "b.sh":
            raise OSError(28, "No space left on device")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(PlanError, match="No space left on device"):
        write_together(tmp_path, {"a.sh": "new a", "b.sh": "new b"}, overwrite=True)
    monkeypatch.undo()
    assert (tmp_path / "a.sh").read_text() == "old a"
    assert names(tmp_path) == ["a.sh"]


def test_a_refused_target_writes_nothing(tmp_path: Path) -> None:
    plan = plan_with(precision="fp8")
    with pytest.raises(PlanError, match="DeepSpeed trains in no fp8"):
        launch.write(plan, ["megatron", "deepspeed"], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_unwritable_place_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PlanError, match="cannot be written to") as raised:
        launch.write(plan_with(), ["megatron"], tmp_path / "file" / "run")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("target", "suggestion"), [("megatorn", "megatron"), ("deep-speed", "deepspeed")])
def test_unknown_target_names_the_nearest(target: str, suggestion: str) -> None:
    with pytest.raises(PlanError, match=f"did you mean '{suggestion}'"):
        launch.render(plan_with(), target)
