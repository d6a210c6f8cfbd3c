"""The one exception that bad input raises."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PlanError(ValueError):
    """Input that cannot be used, told in one line: ``where: what is wrong; what to do``.

    Args:
        where: The file, key or flag at fault, as the user wrote it.
        problem: What is wrong with it.
        remedy: What to do about it; may be empty when the problem says it all.
    """

    def __init__(self, where: str, problem: str, remedy: str = "") -> None:
        self.where = where
        self.problem = problem
        self.remedy = remedy
        text = f"{where}: {problem}"
        if remedy:
            text += f"; {remedy}"
        # A message stays one line whatever the user's text held.
        super().__init__(" ".join(text.split()))


def nearest(name: str, known: Iterable[str], fallback: str = "") -> str:
    """Return ``did you mean 'x'?`` for the known name closest to ``name``, or ``fallback`` when none is close."""
    by_folded = {candidate.casefold(): candidate for candidate in known}
    close = difflib.get_close_matches(name.casefold(), list(by_folded), n=1, cutoff=0.5)
    return f"did you mean {by_folded[close[0]]!r}?" if close else fallback
