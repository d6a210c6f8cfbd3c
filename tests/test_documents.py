"""Reading, explaining and writing documents: what is malformed or hostile ends in one clear line."""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moeplan.documents import (
    SIZE_LIMIT_BYTES,
    explain_validation,
    parse_mapping,
    read_mapping,
    write_text_atomically,
)
from moeplan.errors import PlanError, nearest
from moeplan.plain_yaml import yaml_text

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=8), plain, min_size=1, max_size=5))
def test_json_is_read_as_the_standard_library_reads_it(mapping: dict[str, Any]) -> None:
    text = json.dumps(mapping)
    assert parse_mapping(text, "x.json", is_json=True) == json.loads(text)


@given(st.dictionaries(st.text(max_size=8), plain, min_size=1, max_size=5))
def test_yaml_text_is_read_back(mapping: dict[str, Any]) -> None:
    text = yaml_text(mapping)
    assert parse_mapping(text, "x.yaml") == mapping
    assert yaml.safe_load(text) == mapping


def test_yaml_text_is_read_back_by_readers_of_either_version() -> None:
    mapping = {
        "a": "1e9",
        "b": "no",
        "c": "1:30",
        "d": "010",
        "e": 1e30,
        "f": [],
        "g": {},
        "h": "",
        "i": "null",
        "j": "<<",
    }
    assert parse_mapping(yaml_text(mapping), "x") == yaml.safe_load(yaml_text(mapping)) == mapping


def test_scalars_are_those_of_yaml_1_2() -> None:
    # https://yaml.org/spec/1.2.2/#1032-tag-resolution, and digits grouped with underscores
    read = parse_mapping(
        "a: 1e9\nb: 010\nc: no\nd: 1_000\ne: ~\nf: 1:30\ng: -.5\nh: True\ni: 2024-01-01\nj:\nk: .inf", "x"
    )
    expected = [1e9, 10, "no", 1000, None, "1:30", -0.5, True, "2024-01-01", None, math.inf]
    assert list(read.values()) == expected
    assert [type(value) for value in read.values()] == [type(value) for value in expected]
    assert math.isnan(parse_mapping("a: .nan", "x")["a"])


def test_aliases_and_merges_work_and_the_later_key_wins() -> None:
    assert parse_mapping("a: &x {b: 1, c: 2}\nd: {<<: *x, c: 3}\ne: *x", "x") == {
        "a": {"b": 1, "c": 2},
        "d": {"b": 1, "c": 3},
        "e": {"b": 1, "c": 2},
    }


BOMB = "\n".join(
    ["a0: &a0 [1,1,1,1,1,1,1,1,1,1]"] + [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("# only a comment", "is empty"),
        ("- 1", "holds a list"),
        ("just words", "holds text"),
        ("12", "holds a single value"),
        ("a: [1,", "is not YAML"),
        ("a: b: c", "is not YAML: .*line 1"),
        ("a: 1\n\tb: 2", "is not YAML"),
        ("a: *nobody", "undefined alias"),
        ("a: 1\n---\nb: 2", "another document"),
        ("a: \x01", "is not YAML"),
        ("a: 1\nb: 2\na: 3", r"key 'a' is given twice \(line 3\)"),
        ("p:\n  q: 1\n  q: 2", "key 'q' is given twice"),
        ("1: 2", "key 1 .* is not text"),
        ("? [1]\n: 2", "is not text"),
        ("a: !!python/object/apply:os.system ['true']", "asks to build an object"),
        ("a: !!python/name:os.system", "asks to build an object"),
        ("!!python/object:builtins.dict {}", "asks to build an object"),
        ("a: !own {b: 1}", "asks to build an object"),
        ("a: !!binary eA==", "asks to build an object"),
        ("a: &x [*x]", "contains itself"),
        (BOMB, "holds more than"),
        ("a: " + "[" * 5000 + "]" * 5000, "nested more than"),
        ("a: " + "{b: " * 200_000, "nested more than"),
        ("a: " + "9" * 5000, "is not usable YAML"),
    ],
)
def test_yaml_that_is_malformed_or_hostile_is_refused_in_one_line(text: str, words: str) -> None:
    with pytest.raises(PlanError, match=words) as caught:
        parse_mapping(text, "plan.yaml")
    assert str(caught.value).startswith("plan.yaml: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("{", "is not JSON: .*line 1, column 2"),
        ("[1]", "holds a list"),
        ("null", "is empty"),
        ('{"a": 1, "a": 2}', "key 'a' is given twice"),
        ('{"a": ' + "9" * 5000 + "}", "is not usable JSON"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_json_that_is_malformed_is_refused_in_one_line(text: str, words: str) -> None:
    with pytest.raises(PlanError, match=words) as caught:
        parse_mapping(text, "plan.json", is_json=True)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=60), st.booleans())
def test_any_text_is_a_mapping_or_refused_in_one_line(text: str, is_json: bool) -> None:
    try:
        assert isinstance(parse_mapping(text, "x", is_json), dict)
    except PlanError as error:
        assert "\n" not in str(error)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"a: \xff\xfe")
    (tmp_path / "large.yaml").write_bytes(b"#" * (SIZE_LIMIT_BYTES + 1))
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbfa: 1")
    assert read_mapping(tmp_path / "bom.yaml") == {"a": 1}
    for path, words in [
        (tmp_path / "absent.yaml", "no such file"),
        (tmp_path, "is a folder"),
        (tmp_path / "binary.yaml", "is not UTF-8 text"),
        (tmp_path / "large.yaml", "is larger than 8 MiB"),
        ("a\0b", "cannot be read"),
        ("x" * 5000, "cannot be read"),
    ]:
        with pytest.raises(PlanError, match=words):
            read_mapping(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("a: 1")
    path.chmod(0)
    with pytest.raises(PlanError, match="Permission denied"):
        read_mapping(path)


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    tensor: int = Field(1, ge=1)
    kind: Literal["none", "selective", "full"] = "none"


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    model: str
    gpus: int = 1
    parallel: Inner | None = None
    stages: list[Inner] = []


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"model": "m", "gpu": 1}, "plan: unknown key 'gpu'; did you mean 'gpus'?"),
        ({"model": "m", "parallel": {"tensr": 1}}, "plan: unknown key 'parallel.tensr'; did you mean 'tensor'?"),
        ({"model": "m", "stages": [{}, {"kin": 1}]}, "plan: unknown key 'stages.1.kin'; did you mean 'kind'?"),
        ({"model": "m", "zzz": 1}, "plan: unknown key 'zzz'; known keys: gpus, model, parallel, stages"),
        ({}, "plan: key 'model' is missing; add it"),
        ({"modle": "m"}, "plan: unknown key 'modle'; did you mean 'model'?"),
        ({"model": "m", "parallel": {"tensor": 0}}, "plan: parallel.tensor must be greater than or equal to 1, not 0"),
        ({"model": "m", "parallel": {"kind": "ful"}}, "plan: parallel.kind is 'ful'; did you mean 'full'?"),
        ({"model": "m", "parallel": {"kind": 7}}, "plan: parallel.kind is 7; choose 'none', 'selective' or 'full'"),
        ({"model": "m", "parallel": 7}, "plan: parallel must be a mapping, not 7"),
        ({"model": "m", "stages": 7}, "plan: stages must be a list, not 7"),
    ],
)
def test_the_first_error_is_told_with_its_key(value: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(value)
    assert str(explain_validation(caught.value, "plan", Outer)) == message


def test_a_huge_value_is_shortened() -> None:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate({"model": "m", "gpus": "x" * 10_000})
    assert len(str(explain_validation(caught.value, "plan"))) < 200


def test_writing_is_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "plan.yaml"
    write_text_atomically(path, "a: 1\n")
    assert path.read_text() == "a: 1\n"
    with pytest.raises(PlanError, match="is already there; pass --overwrite"):
        write_text_atomically(path, "a: 2\n")
    assert path.read_text() == "a: 1\n"
    write_text_atomically(path, "a: 3\n", overwrite=True, executable=True)
    assert path.read_text() == "a: 3\n"
    assert path.stat().st_mode & stat.S_IXUSR
    assert [entry.name for entry in path.parent.iterdir()] == ["plan.yaml"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PlanError, match="No space left on device"):
        write_text_atomically(path, "new", overwrite=True)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["plan.yaml"]


def test_a_link_that_leads_nowhere_is_not_followed(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PlanError, match="already there"):
        write_text_atomically(link, "x")
    assert not (tmp_path / "elsewhere").exists()


def test_a_place_that_cannot_hold_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file" / "plan.yaml", "a\0b"):
        with pytest.raises(PlanError, match="cannot be written"):
            write_text_atomically(path, "x")


def test_nearest_offers_only_what_is_close() -> None:
    assert nearest("tensro", ["tensor", "pipeline"]) == "did you mean 'tensor'?"
    assert nearest("zzz", ["tensor"], "look again") == "look again"
