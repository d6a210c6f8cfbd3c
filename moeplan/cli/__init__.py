"""The command line: a thin skin over the Python API, one module per command, imported when the command runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run ``moeplan`` and leave the process with the status of the contract (0, 1, 2, 3, 4 or 130)."""
    import gc
    import os

    # NumPy's linear algebra would start a thread per core, which costs more than all it multiplies here.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Pydantic would read the metadata of every installed distribution to look for plugins.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    # A command lives for a moment: collecting garbage while modules load costs a tenth of it.
    gc.set_threshold(50_000, 50, 50)
    from moeplan.cli.app import run

    raise SystemExit(run(arguments))
