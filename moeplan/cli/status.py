"""Exit statuses (contract, section 4)."""

from __future__ import annotations

DONE = 0
INTERNAL_ERROR = 1
BAD_INPUT = 2
NOTHING_FITS = 3
STOPPED_EARLY = 4
INTERRUPTED = 130
