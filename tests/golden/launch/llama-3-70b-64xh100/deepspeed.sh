#!/usr/bin/env bash
# DeepSpeed launch script, written by moeplan 0.1.0
# model: llama-3-70b; hardware: 64 x h100-sxm-80gb, 8 per node
# plan: tp=4 pp=1 vpp=1 cp=1 ep=1 etp=1 dp=16 edp=64; micro batch 1, global batch 512, sequence 2048; bf16; adam with sharding 1; recompute none
# predicted: nothing (run 'moeplan estimate' on the plan)
# made by: moeplan launch llama-3-70b-64xh100.yaml --to deepspeed --adapt
# note: adapted: framework: megatron -> deepspeed (predictions follow the framework that runs)
# note: adapted: parallel.pp: 2 -> 1 (DeepSpeed's pipeline engine runs neither AutoTP nor AutoEP)
# note: the training script builds llama-3-70b itself and cuts data into sequences of 2048 tokens
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
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True

: "${TRAIN_SCRIPT:?set TRAIN_SCRIPT to a Python script that calls deepspeed.initialize}"
CONFIGURATION="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/deepspeed.json"
exec torchrun \
    --nnodes "$NNODES" \
    --nproc-per-node "$GPUS_PER_NODE" \
    --node-rank "$NODE_RANK" \
    --master-addr "$MASTER_ADDR" \
    --master-port "$MASTER_PORT" \
    "$TRAIN_SCRIPT" --deepspeed --deepspeed_config "$CONFIGURATION" "$@"
