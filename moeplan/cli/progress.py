"""A progress bar on stderr, when that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moeplan.search.request import Progress


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[Progress], None] | None]:
    """Show how far a search is; gives None where nobody watches."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"searching for {what}", total=None)

        def update(progress: object) -> None:
            best = getattr(progress, "best", None)
            told = f"searching for {what}" + (f", best {best:,.6g}" if best is not None else "")
            done, total = getattr(progress, "done", 0), getattr(progress, "total", 0)
            bar.update(task, completed=done, total=total or None, description=told)

        yield update
