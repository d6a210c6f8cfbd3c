"""Let megatron-core's own code judge Megatron-LM command lines, many in one process, without a GPU.

Runs in the environment that ``build.sh`` makes. Reads one JSON object per line: ``arguments`` (what follows the
training script), ``world_size``, ``capability`` (major compute capability), ``environment``. Writes one per line:
``accepted``, ``stage`` (the last one reached), ``error``, ``values`` (a few resolved arguments) and ``parameters``
(Megatron's own count of the model that the arguments describe).

Stages: the parser, ``validate_args``, ``TransformerConfig``, optimizer and data-parallel configurations, and the
process groups of the whole world on torch's fake backend. Transformer Engine is not installed: what asks for its
version or its optimizer's signature gets the answer of a release that has everything.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import sys
import types
import typing
import warnings

TRANSFORMER_ENGINE = "2.14.0"


def prepare() -> None:
    """Import megatron-core with stand-ins for the GPU and for Transformer Engine."""
    warnings.simplefilter("ignore")
    typing.override = lambda function: function  # a name of Python 3.12
    sys.path.insert(0, sys.argv[1])

    import megatron.core.models.common.embeddings.rope_utils as rope
    import megatron.core.optimizer.optimizer_config as optimizer
    import megatron.core.transformer.moe.moe_utils as moe
    import megatron.core.transformer.transformer_config as transformer
    import megatron.core.utils as utils
    import megatron.training.arguments as arguments
    from packaging.version import Version

    ours = Version(TRANSFORMER_ENGINE)

    def is_te_min_version(version: str, check_equality: bool = True) -> bool:
        return ours >= Version(version) if check_equality else ours > Version(version)

    for module in (utils, transformer, optimizer, arguments):
        if hasattr(module, "is_te_min_version"):
            module.is_te_min_version = is_te_min_version
        if hasattr(module, "get_te_version"):
            module.get_te_version = lambda: ours
    rope.fused_apply_rotary_pos_emb = rope.fused_apply_rotary_pos_emb or (lambda *a, **k: None)
    for name in dir(moe):
        if name.startswith("fused_") and getattr(moe, name) is None:
            setattr(moe, name, lambda *a, **k: None)
    engine = types.ModuleType("transformer_engine")
    pytorch = types.ModuleType("transformer_engine.pytorch")
    optimizers = types.ModuleType("transformer_engine.pytorch.optimizers")

    class FusedAdam:
        def __init__(self, params, master_weight_dtype, exp_avg_dtype, exp_avg_sq_dtype, use_decoupled_grad): ...

    optimizers.FusedAdam = FusedAdam
    sys.modules |= {m.__name__: m for m in (engine, pytorch, optimizers)}


def judge(case: dict) -> dict:
    """Run one command line through all stages."""
    import torch

    capability = case["capability"]
    torch.cuda.get_device_capability = lambda *a, **k: (capability, 0)
    properties = types.SimpleNamespace(major=capability, minor=0, name="fake", total_memory=80 << 30)
    torch.cuda.get_device_properties = lambda *a, **k: properties
    import megatron.training.arguments as arguments

    if hasattr(arguments, "get_device_arch_version"):
        arguments.get_device_arch_version = lambda: capability
    for name in (
        "CUDA_DEVICE_MAX_CONNECTIONS",
        "NCCL_GRAPH_REGISTER",
        "NVTE_CPU_OFFLOAD_V1",
        "PYTORCH_CUDA_ALLOC_CONF",
    ):
        os.environ.pop(name, None)
    os.environ.update(case["environment"])
    os.environ["WORLD_SIZE"], os.environ["RANK"] = str(case["world_size"]), "0"
    result = {"accepted": False, "stage": "parser", "error": ""}
    said = io.StringIO()
    sys.argv = ["pretrain_gpt.py", *case["arguments"]]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            _stages(arguments, case, result)
        result["accepted"] = True
    except (Exception, SystemExit) as error:
        told = [line for line in said.getvalue().splitlines() if "error" in line][-1:]
        result["error"] = f"{type(error).__name__}: {error} {' '.join(told)}"
    finally:
        _tear_down()
    return result


def _stages(arguments, case: dict, result: dict) -> None:
    args = arguments.parse_args()
    result["stage"] = "validate_args"
    arguments.validate_args(args, {"tokenizer_type": "GPT2BPETokenizer"})
    result["values"] = {
        name: str(getattr(args, name))
        for name in ("data_parallel_size", "virtual_pipeline_model_parallel_size", "expert_tensor_parallel_size")
    }
    result["stage"] = "TransformerConfig"
    from megatron.training.argument_utils import core_transformer_config_from_args

    config = core_transformer_config_from_args(args)
    result["values"]["config"] = type(config).__name__
    result["stage"] = "optimizer and data-parallel configuration"
    from megatron.core.distributed import DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig

    OptimizerConfig(**_fields(OptimizerConfig, args))
    DistributedDataParallelConfig(**_fields(DistributedDataParallelConfig, args))
    result["stage"] = "process groups"
    _process_groups(args, case["world_size"])
    result["stage"] = "all"
    result["parameters"] = _count(args)


def _fields(cls, args) -> dict:
    return {field.name: getattr(args, field.name) for field in dataclasses.fields(cls) if hasattr(args, field.name)}


def _process_groups(args, world_size: int) -> None:
    import torch.distributed as dist
    from megatron.core import parallel_state
    from megatron.core.num_microbatches_calculator import init_num_microbatches_calculator
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group(backend="fake", store=FakeStore(), rank=0, world_size=world_size)
    parallel_state.initialize_model_parallel(
        args.tensor_model_parallel_size,
        args.pipeline_model_parallel_size,
        args.virtual_pipeline_model_parallel_size,
        context_parallel_size=args.context_parallel_size,
        expert_model_parallel_size=args.expert_model_parallel_size,
        expert_tensor_parallel_size=args.expert_tensor_parallel_size,
        num_distributed_optimizer_instances=args.num_distributed_optimizer_instances,
        create_gloo_process_groups=False,
    )
    init_num_microbatches_calculator(0, None, args.global_batch_size, args.micro_batch_size, args.data_parallel_size)


def _count(args) -> float | None:
    """Parameters of the model by Megatron's own formula (billions printed; here whole), or None where it has none."""
    from megatron.training.theoretical_memory_usage import compute_weight_and_optimizer_memory

    args.padded_vocab_size = args.vocab_size
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        try:
            compute_weight_and_optimizer_memory(args, verbose=True)
        except (AttributeError, TypeError, KeyError):
            return None
    line = next((line for line in said.getvalue().splitlines() if "Total number of parameters" in line), None)
    return float(line.rsplit(":", 1)[1]) * 1e9 if line else None


def _tear_down() -> None:
    import torch.distributed as dist
    from megatron.core import parallel_state
    from megatron.core.num_microbatches_calculator import unset_num_microbatches_calculator

    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()
    unset_num_microbatches_calculator()


if __name__ == "__main__":
    # Megatron prints; the answers go out on a stream of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    prepare()
    for line in sys.stdin:
        print(json.dumps(judge(json.loads(line))), file=answers, flush=True)
