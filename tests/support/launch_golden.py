"""The launch files of three well-known setups, kept as text so that a change of any of them is seen in review.

These are golden files: written by moeplan itself and read by people, not evidence that the text is right (that is what
``tests/frameworks`` and the other launch tests are for). After a change that is meant, write them anew with

    PYTHONPATH=.:tests python -m support.launch_golden
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moeplan import launch
from moeplan.plan import Plan, load_plan

FOLDER = Path(__file__).parent.parent / "golden" / "launch"

SETUPS: dict[str, dict[str, Any]] = {
    # Megatron-Bridge's recipe for 1024 H100: TP2 PP8 VPP4 EP64, layout and recomputation as there.
    "deepseek-v3-1024xh100": {
        "model": "deepseek-v3",
        "hardware": {"gpu": "h100-sxm-80gb", "gpus": 1024},
        "batch": {"sequence_length": 4096, "micro_batch_size": 1, "global_batch_size": 16384},
        "parallel": {"tp": 2, "pp": 8, "vpp": 4, "ep": 64, "pipeline_layout": "Et|(tt|)*30mL"},
        "recompute": {"granularity": "selective", "modules": ["mla_up_proj", "mlp"]},
        "moe": {"dispatcher": "deepep"},
    },
    # Qwen3's 30B model on two nodes.
    "qwen3-30b-a3b-16xh100": {
        "model": "qwen3-30b-a3b",
        "hardware": {"gpu": "h100-sxm-80gb", "gpus": 16},
        "batch": {"sequence_length": 4096, "micro_batch_size": 1, "global_batch_size": 512},
        "parallel": {"ep": 16},
    },
    # Llama 3 70B, dense, sharded.
    "llama-3-70b-64xh100": {
        "model": "llama-3-70b",
        "hardware": {"gpu": "h100-sxm-80gb", "gpus": 64},
        "batch": {"sequence_length": 2048, "micro_batch_size": 1, "global_batch_size": 512},
        "parallel": {"tp": 4, "pp": 2},
    },
}


def files(setup: str, target: str) -> dict[str, str]:
    """The files of a setup for a target (adapted as ``--adapt`` does): name -> text."""
    plan: Plan = load_plan(SETUPS[setup])
    runs, changes = launch.adapt(plan, target)
    notes = tuple(f"adapted: {change}" for change in changes)
    return launch.render(runs, target, command=f"moeplan launch {setup}.yaml --to {target} --adapt", notes=notes)


def main() -> None:
    """Write every golden file anew, and remove those that are no longer written."""
    expected = set()
    for setup in SETUPS:
        for target in launch.TARGETS:
            for name, text in files(setup, target).items():
                path = FOLDER / setup / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
                expected.add(path)
    for path in FOLDER.rglob("*"):
        if path.is_file() and path not in expected:
            path.unlink()


if __name__ == "__main__":
    main()
