"""The one structured line by which a launch file carries what its framework's own words cannot say.

A launch file is read back from its own words first (the flags, the TOML keys, ...), so that an edited file is read as
it now stands. What those words cannot say about the plan stands in one comment line, JSON after :data:`MARK`:

- ``plan``: dotted key -> value, for keys that the words do not give, or give differently (the model's name, the GPU,
  load imbalance, ...). They are set after the words are read.
- ``open``: dotted key -> value, for keys that the plan leaves open (null) and that the words spell out. The key becomes
  null again only where the words still say that value: an edited value stays.

``model`` is special: it stands among ``plan``, and reading should fall back on the words' own model when the two no
longer describe the same architecture.

The reader's rule in one line: ``values = words; for k, v in open: values[k] = None if values.get(k) == v;
values |= plan``. In JSON documents (DeepSpeed) the same two mappings lie under the top-level key ``moeplan``, which
also holds the heading; in Python and shell and YAML and TOML they follow :data:`MARK`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moeplan.errors import PlanError
from moeplan.plan import Plan

MARK = "# moeplan-carried: "


@dataclass(frozen=True)
class Carried:
    """What a launch file carries beside its framework's own words; dotted plan key -> value."""

    plan: dict[str, Any] = field(default_factory=dict)
    open: dict[str, Any] = field(default_factory=dict)

    def to_mapping(self) -> dict[str, Any]:
        """The two mappings as plain JSON values."""
        mapping: dict[str, Any] = json.loads(json.dumps({"plan": self.plan, "open": self.open}))
        return mapping

    def line(self) -> str:
        """The comment line; ASCII, without a line break whatever the values hold."""
        return MARK + json.dumps(self.to_mapping(), ensure_ascii=True)

    def applied(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The plan's dotted keys, from what the words said."""
        merged = dict(values)
        for key, stood_for in self.open.items():
            if _same(merged.get(key), stood_for):
                merged[key] = None
        return merged | self.plan


def dotted(plan: Plan) -> dict[str, Any]:
    """Every leaf of the plan under its dotted key, as plain JSON values."""
    flat: dict[str, Any] = {}
    for section, value in plan.to_mapping().items():
        if isinstance(value, dict) and section != "model":
            flat |= {f"{section}.{key}": leaf for key, leaf in value.items()}
        else:
            flat[section] = value
    return flat


def plan_from(values: Mapping[str, Any]) -> Plan:
    """The plan of dotted keys (raises PlanError when they do not make one)."""
    from moeplan.plan import load_plan

    document: dict[str, Any] = {}
    for name, value in values.items():
        section, _, key = name.partition(".")
        if key:
            document.setdefault(section, {})[key] = value
        else:
            document[section] = value
    return load_plan(document)


def what_to_carry(plan: Plan, words: Mapping[str, Any]) -> Carried:
    """What a file must carry so that ``words`` (what reading its framework's words gives) becomes the plan again.

    Keys at their default that the words do not mention are not carried: a missing key means its default.
    """
    defaults = dotted(plan_from({"model": "any", "hardware.gpu": "any", "hardware.gpus": 1}))
    carried = Carried()
    for key, value in dotted(plan).items():
        if key in words:
            if value is None and words[key] is not None:
                carried.open[key] = words[key]
            elif not _same(words[key], value):
                carried.plan[key] = value
        elif key in ("model", "hardware.gpu") or value != defaults.get(key) or key == "batch.global_batch_size":
            carried.plan[key] = value
    return carried


def read_carried(text: str, where: str) -> Carried | None:
    """The carried line of a file, or None when it has none (raises PlanError when it cannot be read)."""
    line = next((line.strip() for line in text.splitlines() if line.strip().startswith(MARK.strip())), None)
    if line is None:
        return None
    try:
        mapping = json.loads(line[len(MARK.strip()) :])
    except json.JSONDecodeError as error:
        raise PlanError(where, f"its moeplan-carried line is not JSON: {error.msg}", "delete the line") from None
    return carried_from(mapping, where)


def carried_from(mapping: Any, where: str) -> Carried:
    """The carried keys of a mapping with ``plan`` and ``open`` (raises PlanError when it is none)."""
    plan, left_open = (mapping.get("plan", {}), mapping.get("open", {})) if isinstance(mapping, dict) else (None, None)
    if not isinstance(plan, dict) or not isinstance(left_open, dict):
        raise PlanError(where, "what moeplan carries in it is not a mapping", "delete it")
    return Carried(plan, left_open)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return list(one) == list(other)
    return type(one) is type(other) and bool(one == other)
