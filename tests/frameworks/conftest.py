"""The built environment of the frameworks, or a skip that says how to build it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# The cases are shared with the default tests and with results/launch.py.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]


@pytest.fixture(scope="session")
def frameworks() -> Path:
    """Folder of the environment that ``build.sh`` made."""
    from judges import environment

    folder = environment()
    if folder is None:
        pytest.skip("no frameworks to ask: run tests/frameworks/build.sh and set MOEPLAN_FRAMEWORKS to its folder")
    return folder
