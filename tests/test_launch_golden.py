"""Launch files of three well-known setups are what their golden files say (see ``support/launch_golden.py``)."""

from __future__ import annotations

import pytest
from support.launch_golden import FOLDER, SETUPS, files

from moeplan import launch


@pytest.mark.parametrize("target", launch.TARGETS)
@pytest.mark.parametrize("setup", SETUPS)
def test_launch_files_are_the_golden_ones(setup: str, target: str) -> None:
    for name, text in files(setup, target).items():
        golden = (FOLDER / setup / name).read_text(encoding="utf-8")
        assert text == golden, f"{setup}/{name} changed: PYTHONPATH=.:tests python -m support.launch_golden if meant"


def test_no_golden_file_is_left_over() -> None:
    written = {FOLDER / setup / name for setup in SETUPS for target in launch.TARGETS for name in files(setup, target)}
    assert {path for path in FOLDER.rglob("*") if path.is_file()} == written
