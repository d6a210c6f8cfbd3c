"""Hand launch files to the frameworks' own code, which runs in the environment that ``build.sh`` makes."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from support.launch_cases import Case
from support.launch_shell import started

HERE = Path(__file__).parent
VERSIONS = {
    "megatron": "megatron-core 0.19.2",
    "deepspeed": "DeepSpeed 0.19.8",
    "torchtitan.toml": "torchtitan 0.2.2",
    "torchtitan_config.py": "torchtitan 0.3.0",
    "accelerate": "accelerate 1.15.0",
}
_CHECKED_VARIABLES = (
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "NCCL_GRAPH_REGISTER",
    "NVTE_CPU_OFFLOAD_V1",
    "PYTORCH_CUDA_ALLOC_CONF",
)


def environment() -> Path | None:
    """The folder of the built environment, or None where there is none."""
    named = os.environ.get("MOEPLAN_FRAMEWORKS")
    folder = Path(named) if named else None
    return folder if folder is not None and (folder / "built-1").exists() else None


def judged(
    folder: Path, script: str, arguments: Iterable[str], lines: Iterable[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Verdicts of a judge on one JSON object per line, in one process.

    Raises:
        RuntimeError: The judge ended before it had answered all.
    """
    asked = [json.dumps(line) for line in lines]
    variables = {"PATH": os.environ["PATH"], "HOME": str(folder), "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.run(
        [str(folder / "venv" / "bin" / "python"), str(HERE / script), *arguments],
        input="\n".join(asked),
        capture_output=True,
        text=True,
        env=variables,
        check=False,
    )
    answers = [json.loads(line) for line in process.stdout.splitlines()]
    if len(answers) != len(asked):
        raise RuntimeError(f"{script} answered {len(answers)} of {len(asked)}: {process.stderr[-2000:]}")
    return answers


def megatron_line(case: Case, scratch: Path) -> dict[str, Any]:
    """What the launch script of a case would really start: bash runs it up to torchrun."""
    words, variables = started(case.files["megatron.sh"], scratch, MEGATRON_PATH="/megatron", MASTER_ADDR="first")
    script = words.index("/megatron/pretrain_gpt.py")
    return {
        "arguments": words[script + 1 :],
        "world_size": int(words[words.index("--nnodes") + 1]) * int(words[words.index("--nproc-per-node") + 1]),
        # MI300 reports 9.4 to PyTorch, as Hopper reports 9.0.
        "capability": case.plan.gpu().machine().compute_capability // 10 or 9,
        "environment": {name: value for name, value in variables.items() if name in _CHECKED_VARIABLES},
    }


def judge_megatron(folder: Path, found: list[Case], scratch: Path) -> list[dict[str, Any]]:
    """megatron-core's verdicts."""
    lines = [megatron_line(case, scratch) for case in found]
    return judged(folder, "judge_megatron.py", [str(folder / "megatron-core-0.19.2")], lines)


def judge_deepspeed(folder: Path, found: list[Case]) -> list[dict[str, Any]]:
    """DeepSpeed's verdicts."""
    lines = [
        {
            "document": json.loads(case.files["deepspeed.json"]),
            "world_size": case.plan.hardware.gpus,
            "data_parallel": case.plan.dp,
        }
        for case in found
    ]
    return judged(folder, "judge_others.py", ["deepspeed"], lines)


def judge_torchtitan(folder: Path, found: list[Case], name: str) -> list[dict[str, Any]]:
    """Verdicts of the torchtitan generation that reads the file ``name``; every case must have it."""
    kind, version = ("torchtitan-toml", "0.2.2") if name.endswith(".toml") else ("torchtitan-python", "0.3.0")
    lines = [{"text": case.files[name], "world_size": case.plan.hardware.gpus} for case in found]
    return judged(folder, "judge_others.py", [kind, str(folder / f"torchtitan-{version}")], lines)


def judge_accelerate(folder: Path, found: list[Case]) -> list[dict[str, Any]]:
    """accelerate's verdicts."""
    lines = [{"text": case.files["accelerate.yaml"]} for case in found]
    return judged(folder, "judge_others.py", ["accelerate"], lines)


def judge_bridge(folder: Path, found: list[Case], scratch: Path) -> list[dict[str, Any]]:
    """Whether the overrides name fields that megatron-core's configuration classes have."""
    lines = []
    for case in found:
        words, _ = started(case.files["megatron_bridge.sh"], scratch, BRIDGE_PATH="/bridge", MASTER_ADDR="first")
        lines.append({"overrides": words[words.index("--dataset") + 2 :]})
    return judged(folder, "judge_others.py", ["megatron-bridge", str(folder / "megatron-core-0.19.2")], lines)
