"""Small helpers that every table shares: numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table


def table(columns: Iterable[str], left: int = 1) -> Table:
    """A plain table: the first ``left`` columns to the left, figures to the right."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for position, name in enumerate(columns):
        made.add_column(name, justify="left" if position < left else "right", overflow="fold")
    return made


def heading(console: Console, text: str) -> None:
    """A line above a table (a table's own title would wrap to the table's width)."""
    console.print(escape(text), style="bold", highlight=False)


def count(number: float) -> str:
    """A count as billions or millions: 46.7 B."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= limit:
            return f"{number / limit:.4g} {unit}"
    return f"{number:.4g}"


def gib(number: float) -> str:
    """Memory in GiB."""
    return f"{number:,.2f}"


def seconds(number: float) -> str:
    """A duration in the unit that reads best."""
    if number == 0:
        return "0"
    if number < 1e-3:
        return f"{number * 1e6:.3g} µs"
    if number < 1:
        return f"{number * 1e3:.3g} ms"
    return f"{number:,.4g} s"


def share(part: float, whole: float) -> str:
    """A percentage."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def money(number: float | None) -> str:
    """US dollars, or a dash where no price is known."""
    if number is None or not math.isfinite(number):
        return "-"
    return f"${number:,.2f}" if abs(number) < 1000 else f"${number:,.0f}"
