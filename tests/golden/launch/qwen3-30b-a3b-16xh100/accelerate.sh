#!/usr/bin/env bash
# accelerate launch script (FSDP2), written by moeplan 0.1.0
# model: qwen3-30b-a3b; hardware: 16 x h100-sxm-80gb, 8 per node
# plan: tp=1 pp=1 vpp=1 cp=1 ep=1 etp=1 dp=16 edp=16; micro batch 1, global batch 512, sequence 4096; bf16; adam with sharding 3; recompute none
# predicted: nothing (run 'moeplan estimate' on the plan)
# made by: moeplan launch qwen3-30b-a3b-16xh100.yaml --to accelerate --adapt
# note: adapted: framework: megatron -> fsdp2 (accelerate's Megatron-LM plugin does not build qwen3_moe (gpt2, llama, glm4_moe))
# note: adapted: parallel.ep: 16 -> 1 (accelerate's FSDP2 has no expert parallelism)
# note: adapted: optimizer.sharding: 1 -> 3 (FSDP2 shards parameters, gradients and optimizer state together)
# note: the training script builds qwen3-30b-a3b, loads 1 sequences of 4096 tokens per pass and accumulates over 32 passes
set -euo pipefail

# Where it runs: from Slurm, from the environment, or as planned.
NNODES="${NNODES:-${SLURM_JOB_NUM_NODES:-2}}"
GPUS_PER_NODE="${GPUS_PER_NODE:-8}"
NODE_RANK="${NODE_RANK:-${SLURM_NODEID:-0}}"
MASTER_PORT="${MASTER_PORT:-29500}"
PLANNED_GPUS=16
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
export ACCELERATE_GRADIENT_ACCUMULATION_STEPS=32
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True

: "${TRAIN_SCRIPT:?set TRAIN_SCRIPT to a Python script that uses accelerate}"
CONFIGURATION="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/accelerate.yaml"
exec accelerate launch \
    --config_file "$CONFIGURATION" \
    --machine_rank "$NODE_RANK" \
    --main_process_ip "$MASTER_ADDR" \
    --main_process_port "$MASTER_PORT" \
    "$TRAIN_SCRIPT" "$@"
