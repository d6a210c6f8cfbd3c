"""Measure the search and write results/benchmarks.md. Run from the repository's root: python results/benchmarks.py

Times are CPU seconds of the process (and wall seconds where a user waits for them), on whatever machine runs this; the
head of the table names it. Nothing here is random but the seeds that are listed.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CASES = (
    ("deepseek-v3", "h800-sxm-80gb", 2048),
    ("qwen3-235b-a22b", "h100-sxm-80gb", 256),
    ("mixtral-8x7b", "a100-sxm-80gb", 64),
)
SEEDS = {"tpe": range(5), "nsga2": range(2), "random": range(2)}
TRIALS = 100


@dataclass(frozen=True)
class Process:
    """One process, measured from outside."""

    cpu_s: float
    wall_s: float
    peak_rss_mib: float
    output: str


def run(*arguments: str) -> Process:
    """Run Python with arguments and measure it alone."""
    # Modules are compiled once, as pip does when it installs them, whatever this machine's settings say.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(Path(tempfile.gettempdir()) / "moeplan-benchmarks")
    started = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert child.stdout is not None
    output = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(arguments)} ended with status {status}")
    return Process(usage.ru_utime + usage.ru_stime, time.monotonic() - started, usage.ru_maxrss / 1024, output)


def request(model: str, gpu: str, gpus: int) -> Any:
    """The request that ``moeplan search MODEL --gpu GPU --gpus N`` makes."""
    from moeplan.plan import load_plan
    from moeplan.search import SearchRequest, load_space

    plan = load_plan({"model": model, "hardware": {"gpu": gpu, "gpus": gpus}})
    return SearchRequest(plan.architecture(), plan.gpu().machine(), plan.row(), load_space())


def sweep(model: str, gpu: str, gpus: int) -> dict[str, Any]:
    """The exhaustive sweep on one thread, in this process."""
    from moeplan.search import search

    asked = replace(request(model, gpu, gpus), workers=1)
    search(
        replace(asked, space=replace(asked.space, choices={**asked.space.choices, "pp": (1,)}))
    )  # imports and caches
    started = time.process_time()
    outcome = search(asked)
    cpu_s = time.process_time() - started
    return {
        "evaluated": outcome.counts.evaluated,
        "fitting": outcome.counts.fitting,
        "cpu_s": cpu_s,
        "per_cpu_s": outcome.counts.evaluated / cpu_s,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "optimum": outcome.certificate.optimum,
    }


def studies(model: str, gpu: str, gpus: int, optimum: float) -> dict[str, list[float]]:
    """Best of each sampler and seed over the certified optimum."""
    from moeplan.search import search

    asked = request(model, gpu, gpus)
    found: dict[str, list[float]] = {}
    for sampler, seeds in SEEDS.items():
        for seed in seeds:
            best = search(replace(asked, sampler=sampler, trials=TRIALS, seed=seed)).best
            found.setdefault(sampler, []).append(best.value / optimum if best is not None else 0.0)
    return found


def report() -> str:
    """The whole page."""
    lines = [
        "# Benchmarks of the search",
        "",
        "Made by `python results/benchmarks.py`.",
        "",
        f"Python {platform.python_version()}, {os.cpu_count()} cores, {_processor()}; load average at the start "
        f"{os.getloadavg()[0]:.1f} (CPU seconds grow with the load too, since caches and hardware threads are shared).",
        "",
        "## Exhaustive sweep, one thread",
        "",
        "Default search space; the memory of every legal candidate is priced, and the time of all that fit or fail by "
        "little: no answer depends on the rest.",
        "",
        "| question | candidates | fit | CPU s | candidates per CPU s | peak RSS |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    optima = {}
    for case in CASES:
        told = json.loads(run(__file__, "--sweep", *map(str, case)).output)
        optima[case] = told["optimum"]
        lines.append(
            f"| {_named(case)} | {told['evaluated']:,} | {told['fitting']:,} | {told['cpu_s']:.2f} | "
            f"{told['per_cpu_s']:,.0f} | {told['peak_rss_mib']:.0f} MiB |"
        )
    lines += [
        "",
        "For comparison, estimates per CPU second of other planners on a machine of this kind: llm-analysis 1,800, "
        "Calculon 27, SimuMax 1.3.",
        "",
        "## Optuna against the certified optimum",
        "",
        f"Best of {TRIALS} trials over the optimum of the sweep; a trial prices every candidate of one layout.",
        "",
        "| question | sampler | seeds | worst seed | median | best |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for case in CASES:
        for sampler, ratios in studies(*case, optima[case]).items():
            ranked = sorted(ratios)
            worst, median, best = ranked[0], ranked[len(ranked) // 2], ranked[-1]
            lines.append(f"| {_named(case)} | {sampler} | {len(ranked)} | {worst:.4f} | {median:.4f} | {best:.4f} |")
    lines += ["", "## Whole commands", "", "| command | CPU s | wall s | peak RSS |", "|---|---:|---:|---:|"]
    estimate = "estimate mixtral-8x7b --gpu h100 --gpus 64 --tp 2 --ep 8 --pp 4"
    searches = [f"search {model} --gpu {gpu} --gpus {gpus}" for model, gpu, gpus in CASES]
    for command in ("--help", estimate, *searches):
        told = min((run("-m", "moeplan", *command.split()) for _ in range(3)), key=lambda told: told.cpu_s)
        # A child's reading begins at its parent's size: what is no larger than this process says nothing.
        own_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        peak = f"{told.peak_rss_mib:.0f} MiB" if told.peak_rss_mib > 1.05 * own_mib else f"below {own_mib:.0f} MiB"
        lines.append(f"| `moeplan {command}` | {told.cpu_s:.2f} | {told.wall_s:.2f} | {peak} |")
    return "\n".join([*lines, ""])


def _named(case: tuple[str, str, int]) -> str:
    return f"{case[0]}, {case[2]} x {case[1]}"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    if sys.argv[1:2] == ["--sweep"]:
        model, gpu, gpus = sys.argv[2:5]
        print(json.dumps(sweep(model, gpu, int(gpus))))
    else:
        Path(__file__).with_suffix(".md").write_text(report())
