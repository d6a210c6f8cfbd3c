"""Why an argument of Megatron-LM is not in a plan: it changes nothing there, or the plan has no key for it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from moeplan.importers.imported import INERT, LOST

# Families of arguments that say where data, checkpoints and logs are, how the loss is optimised or how a model is
# served: none changes what a training step allocates or computes by more than noise. Names from megatron-core
# 0.19.2 (the parser of megatron/training/arguments.py and the dataclasses it draws from).
_INERT_FAMILIES = re.compile(
    r"(no-|disable-)?("
    r"adam-|adlr-|app-tag|apply-wd|async-|biencoder-|bert-|block-data|calc-ft|check-|ckpt-|chat-template|clip-grad"
    r"|data-(path|cache|args|per|parallel-random)|dataloader-|dataset|decay|decoupled-|dino-|dist-ckpt|distrib-optim"
    r"|distributed-(backend|timeout)|dump-|embedding-path|enable-(ft|msc|experimental|gloo)|error-injection"
    r"|eval-(iters|interval)|evidence-|exit-|fault-|fim-|flight-|ft-|full-validation|gpu-sniff|grpo-|hysteresis"
    r"|ict-|indexer-|inference-|init(ialization|ial-|-method)|inprocess|iter-per|iterations-to|langrl-|lion-|load(-|$)"
    r"|local-rank|log-|logging-|logits-(save-(dir|dtype)|load-(decode|prefetch|msc|ignore))|loss-scale|lr(-|$)|manual-gc|mask-"
    r"|memory-snapshot|merge-file|mid-level|min-l|mock-data|msc|mtp-loss|multiple-validation|muon-|mmap-bin"
    r"|nccl-communicator|non-persistent|num-(workers|dataset|classes|channels)|nvtx|object-storage|one-logger|onnx"
    r"|output-bert|override-|per-(dataset|split)|persist(ent)?-|phase-|pretrained|profile|pytorch-profiler|query-in"
    r"|record-|replication|rerun-|reset-|result-rejected|retriever|retro-|sample-rate|save(-|$)|seed$|sft|sgd-|short-seq"
    r"|split$|start-(eval|weight)|end-weight|straggler|stream-ckpt|strict-|symmetric-reg|tensorboard-|test-|tiktoken|timing-"
    r"|titles-|tokenizer-|train-|trust-|null-tokenizer|use-(checkpoint|mp-args|dist-ckpt|persistent-ckpt|mcore|legacy-static"
    r"|one-sent|pytorch|tokenizer)|valid(ation)?-|verify-|vision-|swin-|vocab-(file|extra)|wandb-|weight-decay"
    r"|img-|dsa-|linear-(conv|key|value|num)-|patch-|classes-|data-shard|head-lr|mask-type|run-workload|rl-(default|prompts|verify|profile|skip)|barrier"
    r")"
)

_INERT_NAMES = frozenset(
    [
        "activation-func-clamp-value",
        "allow-ambiguous-pad-tokens",
        "apply-layernorm-1p",
        "apply-query-key-layer-scaling",
        "apply-residual-connection-post-layernorm",
        "attention-softmax-in-fp32",
        "auto-detect-ckpt-format",
        "batch-invariant-mode",
        "calculate-per-token-loss",
        "config-logger-dir",
        "cuda-graph-warmup-steps",
        "ddp-average-in-collective",
        "decode-only-cuda-graphs",
        "deterministic-mode",
        "disable-gloo-process-groups",
        "disable-msc",
        "distributed-timeout-seconds-after-init",
        "dsa-kernel-backend",
        "embedding-init-method-std",
        "enable-chunked-prefill",
        "enable-experimental",
        "eod-mask-loss",
        "fake-process-group",
        "finetune",
        "flash-decode",
        "fp8-amax-compute-algo",
        "fp8-amax-history-len",
        "fp8-interval",
        "fp8-margin",
        "glu-linear-offset",
        "inference-rng-tracker",
        "init-method-std",
        "init-model-with-meta-device",
        "lazy-mpu-init",
        "loss-scale-window",
        "mamba-inference-conv-states-dtype",
        "mamba-inference-ssm-states-dtype",
        "max-tokens-to-oom",
        "min-offloaded-tensor-size",
        "mlp-chunks-for-prefill",
        "moe-aux-loss-coeff",
        "moe-input-jitter-eps",
        "moe-pad-experts-for-cuda-graph-inference",
        "moe-per-layer-logging",
        "moe-router-bias-update-rate",
        "moe-router-dtype",
        "moe-router-group-topk",
        "moe-router-load-balancing-type",
        "moe-router-num-groups",
        "moe-router-quantile-balancing-ema",
        "moe-router-topk-scaling-factor",
        "moe-routing-trace-capture-hidden-states",
        "moe-routing-trace-capture-logits",
        "moe-routing-trace-dump-weights",
        "moe-routing-trace-max-training-iters",
        "moe-routing-trace-path",
        "moe-token-drop-policy",
        "moe-upcycling-granularity",
        "moe-use-upcycling",
        "moe-z-loss-coeff",
        "mrope-section",
        "mscale",
        "mscale-all-dim",
        "mup-attn-scale-power",
        "mup-base-head-dim",
        "mup-base-hidden-size",
        "mup-embedding-mult",
        "mup-output-mult",
        "mup-width-mult",
        "nccl-all-reduce-for-prefill",
        "no-create-attention-mask-in-dataloader",
        "no-data-sharding",
        "no-gradient-reduce-div-fusion",
        "no-one-logger",
        "no-pin-cpu-grads",
        "no-pin-cpu-params",
        "no-rope-freq",
        "no-weight-decay-cond-type",
        "no-yarn-correction-range-round-to-int",
        "norm-epsilon",
        "num-speculative-tokens",
        "qk-clip",
        "qk-clip-alpha",
        "qk-clip-threshold",
        "qk-l2-norm",
        "refit-method",
        "relative-attention-max-distance",
        "relative-attention-num-buckets",
        "rope-scaling-factor",
        "rope-type",
        "rotary-base",
        "rotary-interleaved",
        "rotary-percent",
        "rotary-scaling-factor",
        "rotary-seq-len-interpolation-factor",
        "sample-rate",
        "sharp-enabled-group",
        "skip-train",
        "spec",
        "te-rng-tracker",
        "tp-comm-bootstrap-backend",
        "tp-comm-overlap-cfg",
        "train-sync-interval",
        "trust-remote-code",
        "use-cpu-initialization",
        "use-fused-weighted-squared-relu",
        "use-gloo-process-groups",
        "use-legacy-static-engine",
        "use-mup",
        "use-rope-scaling",
        "use-same-sampling-seed-across-dp-ranks",
        "use-sharp",
        "use-tp-pp-dp-mapping",
        "yarn-beta-fast",
        "yarn-beta-slow",
        "yarn-correction-range-round-to-int",
        "yarn-original-max-position-embeddings",
    ]
)

# What a plan has no key for, and what an estimate therefore leaves out.
_LOST = {
    "hierarchical-context-parallel-sizes": "the plan has one context-parallel exchange",
    "hybrid-context-parallel": "the plan has one context-parallel degree for every sequence",
    "max-seqlen-per-dp-cp-rank": "the plan has one context-parallel degree for every sequence",
    "tensor-parallel-num-weight-shards": "the plan shards weights as tp and the optimizer's sharding say",
    "expert-tensor-parallel-num-weight-shards": "the plan shards weights as tp and the optimizer's sharding say",
    "pipeline-model-parallel-comm-backend": "the plan takes NCCL",
    "microbatch-group-size-per-virtual-pipeline-stage": "the plan interleaves in groups of pp micro batches",
    "overlap-p2p-communication-warmup-flush": "the plan overlaps the steady state only",
    "no-overlap-p2p-communication": "the plan overlaps the sends of interleaved stages",
    "defer-embedding-wgrad-compute": "the plan computes the head's weight gradient in place",
    "wgrad-deferral-limit": "the plan computes the head's weight gradient in place",
    "delay-wgrad-compute": "the plan keeps weight gradients in the backward pass",
    "overlap-dispatch-backward-with-experts-wgrad": "the plan keeps weight gradients in the backward pass",
    "ep-overlap-early-attn-memory-release": "the plan releases attention's memory in order",
    "high-priority-a2a-comm-stream": "the plan has no stream priorities",
    "high-priority-stream-groups": "the plan has no stream priorities",
    "mtp-standalone": "use a pipeline layout",
    "mtp-use-repeated-layer": "the plan gives every multi-token-prediction depth its own layer",
    "mtp-detach-heads": "the plan trains the heads through the trunk",
    "cpu-offloading-num-layers": "the plan offloads modules, not whole layers",
    "cpu-offloading-retain-pinned-cpu-buffers": "the plan offloads modules, not whole layers",
    "distribute-saved-activations": "the plan keeps checkpoints whole, or cut by sequence parallelism",
    "fp32-residual-connection": "the plan keeps the residual stream in the training precision",
    "fp8-param-gather": "the plan keeps and gathers parameters in bf16",
    "fp4-param-gather": "the plan keeps and gathers parameters in bf16",
    "reuse-grad-buf-for-mxfp8-param-ag": "the plan keeps and gathers parameters in bf16",
    "keep-fp8-transpose-cache": "the plan has one rule for fp8 copies",
    "first-last-layers-bf16": "the plan has one precision for every layer",
    "num-layers-at-start-in-bf16": "the plan has one precision for every layer",
    "num-layers-at-end-in-bf16": "the plan has one precision for every layer",
    "te-precision-config-file": "the plan has one precision for every layer",
    "fp8-quantizer-factory": "the plan knows the standard recipes",
    "fp4-quantizer-factory": "the plan knows the standard recipes",
    "no-fp8-wgrad": "the plan computes every GEMM in its precision",
    "disable-fp8-wgrad": "the plan computes every GEMM in its precision",
    "fp8-output-proj": "the plan computes the head in bf16",
    "disable-bf16-reduced-precision-matmul": "the plan takes the GEMM library's default",
    "main-params-dtype": "the plan keeps main parameters in fp32",
    "use-precision-aware-optimizer": "the plan has the moments' type, not the two-byte remainders of main parameters",
    "num-distributed-optimizer-instances": "the plan shards over the whole data-parallel group",
    "outer-dp-sharding-strategy": "the plan shards over the whole data-parallel group",
    "enable-full-sharding-in-hsdp": "the plan shards over the whole data-parallel group",
    "megatron-fsdp-main-params-dtype": "the plan keeps main parameters in fp32",
    "megatron-fsdp-grad-comm-dtype": "the plan reduces gradients in their own type",
    "megatron-fsdp-enable-fine-grained-param-gather": "the plan gathers a layer at a time",
    "megatron-fsdp-max-pool-double-buffer": "the plan has no buffer pools",
    "fsdp-double-buffer": "the plan has no buffer pools",
    "fsdp-db-use-persist-buf-on-alloc-fail": "the plan has no buffer pools",
    "fsdp-manual-registration": "the plan has no registered buffers",
    "torch-fsdp2-no-reshard-after-forward": "the plan frees gathered parameters after use",
    "suggested-communication-unit-size": "the plan takes the framework's bucket sizes",
    "ddp-bucket-size": "the plan takes the framework's bucket sizes",
    "ddp-num-buckets": "the plan takes the framework's bucket sizes",
    "ddp-pad-buckets-for-high-nccl-busbw": "the plan takes the framework's bucket sizes",
    "ddp-reduce-scatter-with-fp32-accumulation": "the plan reduces gradients in their own type",
    "ddp-param-name-patterns-for-fp32-local-accumulation": "the plan has one gradient type",
    "overlap-param-gather-with-optimizer-step": "the plan gathers behind the forward pass only",
    "no-align-grad-reduce": "the plan aligns reductions over pipeline stages",
    "disable-align-grad-reduce": "the plan aligns reductions over pipeline stages",
    "no-align-param-gather": "the plan aligns gathers over pipeline stages",
    "no-use-layer-wise-param-layout": "the plan has one parameter layout",
    "use-nccl-ub": "the plan has no registered buffers",
    "disable-symmetric-registration": "the plan has no registered buffers",
    "create-all-gather-group": "the plan has one group for reductions and gathers",
    "symmetric-ar-type": "the plan takes NCCL's algorithms",
    "overlap-cpu-optimizer-d2h-h2d": "the plan overlaps the offloaded optimizer as its time model says",
    "use-torch-optimizer-for-cpu-offload": "the plan takes the fused host optimizer",
    "optimizer-cuda-graph": "the plan launches the optimizer eagerly",
    "delay-offload-until-cuda-graph": "the plan offloads at once",
    "delta-offload-bytes-across-pp-ranks": "the plan offloads the same fraction on every stage",
    "fine-grained-offloading-max-inflight-offloads": "the plan has no limit on offloads in flight",
    "moe-paged-stash": "the plan allocates dispatch buffers as they are needed",
    "moe-paged-stash-page-size": "the plan allocates dispatch buffers as they are needed",
    "moe-paged-stash-buffer-size-factor-cuda": "the plan allocates dispatch buffers as they are needed",
    "moe-paged-stash-buffer-size-factor-cpu": "the plan allocates dispatch buffers as they are needed",
    "moe-expert-rank-capacity-factor": "the plan has a capacity per expert, not per rank",
    "moe-pad-expert-input-to-capacity": "the plan prices the tokens that arrive, not the padding",
    "moe-router-padding-for-quantization": "the plan does not pad experts' inputs",
    "moe-router-padding-for-fp8": "the plan does not pad experts' inputs",
    "moe-apply-probs-on-input": "the plan applies probabilities after the activation",
    "moe-shared-expert-overlap": "the plan runs shared experts in line",
    "use-grouped-gemm-for-shared-expert": "the plan runs shared experts as one dense block",
    "use-grouped-gemm-for-dense-mlp": "the plan runs dense layers as plain GEMMs",
    "moe-shared-expert-glu-interleave-size": "the plan has one weight layout",
    "moe-mlp-glu-interleave-size": "the plan has one weight layout",
    "moe-single-grouped-weight": "the plan has one weight per expert",
    "moe-single-grouped-bias": "the plan has one weight per expert",
    "moe-router-force-biased": "set moe.load_imbalance",
    "moe-enable-routing-replay": "the plan keeps no routing history",
    "moe-router-fusion": "the plan has one router kernel",
    "moe-flex-dispatcher-num-sms": "the plan takes the dispatcher's default",
    "moe-deepep-num-sms": "the plan takes the dispatcher's default",
    "moe-hybridep-num-sms": "the plan takes the dispatcher's default",
    "moe-hybridep-num-blocks-permute": "the plan takes the dispatcher's default",
    "moe-hybridep-num-blocks-unpermute": "the plan takes the dispatcher's default",
    "moe-hybridep-num-sms-preprocessing": "the plan takes the dispatcher's default",
    "moe-hybridep-pad-uneven-dispatch-inputs": "the plan does not pad dispatch",
    "moe-ncclep-static-shape": "the plan does not know this dispatcher",
    "moe-ncclep-zero-copy": "the plan does not know this dispatcher",
    "cuda-graph-modules": "the plan has CUDA graphs on or off",
    "cuda-graph-scope": "the plan has CUDA graphs on or off",
    "no-clone-scatter-output-in-embedding": "the plan clones the embedding's output",
    "disable-clone-scatter-output-in-embedding": "the plan clones the embedding's output",
    "use-transformer-engine-op-fuser": "the plan knows Transformer Engine's modules, not its fused operators",
    "use-te-activation-func": "the plan has one activation kernel",
    "fused-residual-rmsnorm": "the plan has one norm kernel",
    "no-bias-gelu-fusion": "the plan fuses bias and activation",
    "no-bias-swiglu-fusion": "the plan fuses bias and activation",
    "no-bias-dropout-fusion": "the plan fuses bias, dropout and residual",
    "no-masked-softmax-fusion": "the plan fuses mask and softmax",
    "no-rope-fusion": "the plan fuses rotary embeddings",
    "no-persist-layer-norm": "the plan has one norm kernel",
    "disable-jit-fuser": "the plan has one set of fused kernels",
    "fp16-lm-cross-entropy": "the plan computes the loss in fp32",
    "flash-attention-version": "the plan has one flash attention",
    "use-kitchen-attention": "the plan has one flash attention",
    "kitchen-attention-backend": "the plan has one flash attention",
    "mla-down-proj-fusion": "the plan keeps the down projections apart",
    "empty-unused-memory-level": "the plan never empties the allocator's cache",
    "rampup-batch-size": "the plan has the final batch",
    "step-batch-size-schedule": "the plan has one batch size",
    "decrease-batch-size-if-needed": "the plan has one batch size",
    "eval-global-batch-size": "the plan is about training steps",
    "eval-micro-batch-size": "the plan is about training steps",
    "use-ring-exchange-p2p": "the plan takes NCCL's sends",
    "no-tp-comm-bulk-wgrad": "the plan has tensor-parallel overlap on or off",
    "disable-tp-comm-bulk-wgrad": "the plan has tensor-parallel overlap on or off",
    "no-tp-comm-bulk-dgrad": "the plan has tensor-parallel overlap on or off",
    "disable-tp-comm-bulk-dgrad": "the plan has tensor-parallel overlap on or off",
    "no-tp-comm-overlap-ag": "the plan has tensor-parallel overlap on or off",
    "disable-tp-comm-overlap-ag": "the plan has tensor-parallel overlap on or off",
    "no-tp-comm-overlap-rs": "the plan has tensor-parallel overlap on or off",
    "disable-tp-comm-overlap-rs": "the plan has tensor-parallel overlap on or off",
    "tp-comm-overlap-rs-dgrad": "the plan has tensor-parallel overlap on or off",
    "no-tp-comm-split-ag": "the plan has tensor-parallel overlap on or off",
    "disable-tp-comm-split-ag": "the plan has tensor-parallel overlap on or off",
    "no-tp-comm-split-rs": "the plan has tensor-parallel overlap on or off",
    "disable-tp-comm-split-rs": "the plan has tensor-parallel overlap on or off",
    "mlp-chunks-for-training": "the plan runs feed-forward blocks whole",
    "disable-mamba-mem-eff-path": "the plan has one Mamba kernel",
    "mamba-training-ssm-states-dtype": "the plan has one Mamba kernel",
    "freeze-all-layers": "the plan trains every parameter",
    "perform-rl-step": "the plan is about pre-training steps; rollouts hold memory of their own",
    "dataloader-inter-document-masking": "the plan attends within whole sequences",
    "logits-save-top-k": "the plan keeps no teacher's logits",
    "logits-save-top-p": "the plan keeps no teacher's logits",
    "logits-save-top-p-min-k": "the plan keeps no teacher's logits",
    "logits-load-dir": "the plan keeps no teacher's logits",
    "logits-load-kd-loss-alpha": "the plan keeps no teacher's logits",
}

# Arguments that say what every plan takes for granted, and values at which a lost argument loses nothing.
_ASSUMED = frozenset(
    [
        "cache-mla-latents",
        "cross-entropy-fusion-impl",
        "max-position-embeddings",
        "moe-grouped-gemm",
        "moe-permute-fusion",
        "moe-permute-fusion-into-hybridep",
        "moe-router-force-load-balancing",
        "use-flash-attn",
        "use-mcore-models",
    ]
)
_NEUTRAL = {
    "num-distributed-optimizer-instances": 1.0,
    "tensor-parallel-num-weight-shards": 1.0,
    "cpu-offloading-num-layers": 0.0,
    "empty-unused-memory-level": 0.0,
}
_NEUTRAL_WORDS = {
    "outer-dp-sharding-strategy": "no_shard",
    "main-params-dtype": "fp32",
    "megatron-fsdp-main-params-dtype": "fp32",
    "pipeline-model-parallel-comm-backend": "nccl",
}

# Arguments that do nothing in the configurations where no reader asks for them (latent attention's without latent
# attention, a recipe without its format, ...).
_CONDITIONAL = frozenset(
    [
        "fp4-recipe",
        "mamba-state-dim",
        "mamba-head-dim",
        "mamba-num-groups",
        "mamba-num-heads",
        "encoder-num-layers",
        "decoder-num-layers",
        "encoder-seq-length",
        "decoder-seq-length",
        "window-attn-skip-freq",
        "no-pad-vocab-size",
        "disable-pad-vocab-size",
        "q-lora-rank",
        "kv-lora-rank",
        "qk-head-dim",
        "qk-pos-emb-head-dim",
        "v-head-dim",
    ]
)

# Arguments that Megatron-LM itself no longer takes, and what it asks for instead (``validate_args``).
OBSOLETE = {
    "batch-size": "--micro-batch-size",
    "model-parallel-size": "--tensor-model-parallel-size",
    "checkpoint-activations": "--recompute-granularity",
    "warmup": "--lr-warmup-fraction",
}

# Attention that an architecture document has no words for, though the catalog has models with it.
BEYOND_DOCUMENTS = ("experimental-attention-variant", "linear-attention-freq")

# Arguments that change what the model is and that moeplan has no shape for: counting on would count wrongly.
REFUSED = {
    "heterogeneous-layers-config-path": "every layer has its own shape in another file",
    "heterogeneous-layers-config-encoded-json": "every layer has its own shape",
    "mtp-use-repeated-layer": "multi-token-prediction depths share one layer",
    "mtp-hybrid-override-pattern": "multi-token-prediction layers of a hybrid model have no counted shape",
    "yaml-cfg": "the arguments are in that file: import it instead",
    "use-legacy-models": "models before Megatron-Core have another layout",
    "retro-project-dir": "retrieval models are not decoder-only",
}


def why_unused(name: str, words: Sequence[str] = ()) -> str | None:
    """Why an argument that no reader uses is left out, or None where the plan already says the same."""
    if name in _ASSUMED:
        return None
    if name in _NEUTRAL and words and _is_number(words[0], _NEUTRAL[name]):
        return None
    if name in _NEUTRAL_WORDS and tuple(words) == (_NEUTRAL_WORDS[name],):
        return None
    if name in _LOST:
        return f"{LOST}: {_LOST[name]}"
    if name in _CONDITIONAL or name in _INERT_NAMES or _INERT_FAMILIES.match(name):
        return INERT
    if name.startswith(("rl-", "no-rl-")):
        return f"{LOST}: {_LOST['perform-rl-step']}"
    return "is not an argument that moeplan knows; it may change memory or time"


def _is_number(text: str, value: float) -> bool:
    try:
        return float(text) == value
    except ValueError:
        return False
