# torchtitan >= 0.3 configuration, written by moeplan 0.1.0
# model: deepseek-v3; hardware: 1024 x h100-sxm-80gb, 8 per node
# plan: tp=2 pp=8 vpp=4 cp=1 ep=64 etp=1 dp=64 edp=2; micro batch 1, global batch 16384, sequence 4096; bf16; adam with sharding 3; recompute full
# predicted: nothing (run 'moeplan estimate' on the plan)
# made by: moeplan launch deepseek-v3-1024xh100.yaml --to torchtitan --adapt
# note: adapted: framework: megatron -> fsdp2 (predictions follow the framework that runs)
# note: adapted: mtp_layers: None -> 0 (torchtitan's configurations of the model train no multi-token prediction)
# note: adapted: parallel.pipeline_layout: Et|(tt|)*30mL -> Et|(tt|)*30L (torchtitan's configurations of the model train no multi-token prediction)
# note: adapted: optimizer.sharding: 1 -> 3 (FSDP2 shards parameters, gradients and optimizer state together: there is no stage 1)
# note: adapted: recompute.granularity: selective -> full (torchtitan recomputes operators or layers, not modules)
# note: adapted: recompute.modules: ('mla_up_proj', 'mlp') -> [] (torchtitan recomputes operators or layers, not modules)
# note: optimizer and data are not part of the plan: edit them, or override them behind the script's name
# moeplan-carried: {"plan": {"model": "deepseek-v3", "hardware.gpu": "h100-sxm-80gb", "hardware.gpus": 1024, "parallel.vpp": 4, "parallel.pipeline_layout": "Et|(tt|)*30L", "mtp_layers": 0}, "open": {"parallel.sp": true}}

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
    config.model_spec = model_registry("671B", moe_comm_backend="deepep")
    config.loss = ChunkedLossWrapper.Config(
        loss_fn=CrossEntropyLoss.Config(global_vocab_size=decoder_vocab_size(config.model_spec))
    )
    config.activation_checkpoint = FullAC.Config()
    config.training.local_batch_size = 256
    config.training.global_batch_size = 16384
    config.training.seq_len = 4096
    config.training.mixed_precision_param = "bfloat16"
    config.training.mixed_precision_reduce = "float32"
    config.training.disable_cuda_graphs = True
    config.parallelism.data_parallel_replicate_degree = 1
    config.parallelism.data_parallel_shard_degree = 64
    config.parallelism.fsdp_reshard_after_forward = "always"
    config.parallelism.tensor_parallel_degree = 2
    config.parallelism.context_parallel_degree = 1
    config.parallelism.pipeline_parallel_degree = 8
    config.parallelism.expert_parallel_degree = 64
    config.parallelism.pipeline_parallel_schedule = "Interleaved1F1B"
    config.parallelism.pipeline_parallel_microbatch_size = 1
    config.parallelism.module_fqns_per_model_part = [
        ["tok_embeddings", "layers.0"],
        ["layers.1", "layers.2"],
        ["layers.3", "layers.4"],
        ["layers.5", "layers.6"],
        ["layers.7", "layers.8"],
        ["layers.9", "layers.10"],
        ["layers.11", "layers.12"],
        ["layers.13", "layers.14"],
        ["layers.15", "layers.16"],
        ["layers.17", "layers.18"],
        ["layers.19", "layers.20"],
        ["layers.21", "layers.22"],
        ["layers.23", "layers.24"],
        ["layers.25", "layers.26"],
        ["layers.27", "layers.28"],
        ["layers.29", "layers.30"],
        ["layers.31", "layers.32"],
        ["layers.33", "layers.34"],
        ["layers.35", "layers.36"],
        ["layers.37", "layers.38"],
        ["layers.39", "layers.40"],
        ["layers.41", "layers.42"],
        ["layers.43", "layers.44"],
        ["layers.45", "layers.46"],
        ["layers.47", "layers.48"],
        ["layers.49", "layers.50"],
        ["layers.51", "layers.52"],
        ["layers.53", "layers.54"],
        ["layers.55", "layers.56"],
        ["layers.57", "layers.58"],
        ["layers.59", "layers.60"],
        ["norm", "lm_head"],
    ]
    config.parallelism.enable_sequence_parallel = True
    config.compile.enable = False
    config.compile.enable_async_tensor_parallel = False
    return config
