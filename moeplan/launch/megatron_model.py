"""The model in Megatron-LM's flags, from its architecture; and what of a model Megatron-Core cannot build.

Flags are those of megatron-core 0.19.2 ``megatron/training/arguments.py``; what they mean is cited where it surprises.
"""

from __future__ import annotations

from dataclasses import replace

from moeplan.launch.megatron_experts import expert_flags
from moeplan.launch.megatron_words import ModelFlags, number, operators, pattern, refuse
from moeplan.model.architecture import Architecture
from moeplan.model.details import ModelDetails
from moeplan.operators.attention import Attention, LatentAttention
from moeplan.operators.indexer import Indexer
from moeplan.operators.mixer import Mixer
from moeplan.operators.mlp import DenseMLP
from moeplan.operators.moe import MoE
from moeplan.operators.norm import Norm

_SILU = ("silu", "swish", None)
_GELU = ("gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast")


def model_flags(architecture: Architecture, top_k: int | None, mtp_layers: int | None, longest: int) -> ModelFlags:
    """Say a model in Megatron's flags.

    Args:
        architecture: The model.
        top_k: Experts per token, None for the model's own.
        mtp_layers: Multi-token-prediction layers to train, None for the model's own.
        longest: Sequence length trained at, which the position limit must reach.
    """
    found = ModelFlags({}, [], [])
    flags = found.flags
    flags["--num-layers"] = (str(len(architecture.layers)),)
    flags["--hidden-size"] = (str(architecture.hidden),)
    _feed_forward(architecture, found)
    _attention(architecture, found)
    _position(architecture, max(longest, architecture.max_sequence_length or 0), found)
    norm = architecture.final_norm
    flags["--normalization"] = ("LayerNorm" if norm.bias else "RMSNorm",)
    if architecture.details.norm_epsilon is not None:
        flags["--norm-epsilon"] = (number(architecture.details.norm_epsilon),)
    _biases(architecture, found)
    if not architecture.head.tied:
        flags["--untie-embeddings-and-output-weights"] = ()
    flags["--vocab-size"] = (str(architecture.embedding.vocabulary),)
    flags["--make-vocab-size-divisible-by"] = ("128",)
    if architecture.details.init_std is not None:
        flags["--init-method-std"] = (number(architecture.details.init_std),)
    flags["--attention-dropout"] = ("0.0",)
    flags["--hidden-dropout"] = ("0.0",)
    expert_flags(architecture, top_k, found)
    trained = architecture.mtp_layers if mtp_layers is None else mtp_layers
    if trained:
        flags["--mtp-num-layers"] = (str(trained),)
        flags["--mtp-loss-scaling-factor"] = ("0.1",)  # DeepSeek-V3 (arXiv:2412.19437, section 4.2): 0.3, later 0.1
    _multipliers(architecture.details, found)
    _family_ways(architecture, found)
    return found


def _feed_forward(architecture: Architecture, found: ModelFlags) -> None:
    dense = [operator for operator in operators(architecture, DenseMLP) if isinstance(operator, DenseMLP)]
    widths = {mlp.ffn for mlp in dense}
    moe = architecture.moe
    if len(widths) > 1:
        refuse(found, f"gives all dense layers one width, the model has {sorted(widths)}")
    # Without dense layers the width is not used, but the parser wants one that tensor parallelism divides.
    width = next(iter(widths)) if widths else (moe.expert_ffn if moe else 4 * architecture.hidden)
    found.flags["--ffn-hidden-size"] = (str(width),)
    gated = {mlp.gated for mlp in dense} | ({moe.gated} if moe else set())
    if len(gated) > 1:
        refuse(found, "makes dense layers and experts alike, either gated or not")
    _activation(architecture.details, True in gated, architecture.family, found)


def _activation(details: ModelDetails, gated: bool, family: str, found: ModelFlags) -> None:
    name = details.activation
    if family == "gpt_oss":
        # GPT-OSS's clamped x * sigmoid(1.702 x) with (up + 1); Megatron-Bridge models/gpt_oss sets the same three.
        found.flags["--quick-geglu"] = ()
        found.flags["--glu-linear-offset"] = ("1.0",)
        found.flags["--activation-func-clamp-value"] = ("7.0",)
    elif gated and name in _SILU:
        found.flags["--swiglu"] = ()
    elif not gated and name == "relu2":
        found.flags["--squared-relu"] = ()
    elif gated or name not in (*_GELU, None):
        refuse(found, f"has no flag for a {'gated ' if gated else ''}{name} feed-forward")


def _attention(architecture: Architecture, found: ModelFlags) -> None:
    mixers = [operator for operator in operators(architecture, Mixer) if isinstance(operator, Mixer)]
    latent = [o for o in operators(architecture, LatentAttention) if isinstance(o, LatentAttention)]
    softmax = [o for o in operators(architecture, Attention) if isinstance(o, Attention)]
    per_layer = {
        sum(isinstance(operator, Attention | LatentAttention | Mixer) for operator in layer.operators)
        for layer in architecture.layers
    }
    feeds = {sum(isinstance(operator, DenseMLP | MoE) for operator in layer.operators) for layer in architecture.layers}
    if per_layer != {1} or feeds != {1}:
        refuse(found, "builds layers of one attention and one feed-forward, the model's layers are different")
    norms = {sum(isinstance(operator, Norm) for operator in layer.operators) for layer in architecture.layers}
    if norms != {2}:
        refuse(found, f"builds layers with two norms, the model's have {', '.join(map(str, sorted(norms)))}")
    if operators(architecture, Indexer):
        refuse(found, "has the indexer of sparse attention as an experiment only")
    if latent and not softmax and not mixers and len(latent) == 1:
        _latent(latent[0], found)
    elif softmax and not latent and len({_without_window(attention) for attention in softmax}) == 1:
        _grouped_query(architecture, softmax, found)
        if mixers:
            _delta_net(architecture, mixers, found)
    else:
        kinds = sorted({mixer.kind for mixer in mixers} | {type(o).__name__ for o in [*latent, *softmax]})
        refuse(found, f"has no flags for layers that differ as these do ({', '.join(kinds)})")


def _without_window(attention: Attention) -> Attention:
    return replace(attention, window=None)


def _latent(attention: LatentAttention, found: ModelFlags) -> None:
    flags = found.flags
    flags["--num-attention-heads"] = (str(attention.heads),)
    flags["--multi-latent-attention"] = ()
    if attention.q_lora_rank is not None:
        flags["--q-lora-rank"] = (str(attention.q_lora_rank),)
    flags["--kv-lora-rank"] = (str(attention.kv_lora_rank),)  # the parser's default is 32
    flags["--qk-head-dim"] = (str(attention.qk_nope_head_dim),)
    flags["--qk-pos-emb-head-dim"] = (str(attention.qk_rope_head_dim),)
    flags["--v-head-dim"] = (str(attention.v_head_dim),)
    flags["--kv-channels"] = (str(attention.v_head_dim),)
    flags["--qk-layernorm"] = ()  # the norms of the compressed query and key/value
    if attention.attention_bias or attention.head_gate:
        refuse(found, "has neither biases nor gates in latent attention")


def _grouped_query(architecture: Architecture, kinds: list[Attention], found: ModelFlags) -> None:
    flags, attention = found.flags, kinds[0]
    flags["--num-attention-heads"] = (str(attention.heads),)
    if attention.kv_heads != attention.heads:
        flags["--group-query-attention"] = ()
        flags["--num-query-groups"] = (str(attention.kv_heads),)
    flags["--kv-channels"] = (str(attention.head_dim),)
    if attention.v_head_dim != attention.head_dim:
        refuse(found, f"gives values the width of keys, {attention.head_dim}; the model's are {attention.v_head_dim}")
    if attention.qk_norm == "head":
        flags["--qk-layernorm"] = ()
    elif attention.qk_norm == "full":
        refuse(found, "normalises queries and keys per head, the model does over all heads at once")
    if attention.sinks:
        flags["--softmax-type"] = ("learnable",)
    if attention.output_gate:
        flags["--attention-output-gate"] = ()
    if attention.head_gate or attention.qk_norm_bias:
        refuse(found, "has neither gates per head nor biases in the norms of queries and keys")
    _windows(architecture, found)


def _windows(architecture: Architecture, found: ModelFlags) -> None:
    seen = [
        next((operator.window for operator in layer.operators if isinstance(operator, Attention)), None)
        for layer in architecture.layers
    ]
    widths = {window for window in seen if window is not None}
    if len(widths) > 1:
        refuse(found, f"has one sliding window for all layers, the model has {sorted(widths)}")
    elif widths:
        # Transformer Engine counts the keys to the left of a query; a window of W tokens holds the query itself.
        found.flags["--window-size"] = (f"{widths.pop() - 1},0",)
        if None in seen:
            found.flags["--window-attn-skip-freq"] = (pattern(0 if window is None else 1 for window in seen),)


def _delta_net(architecture: Architecture, mixers: list[Mixer], found: ModelFlags) -> None:
    raw = architecture.details.raw
    names = {
        "--linear-conv-kernel-dim": "linear_conv_kernel_dim",
        "--linear-key-head-dim": "linear_key_head_dim",
        "--linear-value-head-dim": "linear_value_head_dim",
        "--linear-num-key-heads": "linear_num_key_heads",
        "--linear-num-value-heads": "linear_num_value_heads",
    }
    if {mixer.kind for mixer in mixers} != {"gated_delta_net"} or any(name not in raw for name in names.values()):
        refuse(found, f"has no flags for {', '.join(sorted({mixer.kind for mixer in mixers}))} layers in a GPT model")
        return
    found.flags["--experimental-attention-variant"] = ("gated_delta_net",)
    linear = (int(any(isinstance(o, Mixer) for o in layer.operators)) for layer in architecture.layers)
    found.flags["--linear-attention-freq"] = (pattern(linear),)
    for flag, name in names.items():
        found.flags[flag] = (str(raw[name]),)


def _position(architecture: Architecture, longest: int, found: ModelFlags) -> None:
    details, flags = architecture.details, found.flags
    flags["--max-position-embeddings"] = (str(longest),)
    if details.position == "learned":
        flags["--position-embedding-type"] = ("learned_absolute",)
        return
    if details.position == "none":
        flags["--position-embedding-type"] = ("none",)
        return
    if details.position != "rope":
        refuse(found, f"has no {details.position} positions")
        return
    flags["--position-embedding-type"] = ("rope",)
    if details.rotary_base is not None:
        if details.rotary_base != int(details.rotary_base):
            refuse(found, f"takes whole numbers for --rotary-base, not {details.rotary_base}")
        flags["--rotary-base"] = (str(int(details.rotary_base)),)
    if details.rotary_percent not in (None, 1.0):
        flags["--rotary-percent"] = (number(details.rotary_percent or 1.0),)
    _rope_scaling(architecture, found)


def _rope_scaling(architecture: Architecture, found: ModelFlags) -> None:
    flags = found.flags
    scaling = dict(architecture.details.rope_scaling or {})
    kind = str(scaling.get("rope_type", scaling.get("type", "default")))
    latent = "--multi-latent-attention" in flags
    if kind == "yarn":
        if latent:
            flags["--rope-type"] = ("yarn",)
        else:
            flags["--position-embedding-type"] = ("yarn",)
        _yarn(scaling, latent, found)
    elif latent:
        # Fused rotary embedding of latent attention exists for YaRN only (transformer_config.py, apply_rope_fusion).
        flags["--rope-type"] = ("rope",)
        flags["--no-rope-fusion"] = ()
    if kind == "llama3":
        flags["--use-rope-scaling"] = ()
        flags["--rope-scaling-factor"] = (number(float(scaling.get("factor", 8.0))),)
    elif kind not in ("default", "yarn", "None"):
        found.notes.append(f"Megatron-LM has no flag for rope scaling of type {kind}: trained without it")


def _yarn(scaling: dict[str, object], latent: bool, found: ModelFlags) -> None:
    flags = found.flags
    names = {"factor": "--rotary-scaling-factor", "mscale": "--mscale", "mscale_all_dim": "--mscale-all-dim"}
    if not latent:
        names |= {"beta_fast": "--yarn-beta-fast", "beta_slow": "--yarn-beta-slow"}
        original = scaling.get("original_max_position_embeddings")
        if isinstance(original, int):
            flags["--yarn-original-max-position-embeddings"] = (str(original),)
    for name, flag in names.items():
        value = scaling.get(name)
        if isinstance(value, int | float):
            flags[flag] = (number(value),)
    if scaling.get("truncate") is True and not latent:
        flags["--yarn-correction-range-round-to-int"] = ()


def _biases(architecture: Architecture, found: ModelFlags) -> None:
    attention = [o for o in operators(architecture, Attention) if isinstance(o, Attention)]
    dense = [o for o in operators(architecture, DenseMLP) if isinstance(o, DenseMLP)]
    moe = architecture.moe
    linear = {o.output_bias for o in attention} | {o.bias for o in dense} | ({moe.expert_bias} if moe else set())
    query = {o.qkv_bias for o in attention}
    if linear == {True} and query in ({True}, set()):
        if moe is not None and not moe.router_bias:
            found.notes.append("Megatron-Core gives the router a bias wherever linear layers have one")
        return
    if True in linear:
        refuse(found, "gives a bias to all linear layers or to none (but query, key and value), the model to some")
    found.flags["--disable-bias-linear"] = ()
    if query == {True}:
        found.flags["--add-qkv-bias"] = ()
    if moe is not None and moe.router_bias:
        refuse(found, "has no router bias without biases in all linear layers")
    if architecture.head.bias:
        refuse(found, "has no bias in the output head")


def _multipliers(details: ModelDetails, found: ModelFlags) -> None:
    for name, value in (
        ("attention_multiplier", details.attention_multiplier),
        ("embedding_multiplier", details.embedding_multiplier),
        ("residual_multiplier", details.residual_multiplier),
        ("logits_scaling", details.logits_scaling),
    ):
        if value not in (None, 1.0):
            found.notes.append(f"Megatron-LM has no flag for {name}={value}: trained without it")


def _family_ways(architecture: Architecture, found: ModelFlags) -> None:
    """What a family does that neither shapes nor the configuration's common keys tell (its code in transformers)."""
    flags, family = found.flags, architecture.family
    if family in ("llama4", "llama4_text"):
        if architecture.details.raw.get("use_qk_norm"):
            flags["--qk-l2-norm"] = ()
        flags["--moe-apply-probs-on-input"] = ()
        # Layers that attend to everything have no positions, the others attend within chunks.
        seen = [
            next((o.window for o in layer.operators if isinstance(o, Attention)), 0) for layer in architecture.layers
        ]
        if None in seen:
            flags["--no-rope-freq"] = (pattern(int(window is None) for window in seen),)
        found.notes.append("the model attends within chunks; Megatron-LM slides a window of the same width")
    elif family.startswith(("qwen3_next", "qwen3_5")):
        flags["--apply-layernorm-1p"] = ()  # norms scale by 1 + weight
    elif family == "dbrx":
        found.notes.append("the model's LayerNorm has no bias; Megatron-LM's has one, so RMSNorm stands in its place")
