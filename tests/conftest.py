"""Settings of the whole suite."""

from __future__ import annotations

from hypothesis import settings

# Fixed examples and no time limit per example: a run on a slow or busy machine gives the same answer as on a fast one.
settings.register_profile("moeplan", deadline=None, derandomize=True)
settings.load_profile("moeplan")
