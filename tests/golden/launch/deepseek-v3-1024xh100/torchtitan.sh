#!/usr/bin/env bash
# torchtitan launch script, written by moeplan 0.1.0
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

HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
ASK='import importlib.metadata; print(importlib.metadata.version("torchtitan"))'
VERSION="${TORCHTITAN_VERSION:-$(python -c "$ASK")}"
case "$VERSION" in
    0.0.* | 0.1.* | 0.2.*)
        CONFIGURATION=(--job.config_file "$HERE/torchtitan.toml")
        ;;
    *)
        export PYTHONPATH="$HERE${PYTHONPATH:+:$PYTHONPATH}"
        CONFIGURATION=(--module torchtitan_config --config moeplan)
        ;;
esac
exec torchrun \
    --nnodes "$NNODES" \
    --nproc-per-node "$GPUS_PER_NODE" \
    --node-rank "$NODE_RANK" \
    --master-addr "$MASTER_ADDR" \
    --master-port "$MASTER_PORT" \
    --module torchtitan.train "${CONFIGURATION[@]}" "$@"
