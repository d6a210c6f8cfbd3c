"""The README holds what it promises: its commands, flags, files and Python exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

import moeplan
from moeplan.cli.app import COMMANDS, group
from moeplan.resources import search_space_dir

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    """Every ``moeplan ...`` in the README, in code spans and code blocks."""
    found = re.findall(r"`(moeplan [^`\n]+)`", README)
    for block in re.findall(r"```(?:bash|console)\n(.*?)```", README, re.DOTALL):
        found += re.findall(r"(?:^|&& |\$ )(moeplan [^|>\n]*)", block, re.MULTILINE)
    return sorted(set(found))


@pytest.mark.parametrize("line", commands())
def test_a_command_and_its_flags_exist(line: str) -> None:
    words = shlex.split(line)[1:]
    if words[0].startswith("--"):
        return
    assert words[0] in COMMANDS
    command = group.get_command(click.Context(group), words[0])
    assert command is not None
    flags = {flag for parameter in command.params for flag in [*parameter.opts, *parameter.secondary_opts]} | {"--help"}
    assert [word for word in words if word.startswith("-") and word not in flags] == []


def test_every_command_is_in_the_readme() -> None:
    assert [name for name in COMMANDS if f"`moeplan {name}" not in README] == []


def test_links_lead_to_files() -> None:
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in target]
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_spaces_that_are_named_are_shipped() -> None:
    named = set(re.findall(r"--space ([a-z-]+)(?![\w.-])", README))
    assert named
    assert named <= {path.stem for path in search_space_dir().glob("*.yaml")}


def test_python_that_is_shown_uses_names_that_exist() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    compile(block, "README.md", "exec")
    for name in re.findall(r"moeplan\.(\w+)", block):
        assert hasattr(moeplan, name)
