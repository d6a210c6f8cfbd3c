#!/usr/bin/env bash
# accelerate launch script (FSDP2), written by moeplan 0.1.0
# model: deepseek-v3; hardware: 1024 x h100-sxm-80gb, 8 per node
# plan: tp=2 pp=1 vpp=1 cp=1 ep=1 etp=1 dp=512 edp=1024; micro batch 1, global batch 16384, sequence 4096; bf16; adam with sharding 3; recompute full
# predicted: nothing (run 'moeplan estimate' on the plan)
# made by: moeplan launch deepseek-v3-1024xh100.yaml --to accelerate --adapt
# note: adapted: moe.dispatcher: deepep -> alltoall (accelerate's configuration has no key for the token dispatcher)
# note: adapted: framework: megatron -> fsdp2 (accelerate's Megatron-LM plugin does not build deepseek_v3 (gpt2, llama, glm4_moe))
# note: adapted: parallel.pp: 8 -> 1 (accelerate's FSDP2 has no pipeline)
# note: adapted: parallel.vpp: 4 -> 1 (accelerate's FSDP2 has no pipeline)
# note: adapted: parallel.pipeline_layout: Et|(tt|)*30mL -> None (accelerate's FSDP2 has no pipeline)
# note: adapted: parallel.ep: 64 -> 1 (accelerate's FSDP2 has no expert parallelism)
# note: adapted: optimizer.sharding: 1 -> 3 (FSDP2 shards parameters, gradients and optimizer state together)
# note: adapted: recompute.granularity: selective -> full (accelerate's FSDP2 recomputes whole layers)
# note: adapted: recompute.modules: ('mla_up_proj', 'mlp') -> [] (accelerate's FSDP2 recomputes whole layers)
# note: the training script builds deepseek-v3, loads 1 sequences of 4096 tokens per pass and accumulates over 32 passes
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
