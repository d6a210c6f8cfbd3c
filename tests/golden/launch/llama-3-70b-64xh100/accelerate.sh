#!/usr/bin/env bash
# accelerate launch script (Megatron-LM plugin), written by moeplan 0.1.0
# model: llama-3-70b; hardware: 64 x h100-sxm-80gb, 8 per node
# plan: tp=4 pp=2 vpp=1 cp=1 ep=1 etp=1 dp=8 edp=32; micro batch 1, global batch 512, sequence 2048; bf16; adam with sharding 1; recompute selective
# predicted: nothing (run 'moeplan estimate' on the plan)
# made by: moeplan launch llama-3-70b-64xh100.yaml --to accelerate --adapt
# note: adapted: recompute.granularity: none -> selective (accelerate's Megatron-LM plugin recomputes whole layers or the attention core)
# note: adapted: recompute.modules: () -> ['core_attn'] (accelerate's Megatron-LM plugin recomputes whole layers or the attention core)
# note: the training script builds llama-3-70b, loads 1 sequences of 2048 tokens per pass and accumulates over 64 passes
set -euo pipefail

# Where it runs: from Slurm, from the environment, or as planned.
NNODES="${NNODES:-${SLURM_JOB_NUM_NODES:-8}}"
GPUS_PER_NODE="${GPUS_PER_NODE:-8}"
NODE_RANK="${NODE_RANK:-${SLURM_NODEID:-0}}"
MASTER_PORT="${MASTER_PORT:-29500}"
PLANNED_GPUS=64
if [ "$((NNODES * GPUS_PER_NODE))" -ne "$PLANNED_GPUS" ]; then
    echo "planned for $PLANNED_GPUS GPUs, started on $NNODES nodes of $GPUS_PER_NODE: plan again" >&2
    exit 2
fi
if [ "$NNODES" -gt 1 ] && [ -z "${MASTER_ADDR:-}" ]; then
    echo "set MASTER_ADDR to the first node's name and NODE_RANK on every node" >&2
    exit 2
fi
MASTER_ADDR="${MASTER_ADDR:-127.0.0.1}"

# What the configuration file has no key for.
export CUDA_DEVICE_MAX_CONNECTIONS=1
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
export TORCH_NCCL_AVOID_RECORD_STREAMS=1
export NCCL_NVLS_ENABLE=0

: "${TRAIN_SCRIPT:?set TRAIN_SCRIPT to a Python script that uses accelerate}"
CONFIGURATION="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/accelerate.yaml"
exec accelerate launch \
    --config_file "$CONFIGURATION" \
    --machine_rank "$NODE_RANK" \
    --main_process_ip "$MASTER_ADDR" \
    --main_process_port "$MASTER_PORT" \
    "$TRAIN_SCRIPT" "$@"
