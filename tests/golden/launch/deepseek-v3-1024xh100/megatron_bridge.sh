#!/usr/bin/env bash
# Megatron-Bridge launch script, written by moeplan 0.1.0
# model: deepseek-v3; hardware: 1024 x h100-sxm-80gb, 8 per node
# plan: tp=2 pp=8 vpp=4 cp=1 ep=64 etp=1 dp=64 edp=2; micro batch 1, global batch 16384, sequence 4096; bf16; adam with sharding 1; recompute selective
# predicted: nothing (run 'moeplan estimate' on the plan)
# made by: moeplan launch deepseek-v3-1024xh100.yaml --to megatron-bridge --adapt
# note: recipe names are Megatron-Bridge 0.6's; data, learning rate and steps are the recipe's own
# moeplan-carried: {"plan": {"model": "deepseek-v3", "hardware.gpu": "h100-sxm-80gb", "hardware.gpus": 1024, "parallel.vpp": 4}, "open": {"parallel.sp": true, "moe.top_k": 8, "mtp_layers": 1}}
set -euo pipefail

# Where it runs: from Slurm, from the environment, or as planned.
NNODES="${NNODES:-${SLURM_JOB_NUM_NODES:-128}}"
GPUS_PER_NODE="${GPUS_PER_NODE:-8}"
NODE_RANK="${NODE_RANK:-${SLURM_NODEID:-0}}"
MASTER_PORT="${MASTER_PORT:-29500}"
PLANNED_GPUS=1024
if [ "$((NNODES * GPUS_PER_NODE))" -ne "$PLANNED_GPUS" ]; then
    echo "planned for $PLANNED_GPUS GPUs, started on $NNODES nodes of $GPUS_PER_NODE: plan again" >&2
    exit 2
fi
if [ "$NNODES" -gt 1 ] && [ -z "${MASTER_ADDR:-}" ]; then
    echo "set MASTER_ADDR to the first node's name and NODE_RANK on every node" >&2
    exit 2
fi
MASTER_ADDR="${MASTER_ADDR:-127.0.0.1}"

# What this configuration needs of its environment.
export CUDA_DEVICE_MAX_CONNECTIONS=1  # tensor and context parallelism rely on launch order
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True  # less fragmentation
export TORCH_NCCL_AVOID_RECORD_STREAMS=1  # frees communication buffers early
export NCCL_NVLS_ENABLE=0  # NVLink SHARP would reserve memory

RECIPE=deepseek_v3_pretrain_1024gpu_h100_bf16_config
OVERRIDES=(
    train.micro_batch_size=1
    train.global_batch_size=16384
    model.seq_length=4096
    dataset.seq_length=4096
    model.tensor_model_parallel_size=2
    model.pipeline_model_parallel_size=8
    model.context_parallel_size=1
    model.expert_model_parallel_size=64
    model.expert_tensor_parallel_size=1
    model.sequence_parallel=true
    model.virtual_pipeline_model_parallel_size=null
    'model.pipeline_model_parallel_layout="Et|(tt|)*30mL"'
    model.account_for_embedding_in_pipeline_split=false
    model.account_for_loss_in_pipeline_split=false
    model.mtp_num_layers=1
    mixed_precision=bf16_mixed
    optimizer.optimizer=adam
    ddp.use_distributed_optimizer=true
    optimizer.use_distributed_optimizer=true
    ddp.grad_reduce_in_fp32=true
    ddp.overlap_grad_reduce=true
    ddp.overlap_param_gather=true
    optimizer.use_precision_aware_optimizer=false
    optimizer.exp_avg_dtype=torch.float32
    optimizer.exp_avg_sq_dtype=torch.float32
    model.recompute_granularity=selective
    model.recompute_method=null
    model.recompute_num_layers=null
    'model.recompute_modules=[mla_up_proj,mlp]'
    model.attention_backend=auto
    model.cross_entropy_loss_fusion=true
    model.gradient_accumulation_fusion=true
    model.cuda_graph_impl=none
    comm_overlap.tp_comm_overlap=false
    model.cross_entropy_fusion_impl=te
    model.moe_router_topk=8
    model.moe_token_dispatcher_type=flex
    model.moe_grouped_gemm=true
    model.moe_permute_fusion=true
    model.moe_expert_capacity_factor=null
    model.moe_router_padding_for_quantization=false
    comm_overlap.overlap_moe_expert_parallel_comm=false
    comm_overlap.delay_wgrad_compute=false
    model.moe_flex_dispatcher_backend=deepep
    model.moe_shared_expert_overlap=false
)

: "${BRIDGE_PATH:?set BRIDGE_PATH to a checkout of Megatron-Bridge}"
exec torchrun \
    --nnodes "$NNODES" \
    --nproc-per-node "$GPUS_PER_NODE" \
    --node-rank "$NODE_RANK" \
    --master-addr "$MASTER_ADDR" \
    --master-port "$MASTER_PORT" \
    "$BRIDGE_PATH/scripts/training/run_recipe.py" \
    --recipe "$RECIPE" --dataset "${DATASET:-mock}" "${OVERRIDES[@]}" "$@"
