#!/usr/bin/env bash
# Megatron-LM launch script, written by moeplan 0.1.0
# model: qwen3-30b-a3b; hardware: 16 x h100-sxm-80gb, 8 per node
# plan: tp=1 pp=1 vpp=1 cp=1 ep=16 etp=1 dp=16 edp=1; micro batch 1, global batch 512, sequence 4096; bf16; adam with sharding 1; recompute none
# predicted: nothing (run 'moeplan estimate' on the plan)
# made by: moeplan launch qwen3-30b-a3b-16xh100.yaml --to megatron --adapt
# note: the loss runs unfused, and so it is predicted: this command line has no fused loss that keeps logits in 16 bits (Megatron-Bridge has: moeplan launch --to megatron-bridge)
# moeplan-carried: {"plan": {"model": "qwen3-30b-a3b", "hardware.gpu": "h100-sxm-80gb", "hardware.gpus": 16, "kernels.fused_cross_entropy": true}, "open": {"parallel.sp": false, "moe.top_k": 8, "mtp_layers": 0}}
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

# What this configuration needs of its environment.
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True  # less fragmentation
export TORCH_NCCL_AVOID_RECORD_STREAMS=1  # frees communication buffers early
export NCCL_NVLS_ENABLE=0  # NVLink SHARP would reserve memory

MEGATRON_ARGS=(
    # model
    --num-layers 48
    --hidden-size 2048
    --ffn-hidden-size 768
    --swiglu
    --num-attention-heads 32
    --group-query-attention
    --num-query-groups 4
    --kv-channels 128
    --qk-layernorm
    --max-position-embeddings 40960
    --position-embedding-type rope
    --rotary-base 1000000
    --normalization RMSNorm
    --norm-epsilon 1e-06
    --disable-bias-linear
    --untie-embeddings-and-output-weights
    --vocab-size 151936
    --make-vocab-size-divisible-by 128
    --init-method-std 0.02
    --attention-dropout 0.0
    --hidden-dropout 0.0
    # experts
    --num-experts 128
    --moe-ffn-hidden-size 768
    --moe-router-topk 8
    --moe-router-score-function softmax
    --moe-router-dtype fp32
    --moe-router-load-balancing-type aux_loss
    --moe-aux-loss-coeff 0.001
    # parallelism
    --tensor-model-parallel-size 1
    --pipeline-model-parallel-size 1
    --context-parallel-size 1
    --expert-model-parallel-size 16
    --expert-tensor-parallel-size 1
    # batch
    --seq-length 4096
    --micro-batch-size 1
    --global-batch-size 512
    # precision
    --bf16
    # optimizer and data parallelism
    --optimizer adam
    --use-distributed-optimizer
    --accumulate-allreduce-grads-in-fp32
    --overlap-grad-reduce
    --overlap-param-gather
    # kernels
    --transformer-impl transformer_engine
    --attention-backend auto
    # experts: dispatch and overlap
    --moe-token-dispatcher-type alltoall
    --moe-grouped-gemm
    --moe-permute-fusion
)

# Optimization: not part of the plan. Set these in the environment or edit them.
TRAINING_ARGS=(
    --train-iters "${TRAIN_ITERS:-1000}"
    --lr "${LR:-3e-4}"
    --min-lr "${MIN_LR:-3e-5}"
    --lr-decay-style cosine
    --lr-warmup-fraction "${LR_WARMUP_FRACTION:-0.01}"
    --weight-decay "${WEIGHT_DECAY:-0.1}"
    --adam-beta1 0.9
    --adam-beta2 "${ADAM_BETA2:-0.95}"
    --clip-grad 1.0
    --seed "${SEED:-1234}"
    --eval-interval 1000
    --eval-iters "${EVAL_ITERS:-0}"
    --log-interval "${LOG_INTERVAL:-1}"
    --log-throughput
    --manual-gc
    --manual-gc-interval 100
    --distributed-timeout-minutes 60
    --no-create-attention-mask-in-dataloader
)

# Data: set DATA_PATH (prefixes of indexed data sets, separated by blanks) and TOKENIZER_MODEL; without, mock data.
if [ -n "${DATA_PATH:-}" ]; then
    read -r -a DATA_PREFIXES <<< "$DATA_PATH"
    DATA_ARGS=(
        --data-path "${DATA_PREFIXES[@]}"
        --split "${DATA_SPLIT:-99,1,0}"
        --tokenizer-type "${TOKENIZER_TYPE:-HuggingFaceTokenizer}"
        --tokenizer-model "${TOKENIZER_MODEL:?set TOKENIZER_MODEL to the folder or name of the tokenizer}"
    )
else
    DATA_ARGS=(--mock-data --tokenizer-type NullTokenizer)
fi

# Checkpoints: set CHECKPOINT_DIR to save and to go on from.
CHECKPOINT_ARGS=()
if [ -n "${CHECKPOINT_DIR:-}" ]; then
    CHECKPOINT_ARGS=(--save "$CHECKPOINT_DIR" --load "$CHECKPOINT_DIR" --save-interval "${SAVE_INTERVAL:-500}")
fi

: "${MEGATRON_PATH:?set MEGATRON_PATH to a checkout of Megatron-LM}"
exec torchrun \
    --nnodes "$NNODES" \
    --nproc-per-node "$GPUS_PER_NODE" \
    --node-rank "$NODE_RANK" \
    --master-addr "$MASTER_ADDR" \
    --master-port "$MASTER_PORT" \
    "$MEGATRON_PATH/pretrain_gpt.py" \
    "${MEGATRON_ARGS[@]}" "${TRAINING_ARGS[@]}" "${DATA_ARGS[@]}" "${CHECKPOINT_ARGS[@]}" "$@"
