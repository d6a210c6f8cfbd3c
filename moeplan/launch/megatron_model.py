"""The model in Megatron-LM's flags, from its architecture; and what of a model Megatron-Core cannot build.

Flags are those of megatron-core 0.19.2 ``megatron/training/arguments.py``; what they mean is cited where it surprises.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby

from moeplan.launch.refusal import Refusal
from moeplan.model.architecture import Architecture
from moeplan.model.details import ModelDetails
from moeplan.operators.attention import Attention, LatentAttention
from moeplan.operators.indexer import Indexer
from moeplan.operators.mixer import Mixer
from moeplan.operators.mlp import DenseMLP
from moeplan.operators.moe import MoE
from moeplan.operators.norm import Norm

FlagList = dict[str, tuple[str, ...]]

_SILU = ("silu", "swish", None)
_GELU = ("gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast")


@dataclass(frozen=True)
class ModelFlags:
    """A model in Megatron's flags.

    Attributes:
        flags: Flag -> words, in the order to write them.
        refusals: Why Megatron-Core cannot build the model; with any, the flags are not to be used.
        notes: Where Megatron-Core's model differs from the original without changing a shape.
    """

    flags: FlagList
    refusals: list[Refusal]
    notes: list[str] = field(default_factory=list)


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
        flags["--norm-epsilon"] = (_number(architecture.details.norm_epsilon),)
    _biases(architecture, found)
    if not architecture.head.tied:
        flags["--untie-embeddings-and-output-weights"] = ()
    flags["--vocab-size"] = (str(architecture.embedding.vocabulary),)
    flags["--make-vocab-size-divisible-by"] = ("128",)
    if architecture.details.init_std is not None:
        flags["--init-method-std"] = (_number(architecture.details.init_std),)
    flags["--attention-dropout"] = ("0.0",)
    flags["--hidden-dropout"] = ("0.0",)
    _experts(architecture, top_k, found)
    trained = architecture.mtp_layers if mtp_layers is None else mtp_layers
    if trained:
        flags["--mtp-num-layers"] = (str(trained),)
        flags["--mtp-loss-scaling-factor"] = ("0.1",)  # DeepSeek-V3 (arXiv:2412.19437, section 4.2): 0.3, later 0.1
    _multipliers(architecture.details, found)
    return found


def operators(architecture: Architecture, kind: type | tuple[type, ...]) -> list[object]:
    """The distinct operators of a kind over the decoder layers, in order of appearance."""
    return list(
        dict.fromkeys(
            operator for layer in architecture.layers for operator in layer.operators if isinstance(operator, kind)
        )
    )


def _refuse(found: ModelFlags, reason: str) -> None:
    remedy = "use a target that builds the model from its own code (deepspeed, accelerate-fsdp2)"
    found.refusals.append(Refusal(f"Megatron-Core {reason}", remedy))


def _feed_forward(architecture: Architecture, found: ModelFlags) -> None:
    dense = [operator for operator in operators(architecture, DenseMLP) if isinstance(operator, DenseMLP)]
    widths = {mlp.ffn for mlp in dense}
    moe = architecture.moe
    if len(widths) > 1:
        _refuse(found, f"gives all dense layers one width, the model has {sorted(widths)}")
    # Without dense layers the width is not used, but the parser wants one that tensor parallelism divides.
    width = next(iter(widths)) if widths else (moe.expert_ffn if moe else 4 * architecture.hidden)
    found.flags["--ffn-hidden-size"] = (str(width),)
    gated = {mlp.gated for mlp in dense} | ({moe.gated} if moe else set())
    if len(gated) > 1:
        _refuse(found, "makes dense layers and experts alike, either gated or not")
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
        _refuse(found, f"has no flag for a {'gated ' if gated else ''}{name} feed-forward")


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
        _refuse(found, "builds layers of one attention and one feed-forward, the model's layers are different")
    norms = {sum(isinstance(operator, Norm) for operator in layer.operators) for layer in architecture.layers}
    if norms != {2}:
        _refuse(found, f"builds layers with two norms, the model's have {', '.join(map(str, sorted(norms)))}")
    if operators(architecture, Indexer):
        _refuse(found, "has the indexer of sparse attention as an experiment only")
    if latent and not softmax and not mixers and len(latent) == 1:
        _latent(latent[0], found)
    elif softmax and not latent and len({_without_window(attention) for attention in softmax}) == 1:
        _grouped_query(architecture, softmax, found)
        if mixers:
            _delta_net(architecture, mixers, found)
    else:
        kinds = sorted({mixer.kind for mixer in mixers} | {type(o).__name__ for o in [*latent, *softmax]})
        _refuse(found, f"has no flags for layers that differ as these do ({', '.join(kinds)})")


def _without_window(attention: Attention) -> Attention:
    from dataclasses import replace

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
    if attention.attention_bias:
        _refuse(found, "has no biases in latent attention")


def _grouped_query(architecture: Architecture, kinds: list[Attention], found: ModelFlags) -> None:
    flags, attention = found.flags, kinds[0]
    flags["--num-attention-heads"] = (str(attention.heads),)
    if attention.kv_heads != attention.heads:
        flags["--group-query-attention"] = ()
        flags["--num-query-groups"] = (str(attention.kv_heads),)
    flags["--kv-channels"] = (str(attention.head_dim),)
    if attention.v_head_dim != attention.head_dim:
        _refuse(found, f"gives values the width of keys, {attention.head_dim}; the model's are {attention.v_head_dim}")
    if attention.qk_norm == "head":
        flags["--qk-layernorm"] = ()
    elif attention.qk_norm == "full":
        _refuse(found, "normalises queries and keys per head, the model does over all heads at once")
    if attention.sinks:
        flags["--softmax-type"] = ("learnable",)
    if attention.output_gate:
        flags["--attention-output-gate"] = ()
    _windows(architecture, found)


def _windows(architecture: Architecture, found: ModelFlags) -> None:
    seen = [
        next((operator.window for operator in layer.operators if isinstance(operator, Attention)), None)
        for layer in architecture.layers
    ]
    widths = {window for window in seen if window is not None}
    if len(widths) > 1:
        _refuse(found, f"has one sliding window for all layers, the model has {sorted(widths)}")
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
        _refuse(found, f"has no flags for {', '.join(sorted({mixer.kind for mixer in mixers}))} layers in a GPT model")
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
        _refuse(found, f"has no {details.position} positions")
        return
    flags["--position-embedding-type"] = ("rope",)
    if details.rotary_base is not None:
        if details.rotary_base != int(details.rotary_base):
            _refuse(found, f"takes whole numbers for --rotary-base, not {details.rotary_base}")
        flags["--rotary-base"] = (str(int(details.rotary_base)),)
    if details.rotary_percent not in (None, 1.0):
        flags["--rotary-percent"] = (_number(details.rotary_percent or 1.0),)
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
        flags["--rope-scaling-factor"] = (_number(float(scaling.get("factor", 8.0))),)
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
            flags[flag] = (_number(value),)
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
        _refuse(found, "gives a bias to all linear layers or to none (but query, key and value), the model to some")
    found.flags["--disable-bias-linear"] = ()
    if query == {True}:
        found.flags["--add-qkv-bias"] = ()
    if moe is not None and moe.router_bias:
        _refuse(found, "has no router bias without biases in all linear layers")
    if architecture.head.bias:
        _refuse(found, "has no bias in the output head")


def _experts(architecture: Architecture, top_k: int | None, found: ModelFlags) -> None:
    blocks = {layer.moe for layer in architecture.layers if layer.moe is not None}
    if not blocks:
        return
    if len(blocks) > 1:
        _refuse(found, "gives all MoE layers the same experts, the model does not")
    moe, flags, details = next(iter(blocks)), found.flags, architecture.details
    flags["--num-experts"] = (str(moe.experts),)
    placed = [int(layer.moe is not None) for layer in architecture.layers]
    if 0 in placed:
        flags["--moe-layer-freq"] = (pattern(placed),)
    flags["--moe-ffn-hidden-size"] = (str(moe.expert_ffn),)
    if moe.shared is not None:
        flags["--moe-shared-expert-intermediate-size"] = (str(moe.shared.ffn),)
        if moe.shared_gate:
            flags["--moe-shared-expert-gate"] = ()
    if moe.expert_input is not None and moe.expert_input != moe.hidden:
        flags["--moe-latent-size"] = (str(moe.expert_input),)
    if moe.identity_experts:
        _refuse(found, "has no experts without parameters")
    chosen = top_k or moe.top_k
    flags["--moe-router-topk"] = (str(chosen),)
    _router(moe, details, chosen, found)


def _router(moe: MoE, details: ModelDetails, top_k: int, found: ModelFlags) -> None:
    flags = found.flags
    score = details.score_function if details.score_function != "softmax" else moe.score_function
    flags["--moe-router-score-function"] = (score,)
    # Softmax over all experts before the choice, not renormalised, is pre-softmax; renormalised, it equals softmax over
    # the chosen. With one expert per token only the former has a gradient (transformer_config.py).
    if score == "softmax" and (details.normalize_scores is False or top_k == 1):
        flags["--moe-router-pre-softmax"] = ()
    if details.router_groups and details.router_groups > 1 and details.router_group_top_k:
        flags["--moe-router-num-groups"] = (str(details.router_groups),)
        flags["--moe-router-group-topk"] = (str(details.router_group_top_k),)
    if details.routed_scaling not in (None, 1.0):
        flags["--moe-router-topk-scaling-factor"] = (_number(details.routed_scaling or 1.0),)
    flags["--moe-router-dtype"] = ("fp32",)
    if (details.correction_bias or moe.correction_bias) and score != "softmax":
        flags["--moe-router-enable-expert-bias"] = ()
        flags["--moe-router-bias-update-rate"] = ("1e-3",)  # DeepSeek-V3 (arXiv:2412.19437, section 4.2)
        flags["--moe-router-load-balancing-type"] = ("seq_aux_loss",)
        coefficient = 1e-4 if details.aux_loss_coefficient is None else details.aux_loss_coefficient
    else:
        if details.correction_bias or moe.correction_bias:
            found.notes.append(
                "Megatron-Core balances softmax routers by a loss only: the model's expert bias is left out"
            )
        flags["--moe-router-load-balancing-type"] = ("aux_loss",)
        coefficient = 1e-3 if details.aux_loss_coefficient is None else details.aux_loss_coefficient
    flags["--moe-aux-loss-coeff"] = (_number(coefficient),)


def _multipliers(details: ModelDetails, found: ModelFlags) -> None:
    for name, value in (
        ("attention_multiplier", details.attention_multiplier),
        ("embedding_multiplier", details.embedding_multiplier),
        ("residual_multiplier", details.residual_multiplier),
        ("logits_scaling", details.logits_scaling),
    ):
        if value not in (None, 1.0):
            found.notes.append(f"Megatron-LM has no flag for {name}={value}: trained without it")


def pattern(bits: Iterable[int]) -> str:
    """Zeros and ones per layer as the list expression that Megatron evaluates, e.g. ``([0]*3+[1]*58)``."""
    runs = [(bit, len(list(run))) for bit, run in groupby(bits)]
    # A short period repeated is easier on the eye: [1,0]*18.
    whole = [bit for bit, length in runs for _ in range(length)]
    for period in range(2, len(whole) // 2 + 1):
        if len(whole) % period == 0 and whole[:period] * (len(whole) // period) == whole and len(runs) > 3:
            return f"([{','.join(map(str, whole[:period]))}]*{len(whole) // period})"
    return "(" + "+".join(f"[{bit}]*{length}" for bit, length in runs) + ")"


def _number(value: float) -> str:
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)
