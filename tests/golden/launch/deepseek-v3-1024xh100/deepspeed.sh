#!/usr/bin/env bash
# DeepSpeed launch script, written by moeplan 0.1.0
# model: deepseek-v3; hardware: 1024 x h100-sxm-80gb, 8 per node
# plan: tp=2 pp=1 vpp=1 cp=1 ep=64 etp=1 dp=512 edp=16; micro batch 1, global batch 16384, sequence 4096; bf16; adam with sharding 1; recompute full
# predicted: nothing (run 'moeplan estimate' on the plan)
# made by: moeplan launch deepseek-v3-1024xh100.yaml --to deepspeed --adapt
# note: adapted: framework: megatron -> deepspeed (predictions follow the framework that runs)
# note: adapted: parallel.pp: 8 -> 1 (DeepSpeed's pipeline engine runs neither AutoTP nor AutoEP)
# note: adapted: parallel.vpp: 4 -> 1 (DeepSpeed's pipeline engine runs neither AutoTP nor AutoEP)
# note: adapted: parallel.pipeline_layout: Et|(tt|)*30mL -> None (DeepSpeed's pipeline engine runs neither AutoTP nor AutoEP)
# note: adapted: recompute.granularity: selective -> full (DeepSpeed recomputes whole layers or none)
# note: adapted: recompute.modules: ('mla_up_proj', 'mlp') -> [] (DeepSpeed recomputes whole layers or none)
# note: adapted: dispatcher: deepep -> alltoall (deepspeed has no deepep dispatcher)
# note: the training script builds deepseek-v3 itself and cuts data into sequences of 4096 tokens
# note: full recompute: call model.gradient_checkpointing_enable() (the JSON cannot turn it on)
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
