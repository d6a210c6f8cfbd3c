# torchtitan >= 0.3 configuration, written by moeplan 0.1.0
# model: qwen3-30b-a3b; hardware: 16 x h100-sxm-80gb, 8 per node
# plan: tp=1 pp=1 vpp=1 cp=1 ep=16 etp=1 dp=16 edp=1; micro batch 1, global batch 512, sequence 4096; bf16; adam with sharding 3; recompute none
# predicted: nothing (run 'moeplan estimate' on the plan)
# made by: moeplan launch qwen3-30b-a3b-16xh100.yaml --to torchtitan --adapt
# note: adapted: framework: megatron -> fsdp2 (predictions follow the framework that runs)
# note: adapted: optimizer.sharding: 1 -> 3 (FSDP2 shards parameters, gradients and optimizer state together: there is no stage 1)
# note: optimizer and data are not part of the plan: edit them, or override them behind the script's name
# moeplan-carried: {"plan": {"model": "qwen3-30b-a3b", "hardware.gpu": "h100-sxm-80gb", "hardware.gpus": 16}, "open": {}}

import os

from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss
from torchtitan.models.common.config_utils import decoder_vocab_size
from torchtitan.models.qwen3 import model_registry
from torchtitan.models.qwen3.config_registry import qwen3_30b_a3b
from torchtitan.trainer import Trainer

PLANNED_GPUS = 16


def moeplan() -> Trainer.Config:
    """The planned configuration; select it with --module torchtitan_config --config moeplan."""
    world_size = int(os.environ.get("WORLD_SIZE", PLANNED_GPUS))
    if world_size != PLANNED_GPUS:
        raise SystemExit(f"planned for {PLANNED_GPUS} GPUs, started on {world_size}: plan again")
    config = qwen3_30b_a3b()
    config.model_spec = model_registry("30B-A3B")
    config.loss = ChunkedLossWrapper.Config(
        loss_fn=CrossEntropyLoss.Config(global_vocab_size=decoder_vocab_size(config.model_spec))
    )
    config.activation_checkpoint = None
    config.training.local_batch_size = 1
    config.training.global_batch_size = 512
    config.training.seq_len = 4096
    config.training.mixed_precision_param = "bfloat16"
    config.training.mixed_precision_reduce = "float32"
    config.training.disable_cuda_graphs = True
    config.parallelism.data_parallel_replicate_degree = 1
    config.parallelism.data_parallel_shard_degree = 16
    config.parallelism.fsdp_reshard_after_forward = "always"
    config.parallelism.tensor_parallel_degree = 1
    config.parallelism.context_parallel_degree = 1
    config.parallelism.pipeline_parallel_degree = 1
    config.parallelism.expert_parallel_degree = 16
    config.compile.enable = False
    config.compile.enable_async_tensor_parallel = False
    return config
