"""The measured runs that the time model is held against, as plans.

Six sources, all copied under ``tests/reference``: single-node B200 runs, NVIDIA's published throughput, that of other
frameworks, dense GPT on A100, Mixtral-like models on A100 with natural routing, and the mappings of the
parallel-folding paper on H100.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moeplan.estimator.machine import Machine
from moeplan.estimator.stages import Structure, structure
from moeplan.estimator.table import Table
from moeplan.estimator.time import step_time
from moeplan.model.architecture import Architecture
from moeplan.model.flops import model_flops_per_token
from moeplan.plan import load_plan

REFERENCE = Path(__file__).resolve().parent.parent / "tests" / "reference"
ALL_OFF = {"grad_reduce": False, "param_gather": False, "tp": False, "ep": False}


@dataclass
class Case:
    """One measured run.

    Attributes:
        dataset: File it comes from.
        name: Identifier in that file.
        group: Runs whose order is compared (model and software release).
        model: What is left out together in leave-one-model-out.
        release: Software release, or an empty string.
        plan: The configuration.
        measured_s: Seconds per step; NaN where only the order counts.
        software: Factors that tell what its software has and its plan cannot say.
    """

    dataset: str
    name: str
    group: str
    model: str
    release: str
    plan: dict[str, Any]
    measured_s: float
    software: dict[str, float] = field(default_factory=dict)
    architecture: Architecture = field(init=False)
    machine: Machine = field(init=False)
    row: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        plan = load_plan(self.plan)
        self.architecture = _same(plan.architecture())
        self.machine = plan.gpu().machine(plan.hardware.gpus_per_node)
        self.row = plan.row()

    @property
    def factors(self) -> dict[str, float]:
        """What the run's software has (see ``Pricer.fused`` and ``Pricer.unfused``)."""
        return {**software_of(self.release), **self.software}

    def tokens_per_s_per_gpu(self, step_s: float) -> float:
        """Throughput at a step time."""
        row = self.row
        return float(row["global_batch_size"] * row["sequence_length"] / row["gpus"] / step_s)


def software_of(release: str) -> dict[str, float]:
    """What a release of NeMo's container has: the fused path of experts came with 26.06; nothing without a release."""
    return {"fused_moe": float(release >= "26.06")} if release else {}


def _same(architecture: Architecture, seen: dict[Any, Architecture] = {}) -> Architecture:  # noqa: B006
    """One object per equal architecture, so that its runs share one call of the estimator."""
    return seen.setdefault((architecture.name, architecture.layers, architecture.head), architecture)


def load(name: str) -> list[dict[str, Any]]:
    """The cases of one reference file."""
    found: list[dict[str, Any]] = json.loads((REFERENCE / f"{name}.json").read_text())["cases"]
    return found


def measured_b200() -> list[Case]:
    """``time_measured.json``."""
    cases = []
    for item in load("time_measured"):
        plan = json.loads(json.dumps(item["plan"]))
        family = plan["model"]["model_type"]
        plan["model"].pop("num_nextn_predict_layers", None)
        cases.append(Case("time_measured", item["id"], family, family, "", plan, item["measured"]["step_s"]))
    return cases


def published() -> list[Case]:
    """``throughput_published.json``: NVIDIA's runs of Megatron-Bridge."""
    return [_published("throughput_published", item, item["plan"]["model"]) for item in load("throughput_published")]


def never_fitted() -> list[Case]:
    """``throughput_never_fitted.json``: more runs of the same kind, of models and GPUs that no fit has seen."""
    found = load("throughput_never_fitted")
    return [_published("throughput_never_fitted", item, item["plan"]["model"]) for item in found]


def frameworks() -> list[Case]:
    """``throughput_frameworks.json``: other software than Megatron-Bridge, each source left out as a whole.

    Left out is what a plan cannot say: another port of DeepEP than the plan's exchange (Primus). NeMo AutoModel shards
    like FSDP2 but runs Transformer Engine's kernels, which the framework of a plan stands for here.
    """
    cases = []
    for item in load("throughput_frameworks"):
        source = item["id"].split("/")[0]
        if source == "automodel":
            item["plan"]["framework"] = "megatron"
        if source != "primus":
            cases.append(_published("throughput_frameworks", item, source))
    return cases


def _published(dataset: str, item: dict[str, Any], left_out_with: str) -> Case:
    """A run whose throughput was published; NVIDIA's carry the release of its NeMo container."""
    plan = item["plan"]
    tokens = plan["batch"]["global_batch_size"] * plan["batch"]["sequence_length"] / plan["hardware"]["gpus"]
    unsaid = item.get("unsaid") or {}
    return Case(
        dataset,
        item["id"],
        f"{_name(plan['model'])} {item['release']}",
        left_out_with,
        item["release"] if item["id"].startswith("bridge/") else "",
        plan,
        tokens / item["measured"]["tokens_per_s_per_gpu"],
        {"compiled": 1.0} if unsaid.get("compile") else {},
    )


def _name(model: Any) -> str:
    return model if isinstance(model, str) else str(model.get("name") or model.get("model_type"))


def dense_a100() -> list[Case]:
    """``dense_a100.json``: unfused attention (2022), recomputation as in the paper, no overlap of its own."""
    cases = []
    for item in load("dense_a100"):
        model = item["model"]
        document = {
            "architecture": "decoder",
            "name": model["name"],
            "hidden_size": model["hidden"],
            "layers": model["layers"],
            "heads": model["heads"],
            "ffn": model["ffn"],
            "gated": False,
            "linear_bias": True,
            "norm": "layernorm",
            "position": "learned",
            "vocabulary": model["vocab"],
            "max_sequence_length": model["seq"],
            "tied_embeddings": True,
        }
        parallel = {"tp": item["tp"], "pp": item["pp"], "vpp": item["vpp"], "sp": item["sequence_parallel"]}
        plan = _plan(document, "a100-sxm-80gb", item["gpus"], model["seq"], item["mbs"], item["gbs"], parallel)
        plan["optimizer"] = {"sharding": item["zero_stage"]}
        plan["recompute"] = {"granularity": item["recompute"]}
        plan["kernels"] = {"flash_attention": False}
        plan["overlap"] = ALL_OFF
        seconds = item["measured"]["iter_time_s"]
        cases.append(Case("dense_a100", item["id"], "a100", model["name"], "", plan, seconds))
    return cases


def natural_routing() -> list[Case]:
    """``moe_a100_natural_routing.json`` with the imbalance that ``routing_imbalance.json`` has for static experts."""
    imbalance = {
        item["model"].split("-")[-1]: item["max_over_mean_tokens_per_rank"]["mean"]
        for item in load("routing_imbalance")
        if "static experts" in item["method"]
    }
    cases = []
    for item in load("moe_a100_natural_routing"):
        model = item["model"]
        document = {
            "model_type": "mixtral",
            "hidden_size": model["hidden"],
            "num_hidden_layers": model["layers"],
            "num_attention_heads": model["heads"],
            "num_key_value_heads": model["kv_heads"],
            "intermediate_size": model["moe_ffn"],
            "num_local_experts": model["num_experts"],
            "num_experts_per_tok": model["topk"],
            "vocab_size": model["vocab"],
            "tie_word_embeddings": False,
            "max_position_embeddings": model["seq"],
        }
        parallel = {"tp": item["tp"], "ep": item["ep"], "etp": item["etp"]}
        plan = _plan(document, "a100-sxm-80gb", item["gpus"], model["seq"], item["mbs"], item["gbs"], parallel)
        plan["moe"] = {"load_imbalance": imbalance[model["name"].split("-")[-1]]}
        seconds = item["measured"]["iter_time_s"]
        cases.append(Case("moe_a100_natural_routing", item["id"], "a100", model["name"], "", plan, seconds))
    return cases


def folding() -> list[Case]:
    """``parallel_folding.json``: rows that state their mapping. The micro batch is not published: 1 is assumed."""
    cases = []
    for item in load("parallel_folding"):
        if item.get("tp") is None or item.get("mfu_pct") is None:
            continue
        fine = item["model"].endswith("G8T8")
        model: Any = "mixtral-8x22b"
        if fine:
            # Each expert split in eight, top-8 of 64 (the paper's fine-grained variant).
            model = {**_MIXTRAL_8X22B, "intermediate_size": 2048, "num_local_experts": 64, "num_experts_per_tok": 8}
        else:
            model = _MIXTRAL_8X22B
        folded = item.get("etp") == 1
        parallel = {
            "tp": item["tp"],
            "cp": item["cp"],
            "pp": item.get("pp") or 1,
            "vpp": 7 if item.get("pp") else 1,
            "ep": item.get("ep") or 1,
            "etp": 1 if folded or not item.get("ep") else item["tp"],
        }
        plan = _plan(model, "h100-sxm-80gb", item["gpus"], item["seq"], 1, item["gbs"], parallel)
        plan["optimizer"] = {"sharding": 3 if item["method"].startswith("FSDP") else 1}
        plan["moe"] = {"capacity_factor": 1.0}
        tokens = item["gbs"] * item["seq"] / item["gpus"]
        case = Case(
            "parallel_folding",
            f"{item['model']} {item['method']} x{item['gpus']} s{item['seq']} gbs{item['gbs']}",
            f"{item['model']} {item['table'][:7]} x{item['gpus']}",
            item["model"],
            "",
            plan,
            1.0,
        )
        flops = model_flops_per_token(case.architecture, item["seq"])
        case.measured_s = tokens * flops / (item["mfu_pct"] / 100 * 989.5e12)
        cases.append(case)
    return cases


_MIXTRAL_8X22B = {
    "model_type": "mixtral",
    "hidden_size": 6144,
    "num_hidden_layers": 56,
    "num_attention_heads": 48,
    "num_key_value_heads": 8,
    "intermediate_size": 16384,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 32768,
    "tie_word_embeddings": False,
    "max_position_embeddings": 131072,
}


def _plan(
    model: Any, gpu: str, gpus: int, sequence: int, micro: int, batch: int, parallel: dict[str, Any]
) -> dict[str, Any]:
    return {
        "model": model,
        "hardware": {"gpu": gpu, "gpus": gpus},
        "batch": {"sequence_length": sequence, "micro_batch_size": micro, "global_batch_size": batch},
        "parallel": parallel,
        "precision": "bf16",
    }


def all_cases() -> list[Case]:
    """Every run with a measured time."""
    return [*measured_b200(), *published(), *frameworks(), *dense_a100(), *natural_routing(), *folding()]


@dataclass
class Batch:
    """Runs that share one call of the estimator: same model, machine and software."""

    positions: list[int]
    case: Case
    table: Table
    stages: Structure
    factors: dict[str, float]


def batches(cases: list[Case], told: bool = True) -> list[Batch]:
    """Group runs by what one call of the estimator prices.

    Args:
        cases: The runs.
        told: Tell the estimator what each run's software has; a plan alone does not.
    """
    groups: dict[Any, list[int]] = {}
    for position, case in enumerate(cases):
        key = (id(case.architecture), case.machine.name, case.machine.gpus_per_node, tuple(case.factors.items()) * told)
        groups.setdefault(key, []).append(position)
    found = []
    for positions in groups.values():
        first = cases[positions[0]]
        table = Table.of_rows([cases[position].row for position in positions])
        factors = first.factors if told else {}
        found.append(Batch(positions, first, table, structure(first.architecture, table), factors))
    return found


def predict(grouped: list[Batch]) -> list[float]:
    """Predicted seconds per step, in the order of the cases that were grouped."""
    seconds = [0.0] * sum(len(batch.positions) for batch in grouped)
    for batch in grouped:
        case = batch.case
        times = step_time(case.architecture, case.machine, batch.table, batch.stages, batch.factors)
        for position, value in zip(batch.positions, times.step_s, strict=True):
            seconds[position] = float(value)
    return seconds
