"""Parameter counts of every family and of every catalog model against transformers' own classes.

python results/parameters.py        writes results/parameters.md; needs transformers and torch, no GPU, no network
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import transformers_counts as classes  # noqa: E402

from moeplan.errors import PlanError  # noqa: E402
from moeplan.model import load_model, load_model_config, model_names  # noqa: E402
from moeplan.model.families import FAMILIES  # noqa: E402

# transformers allocates rows for LongCat's identity experts, which hold no parameters.
EXPLAINED = {"longcat_flash": "the class allocates `gate_up_proj` rows for the identity experts; we do not count them"}


def compare(mapping: dict[str, Any]) -> tuple[int, int, int]:
    """Total of the class, our difference, and the largest difference of a component."""
    theirs = classes.class_counts(mapping)
    ours = load_model(mapping)
    apart = {name: count - theirs.get(name, 0) for name, count in ours.components.items()}
    return theirs["total"], ours.total_parameters - theirs["total"], max(apart.values(), key=abs)


def row(name: str, mapping: dict[str, Any]) -> str:
    """A line of a table."""
    try:
        total, difference, component = compare(mapping)
    except PlanError as error:
        return f"| {name} | refused: {error} | | |"
    except Exception as error:  # the class itself cannot be built from this configuration in this version
        return f"| {name} | class not built: {type(error).__name__} | | |"
    note = f" ({EXPLAINED[mapping['model_type']]})" if difference and mapping["model_type"] in EXPLAINED else ""
    return f"| {name} | {total:,} | {difference:,}{note} | {component:,} |"


def fuzz(family: str) -> str:
    """A line on what happens when each key of the default configuration is left out, emptied, switched or changed."""
    counted = {"same": 0, "refused": 0, "class refuses": 0, "different": 0}
    worst = ""
    for what, mapping in classes.variants(classes.default_config(family)):
        try:
            ours = load_model(mapping).total_parameters
        except PlanError:
            counted["refused"] += 1
            continue
        try:
            theirs = classes.class_counts(mapping)["total"]
        except Exception:  # the class refuses what we would count: no wrong count to compare with
            counted["class refuses"] += 1
            continue
        counted["same" if ours == theirs else "different"] += 1
        worst = worst if ours == theirs else f"{worst} {what} ({ours - theirs:+,})"
    return f"| {family} | {' | '.join(str(count) for count in counted.values())} |{worst} |"


def main() -> None:
    """Write the three tables."""
    import torch
    import transformers

    classes.quiet()
    lines = [
        "# Parameter counts against transformers' classes",
        "",
        "Made by `python results/parameters.py` "
        f"(transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}, meta device).",
        "Difference: ours minus the class's `model.parameters()`. Component: the largest difference of any of the nine",
        "components, sorted by an independent rule over the class's parameter and module names.",
        "",
        "## Catalog models, full size",
        "",
        "| model | class total | difference | component |",
        "|---|---|---|---|",
    ]
    lines += [row(name, load_model_config(name)) for name in model_names()]
    lines += [
        "",
        f"## Families: default configuration of the class at {classes.LAYERS} layers",
        "",
        "| model_type | class total | difference | component |",
        "|---|---|---|---|",
    ]
    known = [name for name in sorted(FAMILIES) if classes.has_class(name)]
    lines += [row(name, classes.default_config(name)) for name in known]
    absent = sorted(set(FAMILIES) - set(known))
    lines += [
        "",
        f"Without a causal-language-model class of their own (text models of multimodal classes, other names): "
        f"{', '.join(absent)}.",
        "",
        "## One key at a time",
        "",
        "Each key of that configuration is left out, set to null, switched, doubled and halved in turn. A count that",
        "differs from the class's would be a wrong count; a refusal is not. One is meant: `q_lora_rank` left out of a",
        "DeepSeek file that transformers saved is read as null, because such files circulate without their nulls",
        "(`tests/reference/parameters.json` has two), where the class would take its own default.",
        "",
        "| model_type | same | refused by moeplan | refused by the class | different | which |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        fuzz(name)
        for name in known
        if name not in EXPLAINED and "not built" not in row(name, classes.default_config(name))
    ]
    (ROOT / "results" / "parameters.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
