"""Let DeepSpeed's, torchtitan's and accelerate's own code judge configuration files, without a GPU.

Runs in the environment that ``build.sh`` makes, with the framework's name as its argument. Reads one JSON object per
line and writes one: ``accepted`` and ``error``, and what the framework resolved.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path


def judge_deepspeed(case: dict) -> dict:
    """``document``: the configuration; ``world_size``; ``data_parallel``: what DeepSpeed would divide the batch by."""
    import deepspeed.runtime.config as config
    from deepspeed.module_inject.auto_ep_config import validate_autoep_config

    # With AutoTP or a pipeline DeepSpeed asks the process groups that it has built; without, it divides by Ulysses.
    sequence = case["document"].get("sequence_parallel_size", 1)
    config.dist.get_world_size = lambda group=None: case["data_parallel"] * sequence
    config.dist.get_rank = lambda group=None: 0
    config.dist.is_initialized = lambda: True
    known = {
        value
        for module in _deepspeed_constants()
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, str)
    } | {"moeplan", "sequence_parallel_size", "tensor_parallel", "pipeline"}
    unknown = [key for key in case["document"] if key not in known]
    if unknown:
        raise ValueError(f"no such top-level keys: {unknown}")
    read = config.DeepSpeedConfig(case["document"])
    tensor = read.tensor_parallel_config.autotp_size
    validate_autoep_config(
        read.expert_parallel_config,
        case["world_size"],
        case["document"].get("pipeline", {}).get("stages", 1),
        tensor,
        sequence,
        zero_stage=int(read.zero_optimization_stage),
        zero_offload_optimizer=read.zero_config.offload_optimizer is not None,
    )
    return {"stage": int(read.zero_optimization_stage), "steps": read.gradient_accumulation_steps}


def _deepspeed_constants() -> list:
    import deepspeed.runtime.activation_checkpointing.config as checkpointing
    import deepspeed.runtime.config as config
    import deepspeed.runtime.constants as constants
    import deepspeed.runtime.precision_config as precision
    import deepspeed.runtime.zero.config as zero

    return [constants, config, checkpointing, precision, zero]


def judge_torchtitan_toml(case: dict) -> dict:
    """``text``: the TOML; ``world_size``."""
    from torchtitan.config import ConfigManager
    from torchtitan.distributed import ParallelDims

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "configuration.toml"
        path.write_text(case["text"])
        read = ConfigManager().parse_args(["--job.config_file", str(path)])
    parallel = read.parallelism
    dims = ParallelDims(
        dp_replicate=parallel.data_parallel_replicate_degree,
        dp_shard=parallel.data_parallel_shard_degree,
        cp=parallel.context_parallel_degree,
        tp=parallel.tensor_parallel_degree,
        pp=parallel.pipeline_parallel_degree,
        ep=parallel.expert_parallel_degree,
        etp=parallel.expert_tensor_parallel_degree,
        world_size=case["world_size"],
    )
    from torchtitan.protocols.train_spec import get_train_spec

    flavor = get_train_spec(read.model.name).model_args[read.model.flavor]
    return {"dp_shard": dims.dp_shard, "layers": flavor.n_layers, "parameters": _count(read.model.name, flavor)}


def _count(name: str, flavor) -> int | None:
    """Parameters of torchtitan's own model, built without memory; None where it cannot be built here."""
    import torch
    from torchtitan.protocols.train_spec import get_train_spec

    if not hasattr(flavor, "moe_impl"):
        flavor.moe_impl = "standard"  # what update_from_config would set
    try:
        with torch.device("meta"):
            model = get_train_spec(name).model_cls(flavor)
    except (AssertionError, ImportError, RuntimeError, NotImplementedError):
        return None
    return sum(parameter.numel() for parameter in model.parameters())


def judge_torchtitan_python(case: dict) -> dict:
    """``text``: the Python configuration; ``world_size``."""
    import importlib

    from torchtitan.config import ConfigManager

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "torchtitan_config.py").write_text(case["text"])
        sys.path.insert(0, folder)
        os.environ["WORLD_SIZE"] = str(case["world_size"])
        try:
            importlib.invalidate_caches()
            sys.modules.pop("torchtitan_config", None)
            read = ConfigManager().parse_args(["--module", "torchtitan_config", "--config", "moeplan"])
        finally:
            sys.path.remove(folder)
    from torchtitan.distributed import ParallelDims

    parallel = read.parallelism
    ParallelDims(
        dp_replicate=parallel.data_parallel_replicate_degree,
        dp_shard=parallel.data_parallel_shard_degree,
        cp=parallel.context_parallel_degree,
        tp=parallel.tensor_parallel_degree,
        pp=parallel.pipeline_parallel_degree,
        ep=parallel.expert_parallel_degree,
        world_size=case["world_size"],
    )
    parallel_ranks = parallel.data_parallel_shard_degree * parallel.context_parallel_degree
    if parallel_ranks * parallel.tensor_parallel_degree % parallel.expert_parallel_degree:
        raise ValueError("dp_shard * cp * tp must be a multiple of ep")
    return {"flavor": read.model_spec.flavor, "batch": read.training.global_batch_size}


def judge_accelerate(case: dict) -> dict:
    """``text``: the YAML; ``environment``: what the launcher makes of it goes to the plugins."""
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "configuration.yaml"
        path.write_text(case["text"])
        load_config_from_file(str(path))
        parser = launch_command_parser()
        args = parser.parse_args(["--config_file", str(path), "--num_cpu_threads_per_process", "1", "train.py"])
        args, _, _ = _validate_launch_command(args)
        made = prepare_multi_gpu_env(args)
    # The launched process builds its plugins from this environment.
    os.environ.update({key: str(value) for key, value in made.items()})
    from accelerate.utils import FullyShardedDataParallelPlugin, MegatronLMPlugin

    if args.use_fsdp:
        plugin = FullyShardedDataParallelPlugin()
        return {"plugin": type(plugin).__name__, "version": plugin.fsdp_version, "processes": args.num_processes}
    if not args.use_megatron_lm:
        return {"plugin": "none", "processes": args.num_processes}
    plugin = MegatronLMPlugin()
    return {"plugin": type(plugin).__name__, "tp": plugin.tp_degree, "pp": plugin.pp_degree}


# Fields that Megatron-Bridge's own classes add to megatron-core's (its training/config.py, comm_overlap.py and
# models/gpt_provider.py): these cannot be looked up here.
_BRIDGE_OWN = {
    "train": {"micro_batch_size", "global_batch_size"},
    "dataset": {"seq_length"},
    "model": {"seq_length", "use_te_rng_tracker"},
    "checkpoint": {"ckpt_format"},
    "dist": {"use_megatron_fsdp"},
    "rng": {"te_rng_tracker"},
    "comm_overlap": {"tp_comm_overlap", "overlap_moe_expert_parallel_comm", "delay_wgrad_compute"},
}


def judge_bridge(case: dict) -> dict:
    """``overrides``: key=value words. Sections that are megatron-core's own classes have the fields they name."""
    import dataclasses
    import typing

    typing.override = lambda function: function  # a name of Python 3.12
    from megatron.core.distributed import DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig
    from megatron.core.transformer import MLATransformerConfig

    classes = {"model": MLATransformerConfig, "ddp": DistributedDataParallelConfig, "optimizer": OptimizerConfig}
    looked_up = 0
    for word in case["overrides"]:
        name, _, value = word.partition("=")
        section, _, key = name.partition(".")
        if name == "mixed_precision" or key in _BRIDGE_OWN.get(section, ()):
            continue
        fields = {field.name: field for field in dataclasses.fields(classes[section])}
        if key not in fields:
            raise ValueError(f"{classes[section].__name__} has no field {key}")
        kind = str(fields[key].type)
        if kind in ("<class 'bool'>", "bool") and value not in ("true", "false"):
            raise ValueError(f"{name} is a truth value, not {value}")
        if kind in ("<class 'int'>", "int"):
            int(value)
        looked_up += 1
    return {"looked_up": looked_up}


JUDGES = {
    "megatron-bridge": judge_bridge,
    "deepspeed": judge_deepspeed,
    "torchtitan-toml": judge_torchtitan_toml,
    "torchtitan-python": judge_torchtitan_python,
    "accelerate": judge_accelerate,
}

if __name__ == "__main__":
    # The frameworks print; the answers go out on a stream of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if len(sys.argv) > 2:
        sys.path.insert(0, sys.argv[2])
    for line in sys.stdin:
        result: dict = {"accepted": False, "error": ""}
        before = dict(os.environ)
        try:
            result |= JUDGES[sys.argv[1]](json.loads(line))
            result["accepted"] = True
        except (Exception, SystemExit) as error:
            result["error"] = f"{type(error).__name__}: {error}"
        os.environ.clear()
        os.environ.update(before)
        print(json.dumps(result), file=answers, flush=True)
