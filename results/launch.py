"""Write results/launch.md: which launch files which framework version accepts.

    MOEPLAN_FRAMEWORKS=DIR bash tests/frameworks/build.sh       # once, CPU only
    MOEPLAN_FRAMEWORKS=DIR python results/launch.py

The plans are those of ``tests/support/launch_cases.py``; the judges run the frameworks' own code on a CPU.
"""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "frameworks")]

from judges import (  # noqa: E402
    environment,
    judge_accelerate,
    judge_bridge,
    judge_deepspeed,
    judge_megatron,
    judge_torchtitan,
)
from support.launch_cases import Case, cases, refused  # noqa: E402

from moeplan.model import model_names  # noqa: E402

Verdicts = list[tuple[Case, dict[str, Any]]]

COLUMNS = {
    "Megatron-LM (megatron-core 0.19.2)": "parser, `validate_args`, `TransformerConfig`, optimizer and DDP "
    "configurations, process groups of the whole world on torch's fake backend; arguments as bash hands them over",
    "Megatron-Bridge overrides": "every key of `model`, `ddp` and `optimizer` is a field of megatron-core "
    "0.19.2's classes; Megatron-Bridge itself is not installed",
    "DeepSpeed 0.19.8": "`DeepSpeedConfig` with the world's size, AutoEP's validation, top-level keys against its "
    "constants",
    "torchtitan 0.2.2": "`ConfigManager`, `ParallelDims`; the flavor built without memory",
    "torchtitan 0.3.0": "`ConfigManager` on the Python configuration, `ParallelDims` (bf16 and fp32 plans: quantized "
    "ones need torchao and a GPU)",
    "accelerate 1.15.0": "`load_config_from_file`, `_validate_launch_command`, `prepare_multi_gpu_env`, the plugin's "
    "class",
}


def verdicts(folder: Path) -> dict[str, Verdicts]:
    """Every case with its verdict, by column."""
    found: dict[str, Verdicts] = {}
    names = list(COLUMNS)
    megatron = list(cases("megatron"))
    with tempfile.TemporaryDirectory() as scratch:
        found[names[0]] = list(zip(megatron, judge_megatron(folder, megatron, Path(scratch)), strict=True))
        bridge = list(cases("megatron-bridge"))
        found[names[1]] = list(zip(bridge, judge_bridge(folder, bridge, Path(scratch)), strict=True))
    deepspeed = list(cases("deepspeed"))
    found[names[2]] = list(zip(deepspeed, judge_deepspeed(folder, deepspeed), strict=True))
    torchtitan = list(cases("torchtitan"))
    for name, file in ((names[3], "torchtitan.toml"), (names[4], "torchtitan_config.py")):
        mine = [case for case in torchtitan if file in case.files]
        if file.endswith(".py"):
            mine = [case for case in mine if case.plan.precision in ("bf16", "fp32", "tf32")]
        found[name] = list(zip(mine, judge_torchtitan(folder, mine, file), strict=True))
    accelerate = list(cases("accelerate"))
    found[names[5]] = list(zip(accelerate, judge_accelerate(folder, accelerate), strict=True))
    return found


def table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def summary(found: dict[str, Verdicts]) -> list[str]:
    """One row per framework version."""
    rows = []
    for name, judged in found.items():
        models = {case.plan.model for case, _ in judged}
        gpus = sorted({case.plan.hardware.gpus for case, _ in judged})
        accepted = sum(verdict["accepted"] for _, verdict in judged)
        rows.append([name, f"{accepted} of {len(judged)}", str(len(models)), f"{gpus[0]} to {gpus[-1]}", COLUMNS[name]])
    return table(["framework", "plans accepted", "models", "GPUs", "by"], rows)


def coverage(judged: Verdicts) -> list[str]:
    """What the Megatron-LM plans hold between them, by number of accepted plans."""
    kinds: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for case, verdict in judged:
        plan = case.plan
        if not verdict["accepted"]:
            continue
        schedule = "layout" if plan.parallel.pipeline_layout else "interleaved" if plan.parallel.vpp > 1 else "1F1B"
        kinds["GPU"][str(plan.hardware.gpu)] += 1
        kinds["precision"][plan.precision] += 1
        kinds["pipeline"][schedule if plan.parallel.pp > 1 else "none"] += 1
        kinds["sharding"][str(plan.optimizer.sharding)] += 1
        kinds["moments"][plan.optimizer.state_dtype] += 1
        kinds["recompute"][plan.recompute.granularity] += 1
        if plan.architecture().moe is not None:
            kinds["dispatcher"][plan.moe.dispatcher] += 1
        for name in ("tp", "cp", "ep", "etp"):
            kinds["parallelism above 1"][name] += getattr(plan.parallel, name) > 1
        kinds["other"]["optimizer offload"] += plan.optimizer.offload_fraction > 0
        kinds["other"]["activation offload"] += bool(plan.activation_offload.modules)
        kinds["other"]["CUDA graphs"] += plan.kernels.cuda_graphs
        kinds["other"]["capacity factor"] += plan.moe.capacity_factor is not None
        kinds["other"]["expert overlap"] += plan.overlap.ep
        kinds["other"]["MTP"] += bool(plan.architecture().mtp_layers if plan.mtp_layers is None else plan.mtp_layers)
    rows = [
        [kind, ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))] for kind, counts in kinds.items()
    ]
    return table(["what", "accepted plans"], rows)


def parameters(found: dict[str, Verdicts]) -> list[str]:
    """How far the frameworks' own parameter counts lie from ours."""
    rows = []
    for name, skipped in (
        ("Megatron-LM (megatron-core 0.19.2)", ("gpt_oss", "qwen3_next", "qwen3_5_moe_text")),
        ("torchtitan 0.2.2", ()),
    ):
        worst, models = (0.0, ""), set()
        for case, verdict in found[name]:
            architecture = case.plan.architecture()
            counted = verdict.get("parameters")
            if counted is None or architecture.family in skipped:
                continue
            trained = architecture.mtp_layers if case.plan.mtp_layers is None else case.plan.mtp_layers
            own = architecture.total_parameters
            own += architecture.mtp_parameters // max(architecture.mtp_layers, 1) * trained
            # Megatron prints billions with two digits.
            error = max(abs(counted - own) - (5e6 if name.startswith("Megatron") else 0), 0.0) / own
            worst = max(worst, (error, str(case.plan.model)))
            models.add(case.plan.model)
        rows.append([name, str(len(models)), f"{100 * worst[0]:.3f} %" + (f" ({worst[1]})" if worst[0] else "")])
    return table(["framework", "models", "largest difference"], rows)


def by_model(found: dict[str, Verdicts]) -> list[str]:
    """Accepted plans per model and framework; an empty cell: the target refuses the model or had no turn with it."""
    counts: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for name, judged in found.items():
        for case, verdict in judged:
            counts[str(case.plan.model)][name].append(verdict["accepted"])
    rows = []
    for model in model_names():
        cells = [counts[model][name] for name in found]
        rows.append([model, *(f"{sum(cell)} of {len(cell)}" if cell else "" for cell in cells)])
    return table(["model", *found], rows)


def not_accepted(found: dict[str, Verdicts]) -> list[str]:
    """Every plan that a framework did not accept."""
    lines = [
        f"- {name}: {case.plan.model} on {case.plan.hardware.gpus} x {case.plan.hardware.gpu}: {verdict['error'][:300]}"
        for name, judged in found.items()
        for case, verdict in judged
        if not verdict["accepted"]
    ]
    return lines or ["None."]


def main() -> None:
    """Judge everything and write the page."""
    folder = environment()
    if folder is None:
        raise SystemExit("run tests/frameworks/build.sh and set MOEPLAN_FRAMEWORKS to its folder")
    found = verdicts(folder)
    lines = [
        "# Launch files: what the frameworks themselves accept",
        "",
        "Regenerate with `MOEPLAN_FRAMEWORKS=DIR python results/launch.py` (`tests/frameworks/build.sh` builds DIR).",
        "Every model of the catalog takes two turns through the settings of `tests/support/launch_cases.py`; what a "
        "target cannot run is adapted to the nearest plan that it can, as `--adapt` does. The judges run on a CPU: "
        "they check configurations and process groups, not training. Megatron-Bridge's recipes need "
        "its own environment, so only the names of their overrides are looked up.",
        "",
        *summary(found),
        "",
        "## What the Megatron-LM plans cover",
        "",
        *coverage(found[next(iter(found))]),
        "",
        "## The model in the file is the model",
        "",
        "Parameters as the framework itself counts what the file describes (Megatron-LM: its formula in "
        "`theoretical_memory_usage.py`, which knows neither GPT-OSS's gated activation nor linear attention, so those "
        "are left out; torchtitan: its model built on the meta device), against moeplan's count.",
        "",
        *parameters(found),
        "",
        "## Not accepted",
        "",
        *not_accepted(found),
        "",
        "## By model",
        "",
        *by_model(found),
        "",
        "## Models that a target refuses",
        "",
    ]
    for target in ("megatron", "megatron-bridge", "torchtitan"):
        reasons: dict[str, list[str]] = defaultdict(list)
        for model, reason in refused(target).items():
            reasons[reason.replace(model, "the model")].append(model)
        lines += [f"### {target}", ""]
        lines += [f"- {reason}: {', '.join(models)}" for reason, models in sorted(reasons.items())]
        lines.append("")
    (ROOT / "results" / "launch.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
