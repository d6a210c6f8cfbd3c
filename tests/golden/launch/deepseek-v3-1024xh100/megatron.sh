#!/usr/bin/env bash
# Megatron-LM launch script, written by moeplan 0.1.0
# model: deepseek-v3; hardware: 1024 x h100-sxm-80gb, 8 per node
# plan: tp=2 pp=8 vpp=4 cp=1 ep=64 etp=1 dp=64 edp=2; micro batch 1, global batch 16384, sequence 4096; bf16; adam with sharding 1; recompute selective
# predicted: nothing (run 'moeplan estimate' on the plan)
# made by: moeplan launch deepseek-v3-1024xh100.yaml --to megatron --adapt
# note: the loss runs unfused, and so it is predicted: this command line has no fused loss that keeps logits in 16 bits (Megatron-Bridge has: moeplan launch --to megatron-bridge)
# moeplan-carried: {"plan": {"model": "deepseek-v3", "hardware.gpu": "h100-sxm-80gb", "hardware.gpus": 1024, "kernels.fused_cross_entropy": true}, "open": {"parallel.sp": true, "moe.top_k": 8, "mtp_layers": 1}}
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

MEGATRON_ARGS=(
    # model
    --num-layers 61
    --hidden-size 7168
    --ffn-hidden-size 18432
    --swiglu
    --num-attention-heads 128
    --multi-latent-attention
    --q-lora-rank 1536
    --kv-lora-rank 512
    --qk-head-dim 128
    --qk-pos-emb-head-dim 64
    --v-head-dim 128
    --kv-channels 128
    --qk-layernorm
    --max-position-embeddings 163840
    --position-embedding-type rope
    --rotary-base 10000
    --rope-type yarn
    --rotary-scaling-factor 40
    --mscale 1
    --mscale-all-dim 1
    --normalization RMSNorm
    --norm-epsilon 1e-06
    --disable-bias-linear
    --untie-embeddings-and-output-weights
    --vocab-size 129280
    --make-vocab-size-divisible-by 128
    --init-method-std 0.02
    --attention-dropout 0.0
    --hidden-dropout 0.0
    --mtp-num-layers 1
    --mtp-loss-scaling-factor 0.1
    # experts
    --num-experts 256
    --moe-layer-freq '([0]*3+[1]*58)'
    --moe-ffn-hidden-size 2048
    --moe-shared-expert-intermediate-size 2048
    --moe-router-topk 8
    --moe-router-score-function sigmoid
    --moe-router-num-groups 8
    --moe-router-group-topk 4
    --moe-router-topk-scaling-factor 2.5
    --moe-router-dtype fp32
    --moe-router-enable-expert-bias
    --moe-router-bias-update-rate 1e-3
    --moe-router-load-balancing-type seq_aux_loss
    --moe-aux-loss-coeff 0.0001
    # parallelism
    --tensor-model-parallel-size 2
    --pipeline-model-parallel-size 8
    --context-parallel-size 1
    --expert-model-parallel-size 64
    --expert-tensor-parallel-size 1
    --sequence-parallel
    --pipeline-model-parallel-layout 'Et|(tt|)*30mL'
    # batch
    --seq-length 4096
    --micro-batch-size 1
    --global-batch-size 16384
    # precision
    --bf16
    # optimizer and data parallelism
    --optimizer adam
    --use-distributed-optimizer
    --accumulate-allreduce-grads-in-fp32
    --overlap-grad-reduce
    --overlap-param-gather
    # recompute and offload
    --recompute-granularity selective
    --recompute-modules mla_up_proj mlp
    # kernels
    --transformer-impl transformer_engine
    --attention-backend auto
    # experts: dispatch and overlap
    --moe-token-dispatcher-type flex
    --moe-flex-dispatcher-backend deepep
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
