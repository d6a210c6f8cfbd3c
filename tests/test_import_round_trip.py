"""Plan to launch file and back: every target's files are read to the very plan that wrote them."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from moeplan import launch
from moeplan.errors import PlanError
from moeplan.frameworks.carried import MARK, plan_from
from moeplan.importers import FRAMEWORKS, read
from moeplan.model import load_model
from moeplan.plan import Plan

# The files of each target that say all of the plan.
FILES = {
    "megatron": ("megatron.sh",),
    "megatron-bridge": ("megatron_bridge.sh",),
    "deepspeed": ("deepspeed.json",),
    "torchtitan": ("torchtitan.toml", "torchtitan_config.py"),
    "accelerate": ("accelerate.yaml",),
}
# Models that between them have every kind of layer that some target takes.
MODELS = {
    "megatron": ("mixtral-8x7b", "deepseek-v3", "gpt-oss-20b", "qwen3-30b-a3b", "llama-3-8b", "qwen3-next-80b-a3b"),
    "megatron-bridge": ("deepseek-v3", "qwen3-30b-a3b", "llama-3-8b", "gpt-oss-120b"),
    "deepspeed": ("mixtral-8x7b", "qwen3-30b-a3b", "llama-3-8b", "deepseek-v3"),
    "torchtitan": ("qwen3-30b-a3b", "llama-3-8b", "deepseek-v2-lite", "gpt-oss-20b"),
    "accelerate": ("llama-3-8b", "mixtral-8x7b", "qwen3-8b"),
}


def test_every_target_is_imported() -> None:
    assert set(FRAMEWORKS) == set(launch.TARGETS) == set(FILES)


def documents(target: str) -> st.SearchStrategy[dict[str, Any]]:
    """Plans of all kinds; most are adapted to what the target runs."""
    optional: dict[str, st.SearchStrategy[Any]] = {
        "hardware.gpus_per_node": st.sampled_from([None, 8]),
        "batch.sequence_length": st.sampled_from([2048, 4096]),
        "batch.micro_batch_size": st.sampled_from([1, 2]),
        "parallel.tp": st.sampled_from([1, 2, 4]),
        "parallel.sp": st.sampled_from([None, True, False]),
        "parallel.pp": st.sampled_from([1, 2, 4]),
        "parallel.vpp": st.sampled_from([1, 2]),
        "parallel.cp": st.sampled_from([1, 2]),
        "parallel.cp_comm": st.sampled_from(["p2p", "a2a", "allgather"]),
        "parallel.ep": st.sampled_from([1, 2, 4, 8]),
        "parallel.etp": st.sampled_from([1, 2]),
        "precision": st.sampled_from(["bf16", "fp8", "fp16", "fp32", "tf32", "mxfp8"]),
        "optimizer.name": st.sampled_from(["adam", "sgd"]),
        "optimizer.sharding": st.sampled_from([0, 1, 2, 3]),
        "optimizer.state_dtype": st.sampled_from(["fp32", "bf16"]),
        "optimizer.gradient_dtype": st.sampled_from(["fp32", "bf16"]),
        "optimizer.offload_fraction": st.sampled_from([0.0, 0.5, 1.0]),
        "moe.dispatcher": st.sampled_from(["alltoall", "allgather", "deepep", "hybridep"]),
        "moe.capacity_factor": st.sampled_from([None, 1.25]),
        "moe.load_imbalance": st.sampled_from([1.0, 1.5]),
        "moe.top_k": st.sampled_from([None, 1, 4]),
        "mtp_layers": st.sampled_from([None, 0, 1]),
        "kernels.fused_cross_entropy": st.booleans(),
        "kernels.fused_gradient_accumulation": st.booleans(),
        "kernels.flash_attention": st.booleans(),
        "kernels.cuda_graphs": st.booleans(),
        "kernels.dropout": st.booleans(),
        "framework": st.sampled_from(["megatron", "fsdp2", "deepspeed"]),
        "overlap.grad_reduce": st.booleans(),
        "overlap.param_gather": st.booleans(),
        "overlap.tp": st.booleans(),
        "overlap.ep": st.booleans(),
    }
    recompute = st.sampled_from(
        [
            {},
            {"recompute.granularity": "full"},
            {"recompute.granularity": "full", "recompute.method": "uniform", "recompute.layers": 2},
            {"recompute.granularity": "full", "recompute.layers": 1},
            {"recompute.granularity": "selective", "recompute.modules": ["moe_act", "layernorm"]},
            {"recompute.granularity": "selective"},
            {"activation_offload.modules": ["core_attn", "attn_proj"], "activation_offload.fraction": 0.5},
        ]
    )
    fixed = st.fixed_dictionaries(
        {
            "model": st.sampled_from(MODELS[target]),
            "hardware.gpu": st.sampled_from(["h100", "b200", "a100-80gb"]),
            "hardware.gpus": st.sampled_from([8, 32, 64]),
            "batch.global_batch_size": st.sampled_from([256, 512]),
        },
        optional=optional,
    )
    return st.builds(lambda one, other: {**one, **other}, fixed, recompute)


def runnable(document: dict[str, Any], target: str) -> Plan:
    """The plan, adapted to the target as ``--adapt`` would."""
    try:
        plan = plan_from(document)
        return plan if not launch.refusals(plan, target) else launch.adapt(plan, target)[0]
    except PlanError:
        assume(False)
        raise


def without_carried(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.startswith(MARK.strip()))


@pytest.mark.parametrize("target", FILES)
@given(data=st.data())
@settings(max_examples=20, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
def test_a_launch_file_reads_back_to_its_plan(
    target: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    plan = runnable(data.draw(documents(target)), target)
    written = launch.render(plan, target)
    folder = tmp_path_factory.mktemp("launch")
    read_back = []
    for name in FILES[target]:
        if name in written:
            (folder / name).write_text(written[name])
            read_back.append(read(target, folder / name))
    assert read_back
    for imported in read_back:
        assert imported.plan == plan


@cache
def megatron_script() -> str:
    plan = plan_from(
        {
            "model": "mixtral-8x7b",
            "hardware.gpu": "h100",
            "hardware.gpus": 64,
            "parallel.tp": 2,
            "parallel.ep": 8,
            "batch.global_batch_size": 512,
            "moe.load_imbalance": 1.5,
        }
    )
    return launch.render(plan, "megatron")["megatron.sh"]


@pytest.mark.parametrize(
    ("old", "new", "key", "value"),
    [
        ("--tensor-model-parallel-size 2", "--tensor-model-parallel-size 4", "parallel.tp", 4),
        ("--micro-batch-size 1", "--micro-batch-size 2", "batch.micro_batch_size", 2),
        ("--moe-router-topk 2", "--moe-router-topk 1", "moe.top_k", 1),
        ("--use-distributed-optimizer", "", "optimizer.sharding", 0),
        ("--sequence-parallel", "", "parallel.sp", False),
        ("SLURM_JOB_NUM_NODES:-8", "SLURM_JOB_NUM_NODES:-4", "hardware.gpus", 32),
        ("--global-batch-size 512", "--global-batch-size 512 --num-layers 16", "model.layers", 16),
    ],
)
def test_an_edited_script_is_read_as_it_now_stands(old: str, new: str, key: str, value: Any, tmp_path: Path) -> None:
    text = megatron_script()
    assert old in text
    path = tmp_path / "megatron.sh"
    path.write_text(text.replace(old, new))
    plan = read("megatron", path).plan
    found: Any = plan.to_mapping()
    for part in key.split("."):
        found = found[part]
    assert found == value
    assert plan.moe.load_imbalance == 1.5


@pytest.mark.parametrize("model", MODELS["megatron"])
def test_without_the_carried_line_the_flags_alone_name_the_model(model: str, tmp_path: Path) -> None:
    plan = plan_from({"model": model, "hardware.gpu": "h100", "hardware.gpus": 64, "batch.global_batch_size": 640})
    path = tmp_path / "megatron.sh"
    path.write_text(without_carried(launch.render(plan, "megatron")["megatron.sh"]))
    imported = read("megatron", path, gpu="h100")
    assert imported.plan.model == model
    assert imported.plan.architecture() == load_model(model)
    assert imported.plan.global_batch_size == 640


def test_a_model_without_a_name_comes_back_as_a_document(tmp_path: Path) -> None:
    document = {
        "architecture": "decoder",
        "hidden_size": 1024,
        "layers": 8,
        "vocabulary": 32000,
        "heads": 16,
        "kv_heads": 4,
        "gated": True,
        "ffn": 2816,
        "norm": "rmsnorm",
        "moe": {"experts": 16, "top_k": 2, "ffn": 512, "layers": [0, *[1] * 7], "shared_ffn": 512},
        "max_sequence_length": 4096,
    }
    plan = plan_from({"model": document, "hardware.gpu": "h100", "hardware.gpus": 8, "parallel.ep": 4})
    path = tmp_path / "megatron.sh"
    path.write_text(without_carried(launch.render(plan, "megatron")["megatron.sh"]))
    found = read("megatron", path, gpu="h100").plan
    assert isinstance(found.model, dict)
    assert found.architecture().components == plan.architecture().components


def test_deepspeed_configurations_of_others(tmp_path: Path) -> None:
    """The form of DeepSpeed's own documentation, with what Hugging Face's Trainer fills in."""
    path = tmp_path / "ds_config.json"
    path.write_text(
        """{"train_batch_size": "auto", "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 4,
        "bf16": {"enabled": "auto"}, "fp16": {"enabled": false}, "zero_optimization": {"stage": 3, "overlap_comm": true,
        "offload_param": {"device": "cpu"}, "offload_optimizer": {"device": "cpu"}, "reduce_bucket_size": 5e8,
        "contiguous_gradients": true}, "gradient_clipping": "auto", "steps_per_print": 10, "wall_clock": 1}"""
    )
    with pytest.raises(PlanError, match="--model"):
        read("deepspeed", path, gpu="h100", gpus=16)
    imported = read("deepspeed", path, gpu="h100", gpus=16, model="mixtral-8x7b")
    plan = imported.plan
    assert (plan.framework, plan.optimizer.sharding, plan.optimizer.offload_fraction) == ("deepspeed", 3, 1.0)
    assert (plan.global_batch_size, plan.micro_batches) == (2 * 4 * 16, 4)
    assert plan.precision == "bf16"
    assert any("leaves it to the trainer" in line for line in imported.assumptions)
    reasons = {item.name: item.reason for item in imported.unused}
    assert reasons["zero_optimization.offload_param"].startswith("cannot be represented")
    assert reasons["steps_per_print"] == "does not change memory or time"
    assert "ignores unknown" in reasons["wall_clock"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"train_batch_size": 8, "zero_optimization": {"stage": "auto"}}', "zero_optimization.stage is 'auto'"),
        ('{"train_batch_size": 9, "train_micro_batch_size_per_gpu": 1}', "train_batch_size 9 is not"),
        ('{"train_batch_size": 8, "tensor_parallel": {"autotp_size": 3}}', "does not divide 8 GPUs"),
        ('{"train_batch_size": 8, "tensor_parallel": {"autotp_size": "two"}}', "autotp_size is 'two'"),
        ('{"train_batch_size": 8, "moeplan": 3}', "is not a mapping"),
    ],
)
def test_deepspeed_configurations_that_cannot_run_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "ds_config.json"
    path.write_text(text)
    with pytest.raises(PlanError) as refused:
        read("deepspeed", path, gpu="h100", gpus=8, model="llama-3-8b")
    assert message in str(refused.value)


def test_torchtitan_configurations_of_others(tmp_path: Path) -> None:
    """torchtitan 0.2.2's own defaults hold where its TOML is silent (config/job_config.py)."""
    path = tmp_path / "llama3_8b.toml"
    path.write_text(
        """
[model]
name = "llama3"
flavor = "8B"
[optimizer]
name = "AdamW"
lr = 3e-4
[training]
local_batch_size = 1
seq_len = 8192
[parallelism]
data_parallel_shard_degree = -1
tensor_parallel_degree = 2
[activation_checkpoint]
mode = "full"
"""
    )
    imported = read("torchtitan", path, gpu="h100", gpus=16)
    plan = imported.plan
    assert load_model("llama-3-8b").components == plan.architecture().components
    assert (plan.framework, plan.optimizer.sharding, plan.parallel.tp, plan.dp) == ("fsdp2", 3, 2, 8)
    assert (plan.global_batch_size, plan.batch.sequence_length) == (8, 8192)
    assert plan.recompute.granularity == "full"
    assert [item.name for item in imported.unused] == ["optimizer.lr"]


def test_torchtitan_command_lines(tmp_path: Path) -> None:
    path = tmp_path / "run.sh"
    path.write_text(
        "torchrun --nproc_per_node=8 -m torchtitan.train --module deepseek_v3 --config deepseek_v3_16b "
        "--parallelism.expert_parallel_degree 8 --parallelism.tensor_parallel_degree=2 --training.seq_len 4096 "
        "--training.local_batch_size 4 --compile.enable\n"
    )
    plan = read("torchtitan", path, gpu="h100", gpus=32, model="deepseek-v2-lite").plan
    assert (plan.parallel.ep, plan.parallel.tp, plan.batch.micro_batch_size) == (8, 2, 4)


def test_bridge_scripts_of_others(tmp_path: Path) -> None:
    path = tmp_path / "run.sh"
    path.write_text(
        "torchrun --nnodes 2 --nproc-per-node 8 scripts/training/run_recipe.py "
        "--recipe qwen3_30b_a3b_pretrain_16gpu_h100_bf16_config --dataset mock "
        "'model.tensor_model_parallel_size=2' model.expert_model_parallel_size=8 train.global_batch_size=1024 "
        "logger.log_interval=1 model.my_key=3\n"
    )
    imported = read("megatron-bridge", path, gpu="h100")
    plan = imported.plan
    assert (plan.model, plan.hardware.gpus, plan.parallel.tp, plan.parallel.ep) == ("qwen3-30b-a3b", 16, 2, 8)
    assert plan.global_batch_size == 1024
    assert [item.name for item in imported.unused if item.matters] == ["model.my_key"]
    assert any("recipe" in line for line in imported.assumptions)


def test_accelerate_configurations_of_others(tmp_path: Path) -> None:
    path = tmp_path / "fsdp.yaml"
    path.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: FSDP\nmixed_precision: bf16\nnum_machines: 2\n"
        "num_processes: 16\nfsdp_config:\n  fsdp_version: 2\n  fsdp_reshard_after_forward: true\n"
        "  fsdp_activation_checkpointing: true\n  fsdp_offload_params: true\n"
    )
    imported = read("accelerate", path, gpu="h100", model="llama-3-8b")
    plan = imported.plan
    assert (plan.framework, plan.hardware.gpus, plan.optimizer.sharding) == ("fsdp2", 16, 3)
    assert (plan.precision, plan.recompute.granularity) == ("bf16", "full")
    assert [item.name for item in imported.unused if item.matters] == ["fsdp_config.fsdp_offload_params"]


@given(data=st.data())
@settings(max_examples=80)
def test_no_document_breaks_a_reader(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Odd values in the places that readers look at: a plan, or one line that says what is wrong."""
    odd = st.one_of(
        st.none(), st.booleans(), st.integers(-2, 9), st.floats(), st.text(max_size=4), st.just([1]), st.just({"a": 1})
    )
    framework = data.draw(st.sampled_from(["deepspeed", "accelerate", "torchtitan"]))
    document = json.loads(json.dumps(PLACES[framework]))
    for section, key in data.draw(st.lists(st.sampled_from(places(document)), max_size=4)):
        if key is None:
            document[section] = data.draw(odd)
        elif isinstance(document[section], dict):
            document[section][key] = data.draw(odd)
    path = tmp_path_factory.mktemp("odd") / "file.json"
    path.write_text(toml(document) if framework == "torchtitan" else json.dumps(document))
    try:
        read(framework, path, gpu="h100", gpus=8, model="mixtral-8x7b")
    except PlanError as error:
        assert "\n" not in str(error)


PLACES: dict[str, dict[str, Any]] = {
    "deepspeed": {
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "bf16": {"enabled": True, "bf16_optimizer_states": False},
        "fp16": {"enabled": False},
        "zero_optimization": {"stage": 3, "overlap_comm": True, "offload_optimizer": {"device": "cpu", "ratio": 0.5}},
        "tensor_parallel": {"autotp_size": 2, "tp_overlap_comm": False},
        "expert_parallel": {"enabled": True, "autoep_size": 2, "top_k": 2, "comm_backend": "comm"},
        "pipeline": {"stages": 1},
        "sequence_parallel_size": 1,
        "data_types": {"grad_accum_dtype": "fp32"},
        "optimizer": {"type": "AdamW"},
        "activation_checkpointing": {"cpu_checkpointing": True},
    },
    "accelerate": {
        "distributed_type": "FSDP",
        "num_processes": 8,
        "mixed_precision": "bf16",
        "fsdp_config": {"fsdp_version": 2, "fsdp_reshard_after_forward": True, "fsdp_activation_checkpointing": True},
        "parallelism_config": {"parallelism_config_tp_size": 2, "parallelism_config_cp_size": 1},
        "megatron_lm_config": {"megatron_lm_tp_degree": 2, "megatron_lm_num_micro_batches": 2},
    },
    "torchtitan": {
        "model": {"name": "llama3", "flavor": "8B", "converters": ["quantize.linear.float8"]},
        "training": {
            "local_batch_size": 1,
            "global_batch_size": 8,
            "seq_len": 4096,
            "mixed_precision_param": "bfloat16",
        },
        "parallelism": {
            "tensor_parallel_degree": 2,
            "pipeline_parallel_degree": 2,
            "pipeline_parallel_schedule": "1F1B",
            "pipeline_parallel_microbatch_size": 1,
            "pipeline_parallel_layers_per_stage": 17,
            "data_parallel_replicate_degree": 1,
            "data_parallel_shard_degree": 2,
            "fsdp_reshard_after_forward": "default",
        },
        "activation_checkpoint": {"mode": "full"},
        "compile": {"enable": True, "components": ["loss"]},
    },
}


def places(document: dict[str, Any]) -> list[tuple[str, str | None]]:
    """Every key and every key of a section."""
    found: list[tuple[str, str | None]] = [(name, None) for name in document]
    return found + [(name, key) for name, part in document.items() if isinstance(part, dict) for key in part]


def toml(document: dict[str, Any]) -> str:
    """Sections as TOML; values that it cannot hold are left out."""
    lines = []
    for name, section in document.items():
        if isinstance(section, dict):
            lines.append(f"[{name}]")
            lines += [
                f"{key} = {json.dumps(value)}"
                for key, value in section.items()
                if isinstance(value, bool | int | str | list) and "\x7f" not in str(value)
            ]
    return "\n".join(lines)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("text", ["", "{}", "[]", "a: 1", "\x00", "{" * 5000, "torchrun 'x", "[parallelism]\nx = 1"])
def test_other_files_are_refused_in_one_line(framework: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text(text)
    with pytest.raises(PlanError) as refused:
        read(framework, path, gpu="h100", gpus=8)
    assert re.fullmatch(r"[^\n]+", str(refused.value))


def test_unknown_frameworks_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="did you mean 'deepspeed'"):
        read("deep-speed", tmp_path / "x")
    with pytest.raises(PlanError, match="no such file"):
        read("megatron", tmp_path / "x")
