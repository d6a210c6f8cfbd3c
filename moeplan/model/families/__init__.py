"""One reader for each family of Hugging Face configurations, registered by ``model_type``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module

from moeplan.model.families import common
from moeplan.model.families.common import Reader

# Modules of readers, the commonest models first: a command pays for importing those up to its model's.
_MODULES = ("softmax_moe", "latent", "dense", "grouped_moe", "recent", "classic", "hybrid", "state_space")


class _Families(Mapping[str, Reader]):
    """The readers by ``model_type``; modules are imported until one knows the type that is asked for."""

    def __getitem__(self, model_type: str) -> Reader:
        for module in _MODULES:
            if model_type in common.FAMILIES:
                break
            import_module(f"moeplan.model.families.{module}")
        return common.FAMILIES[model_type]

    def __iter__(self) -> Iterator[str]:
        for module in _MODULES:
            import_module(f"moeplan.model.families.{module}")
        return iter(common.FAMILIES)

    def __len__(self) -> int:
        return len(list(iter(self)))


FAMILIES = _Families()
"""Hugging Face ``model_type`` -> the function that reads its configuration."""
