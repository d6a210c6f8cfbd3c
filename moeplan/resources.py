"""Where the data that ships with moeplan lies, in an installed wheel as in a checkout."""

from __future__ import annotations

from pathlib import Path

from moeplan.errors import PlanError


def search_space_dir() -> Path:
    """The folder of the shipped search spaces.

    A wheel carries it inside the package; a checkout (and an editable install, which points at one) has it beside.

    Raises:
        PlanError: The installation is incomplete.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "search_spaces", package.parent / "search_spaces"):
        if folder.is_dir():
            return folder
    raise PlanError(str(package), "the shipped search spaces are missing", "install moeplan again")
