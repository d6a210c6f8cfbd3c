"""Files that are malformed, unreadable or hostile, in every place where a command takes a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from moeplan.cli.app import run

GPU = ["--gpu", "h100", "--gpus", "8"]
BOMB = "\n".join(
    ["a0: &a0 [1,1,1,1,1,1,1,1,1,1]"] + [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
)
CONTENTS = {
    "malformed": b"model: [",
    "empty": b"",
    "list": b"- 1",
    "number": b"12",
    "object": b"model: !!python/object/apply:os.mkdir [pwned]",
    "name": b"model: !!python/name:os.system",
    "repeated": b"model: a\nmodel: b",
    "not-text": b"\xff\xfe\x00",
    "deep": b"a: " + b"[" * 100_000,
    "bomb": BOMB.encode(),
    "unknown-key": b"unheard_of_key: 1",
    "digits": b"gpus: " + b"9" * 5000,
}
COMMANDS = {
    "plan": ["estimate", "FILE"],
    "launch": ["launch", "FILE", "--to", "megatron", "-o", "out"],
    "model": ["model", "FILE"],
    "gpu": ["estimate", "mixtral-8x7b", "--gpu", "FILE", "--gpus", "8"],
    "space": ["search", "mixtral-8x7b", *GPU, "--space", "FILE"],
    "calibration": ["estimate", "mixtral-8x7b", *GPU, "--calibration", "FILE"],
    "runs": ["calibrate", "FILE", "-o", "out.yaml"],
    "seed": ["search", "mixtral-8x7b", *GPU, "--seed-plan", "FILE"],
    "script": ["import", "megatron", "FILE", *GPU, "-o", "out.yaml"],
    "deepspeed": ["import", "deepspeed", "FILE", *GPU, "-o", "out.yaml"],
    "torchtitan": ["import", "torchtitan", "FILE", *GPU, "-o", "out.yaml"],
}


@pytest.mark.parametrize("place", COMMANDS)
@pytest.mark.parametrize("content", [*CONTENTS, "absent", "folder"])
def test_the_file_is_refused_in_one_line(
    content: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "given.yaml"
    if content == "folder":
        path.mkdir()
    elif content != "absent":
        path.write_bytes(CONTENTS[content])
    code = run(["given.yaml" if word == "FILE" else word for word in COMMANDS[place]])
    told = capsys.readouterr()
    assert code == 2, told.err
    assert told.out == ""
    assert len(told.err.strip().splitlines()) == 1
    assert len(told.err) < 1000
    assert [entry.name for entry in tmp_path.iterdir()] == ([] if content == "absent" else ["given.yaml"])
