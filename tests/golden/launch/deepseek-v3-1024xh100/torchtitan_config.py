# torchtitan >= 0.3 configuration, written by moeplan 0.1.0
# model: deepseek-v3; hardware: 1024 x h100-sxm-80gb, 8 per node
# plan: tp=2 pp=1 vpp=1 cp=1 ep=64 etp=1 dp=512 edp=16; micro batch 1, global batch 16384, sequence 4096; bf16; adam with sharding 3; recompute full
# predicted: nothing (run 'moeplan estimate' on the plan)
# made by: moeplan launch deepseek-v3-1024xh100.yaml --to torchtitan --adapt
# note: adapted: framework: megatron -> fsdp2 (predictions follow the framework that runs)
# note: adapted: mtp_layers: None -> 0 (torchtitan's configurations of the model train no multi-token prediction)
# note: adapted: optimizer.sharding: 1 -> 3 (FSDP2 shards parameters, gradients and optimizer state together: there is no stage 1)
# note: adapted: recompute.granularity: selective -> full (torchtitan recomputes operators or layers, not modules)
# note: adapted: recompute.modules: ('mla_up_proj', 'mlp') -> [] (torchtitan recomputes operators or layers, not modules)
# note: adapted: parallel.pipeline_layout: Et|(tt|)*30mL -> None (torchtitan reads no Megatron layouts)
# note: adapted: pp: 8 -> 1 (neither 61 layers nor 63 (embedding and loss counted) divide over pp*vpp = 32)
# note: optimizer and data are not part of the plan: edit them, or override them behind the script's name
# moeplan-carried: {"plan": {"model": "deepseek-v3", "hardware.gpu": "h100-sxm-80gb", "hardware.gpus": 1024, "mtp_layers": 0}, "open": {"parallel.sp": true}}

import os

from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss
from torchtitan.distributed.activation_checkpoint import FullAC
from torchtitan.models.common.config_utils import decoder_vocab_size
from torchtitan.models.deepseek_v3 import model_registry
from torchtitan.models.deepseek_v3.config_registry import deepseek_v3_16b
from torchtitan.trainer import Trainer

PLANNED_GPUS = 1024


def moeplan() -> Trainer.Config:
    """The planned configuration; select it with --module torchtitan_config --config moeplan."""
    world_size = int(os.environ.get("WORLD_SIZE", PLANNED_GPUS))
    if world_size != PLANNED_GPUS:
        raise SystemExit(f"planned for {PLANNED_GPUS} GPUs, started on {world_size}: plan again")
    config = deepseek_v3_16b()
    config.model_spec = model_registry('671B', moe_comm_backend='deepep')
    config.loss = ChunkedLossWrapper.Config(
        loss_fn=CrossEntropyLoss.Config(global_vocab_size=decoder_vocab_size(config.model_spec))
    )
    config.activation_checkpoint = FullAC.Config()
    config.training.local_batch_size = 1
    config.training.global_batch_size = 16384
    config.training.seq_len = 4096
    config.training.mixed_precision_param = 'bfloat16'
    config.training.mixed_precision_reduce = 'float32'
    config.training.disable_cuda_graphs = True
    config.parallelism.data_parallel_replicate_degree = 1
    config.parallelism.data_parallel_shard_degree = 512
    config.parallelism.fsdp_reshard_after_forward = 'always'
    config.parallelism.tensor_parallel_degree = 2
    config.parallelism.context_parallel_degree = 1
    config.parallelism.pipeline_parallel_degree = 1
    config.parallelism.expert_parallel_degree = 64
    config.parallelism.enable_sequence_parallel = True
    config.compile.enable = False
    config.compile.enable_async_tensor_parallel = False
    return config
