"""Measured memory and the estimator's answers: the cases behind ``memory.md`` and ``tests/test_memory_*.py``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import time_cases
from numpy.typing import NDArray

from moeplan.errors import PlanError
from moeplan.estimator.machine import Machine
from moeplan.estimator.memory import StageMemory, stage_memory
from moeplan.estimator.price import DEFAULT_MARGIN_GIB, GIB
from moeplan.estimator.stages import Structure, structure
from moeplan.estimator.table import Table
from moeplan.importers import read_megatron
from moeplan.plan import Plan, load_plan

REFERENCE = Path(__file__).resolve().parents[1] / "tests" / "reference"


def cases(name: str) -> list[dict[str, Any]]:
    """The cases of a reference file."""
    found: list[dict[str, Any]] = json.loads((REFERENCE / f"{name}.json").read_text(encoding="utf-8"))["cases"]
    return found


@dataclass(frozen=True)
class Priced:
    """A plan's memory with every stage kept."""

    machine: Machine
    structure: Structure
    memory: StageMemory

    def moment(self, stage: int) -> int:
        """The moment of a stage that needs the most."""
        moments = np.flatnonzero(self.structure.stage[0] == stage)
        return int(moments[np.argmax(self.memory.peak_allocated[0, moments])])

    def gib(self, name: str, stage: int) -> float:
        """One term of a stage in GiB."""
        return float(getattr(self.memory, name)[0, self.moment(stage)]) / GIB

    @property
    def last(self) -> int:
        """The last pipeline stage."""
        return int(self.structure.stage[0].max())


def priced(plan: Plan) -> Priced:
    """Price the memory of a plan."""
    architecture, machine = plan.architecture(), plan.gpu().machine(plan.hardware.gpus_per_node)
    table = Table.of_rows([plan.row()])
    stages = structure(architecture, table, all_stages=True)
    return Priced(machine, stages, stage_memory(architecture, machine, table, stages, {}))


@dataclass(frozen=True)
class Stage:
    """One measured pipeline stage and its prediction, in GiB."""

    case: str
    stage: int
    allocated: float
    predicted_allocated: float
    reserved: float
    predicted_reserved: float
    peer: float | None


def measured() -> list[Stage]:
    """Megatron-Core on B200, stage by stage."""
    found = []
    for case in cases("memory_measured"):
        answer = priced(load_plan(case["plan"]))
        stages = case["measured"]["stages"]
        fullest = max(stage["peak_allocated_gib"] for stage in stages)
        for stage in stages:
            number = stage["stage"]
            # The other estimator's figure is that of the fullest stage.
            peer = case["peer"]["simumax"]["peak_allocated_gib"] if stage["peak_allocated_gib"] == fullest else None
            found.append(
                Stage(
                    case["id"],
                    number,
                    stage["peak_allocated_gib"],
                    answer.gib("peak_allocated", number),
                    stage["peak_reserved_gib"],
                    answer.gib("peak_reserved", number),
                    peer,
                )
            )
    return found


@dataclass(frozen=True)
class Integration:
    """One run of Megatron-LM's continuous integration: last pipeline stage, GiB.

    Attributes:
        case: Name.
        static: Allocated after the step, and the prediction.
        peak: Peak allocated, and the prediction.
        left_out: Why the plan cannot express the run, empty where it can.
    """

    case: str
    static: tuple[float, float]
    peak: tuple[float, float]
    left_out: str


# The release runs name their tokenizer in the source file (--tokenizer-model nemotron_2_256k.model), which the recorded
# arguments leave out; all others take Megatron's own default.
NEMOTRON_TOKENS = 256_000


def integration() -> list[Integration]:
    """Megatron-LM's own runs on H100, read from their arguments."""
    found = []
    for case in cases("memory_megatron_ci"):
        arguments, told = case["megatron_args"], case["measured"]
        reason = left_out(case)
        static = peak = float("nan")
        try:
            vocabulary = NEMOTRON_TOKENS if case["id"].startswith("mixtral/") else None
            answer = priced(read_megatron(arguments, case["gpu"], case["gpus"], vocabulary=vocabulary).plan)
        except PlanError as error:
            reason = reason or f"the importer refuses it: {error}"
        else:
            states = ("parameters", "gradients", "optimizer", "buffers")
            static = sum(answer.gib(name, answer.last) for name in states)
            peak = answer.gib("peak_allocated", answer.last)
        found.append(
            Integration(
                case["id"],
                (told["allocated_after_step_gib"], static),
                (told["peak_allocated_gib"], peak),
                reason,
            )
        )
    return found


def left_out(case: Mapping[str, Any]) -> str:
    """The feature of a run that no plan expresses, or an empty string."""
    arguments: Mapping[str, Any] = case["megatron_args"]
    if any(name.startswith("inference-") for name in arguments):
        return "reinforcement learning: an inference engine's key/value cache shares the GPU"
    if case["gpus_known_from"].startswith("inferred"):
        return "its number of GPUs is not recorded but inferred from the very memory to be predicted"
    if int(arguments.get("num-distributed-optimizer-instances", 1)) > 1:
        return "optimizer states sharded over part of the data-parallel ranks (several optimizer instances)"
    if "microbatch-group-size-per-virtual-pipeline-stage" in arguments:
        return "a micro-batch group other than pp in the interleaved schedule"
    if arguments.get("cross-entropy-loss-fusion") and arguments.get("cross-entropy-fusion-impl", "native") != "te":
        return "native cross-entropy fusion, which keeps one fp32 copy of the logits more than the unfused loss"
    if arguments.get("fp8-param-gather"):
        return "parameters kept and gathered in FP8"
    if "muon" in str(arguments.get("optimizer", "")):
        return "Muon: its orthogonalisation works on whole matrices in the optimizer step (layer-wise when distributed)"
    if arguments.get("transformer-impl") == "local":
        return "Megatron's own layers instead of Transformer Engine's, which the plan prices"
    if "cuda-graph-impl" in arguments:
        return "CUDA graphs keep private pools for what they capture"
    if "num-experts" in arguments and not arguments.get("moe-grouped-gemm"):
        return "experts run one after the other (no grouped GEMM, hence no workspaces of its streams)"
    if "offloading" in case["id"]:
        return "the run offloads activations, but its recorded arguments do not say which"
    if arguments.get("use-megatron-fsdp") and arguments.get("num-experts"):
        return "Megatron-FSDP with expert parallelism: gathered units stay allocated after the step"
    if case["id"].endswith("reruns_resume_check_grads"):
        return "its global batch does not divide over the recorded GPUs"
    return ""


@dataclass(frozen=True)
class Saving:
    """What one measure saves of DeepSeek-V3's memory: published, and predicted over the stages; 10^9 bytes."""

    measure: str
    published: float
    least: float
    most: float


def savings() -> list[Saving]:
    """The Megatron-Core MoE report (arXiv:2603.07685, table 4): DeepSeek-V3 in MXFP8 on 256 GPUs, PP4 VPP4 EP64.

    The report names neither the stage nor the layout; this one is as even as 61 layers allow.
    """
    published = next(case for case in cases("memory_formulas") if "memory_saved_GB" in case)["memory_saved_GB"]
    base = {
        "model": "deepseek-v3",
        "hardware": {"gpu": "gb200", "gpus": 256},
        "batch": {"sequence_length": 4096, "micro_batch_size": 1, "global_batch_size": 2048},
        "parallel": {"pp": 4, "vpp": 4, "ep": 64, "pipeline_layout": "Et*3|(tttt|)*14ttmL"},
        "moe": {"dispatcher": "hybridep"},
    }
    modules = {
        "mla_up_proj_recompute": ("mla_up_proj",),
        "swiglu_act_recompute": ("moe_act",),
        "layernorm_recompute": ("layernorm",),
        "total_fine_grained_recompute": ("mla_up_proj", "moe_act", "layernorm"),
    }
    eight, sixteen = ({**base, "precision": name} for name in ("mxfp8", "bf16"))
    found = []
    for name, chosen in modules.items():
        after = {**eight, "recompute": {"granularity": "selective", "modules": list(chosen)}}
        found.append(_saving(name, published[name], _activations(eight) - _activations(after)))
    found.append(_saving("fp8_activations", published["fp8_activations"], _activations(sixteen) - _activations(eight)))
    return found


def _activations(document: Mapping[str, Any]) -> NDArray[np.float64]:
    """Saved activations of each stage in 10^9 bytes."""
    answer = priced(load_plan(document))
    return np.array([answer.gib("activations", stage) for stage in range(answer.last + 1)]) * GIB / 1e9


def _saving(measure: str, published: float, stages: NDArray[np.float64]) -> Saving:
    return Saving(measure, published, float(stages.min()), float(stages.max()))


@dataclass(frozen=True)
class Fit:
    """One published run that did run: what it would need and what the GPU has, in GiB."""

    case: str
    needed: float
    usable: float
    missing: str

    @property
    def fits(self) -> bool:
        """Whether the estimator says that it fits."""
        return self.needed <= self.usable


def fits() -> list[Fit]:
    """Published runs, all of which ran."""
    told = [(case["id"], case["plan"], missing_setting(case["plan"])) for case in cases("throughput_published")]
    others = [*time_cases.dense_a100(), *time_cases.natural_routing(), *time_cases.folding()]
    told += [(f"{case.dataset}/{case.name}", case.plan, "") for case in others]
    found = []
    for name, plan, missing in told:
        answer = priced(load_plan(plan))
        needed = float((answer.memory.peak_reserved + answer.memory.overhead).max()) / GIB
        found.append(Fit(name, needed, answer.machine.usable_gib - DEFAULT_MARGIN_GIB, missing))
    return found


def missing_setting(plan: Mapping[str, Any]) -> str:
    """What NVIDIA's recipe of a run sets and the published plan does not say."""
    if plan["optimizer"]["sharding"] == 3:
        return "the recipe offloads the activations of many layers to the host (cpu_offloading_num_layers)"
    if plan["precision"] in ("fp8", "mxfp8"):
        return "the recipe keeps parameters in FP8 (fp8_param_gather), 2 bytes each less than the plan's"
    return ""
