"""Mixture-of-Experts families with grouped-query attention and softmax routing.

Each reader states what the family's class in transformers (5.23, ``models/<family>/modeling_*.py``) builds.
"""

from __future__ import annotations

from dataclasses import replace

from moeplan.model.architecture import Architecture, Layer
from moeplan.model.families.common import (
    biases,
    check_groups,
    decoder,
    dense_mlp,
    depth,
    details,
    family,
    grouped_attention,
    hidden_size,
    layer_types,
    mixture,
    plain_layer,
    shared_block,
    windows,
)
from moeplan.model.fields import MOST_LAYERS, Fields
from moeplan.operators.attention import Attention
from moeplan.operators.embedding import Embedding, Head
from moeplan.operators.moe import MoE
from moeplan.operators.norm import Norm


@family("mixtral")
def mixtral(f: Fields) -> Architecture:
    """Every layer is MoE; ``intermediate_size`` is the expert width."""
    norm = Norm(hidden_size(f))
    attention = grouped_attention(f, window=f.integer("sliding_window", default=None))
    layer = plain_layer(norm, attention, mixture(f, "intermediate_size"))
    return decoder(f, [layer] * depth(f))


@family("olmoe")
def olmoe(f: Fields) -> Architecture:
    """Pre-norm, query/key norms over the full width."""
    bias = biases(f)
    attention = grouped_attention(f, kv_heads="heads", bias=bias, qk_norm="full")
    layer = plain_layer(Norm(hidden_size(f)), attention, mixture(f, "intermediate_size"))
    return decoder(f, [layer] * depth(f))


@family("flex_olmo")
def flex_olmo(f: Fields) -> Architecture:
    """OLMoE's block with the norms behind attention and experts."""
    norm = Norm(hidden_size(f))
    bias = biases(f)
    attention = grouped_attention(f, kv_heads="heads", bias=bias, qk_norm="full")
    layer = Layer((attention, norm, mixture(f, "intermediate_size"), norm))
    return decoder(f, [layer] * depth(f))


@family("phimoe")
def phimoe(f: Fields) -> Architecture:
    """LayerNorm with bias, biases on all attention projections and on the head, sparse-mixer routing."""
    norm = Norm(hidden_size(f), bias=True)
    bias = biases(f)
    attention = grouped_attention(f, bias=bias, window=f.integer("sliding_window", default=None))
    layer = plain_layer(norm, attention, mixture(f, "intermediate_size"))
    return decoder(f, [layer] * depth(f), norm=norm, head_bias=f.flag("lm_head_bias", default=False))


def interleaved_sparse(f: Fields, layers: int) -> list[bool]:
    """Qwen's rule: every ``decoder_sparse_step``-th layer, but those in ``mlp_only_layers``."""
    step = f.integer("decoder_sparse_step", default=1)
    dense = set(f.integers("mlp_only_layers", default=[]))
    return [index not in dense and (index + 1) % step == 0 for index in range(layers)]


def qwen_windows(f: Fields, layers: int, sliding: str) -> list[int | None]:
    """Qwen's windows: off unless ``use_sliding_window``; otherwise the family's rule of which layers slide."""
    last = f.integer("max_window_layers", default=layers, least=0)
    if not f.flag("use_sliding_window", default=False):
        f.ignore("sliding_window", "layer_types")
        return [None] * layers
    rules = {
        "before": lambda index: (index + 1) % 2 == 1 and index < last,
        "after": lambda index: index >= last,
        "all": lambda index: True,
    }
    return windows(f, layers, rules[sliding])


@family("qwen2_moe")
def qwen2_moe(f: Fields) -> Architecture:
    """Biases on query, key and value; one gated shared expert of absolute width."""
    layers = depth(f)
    norm = Norm(hidden_size(f))
    attention = grouped_attention(f, bias=biases(f, default=True, on="qkv", key="qkv_bias"))
    width = f.integer("shared_expert_intermediate_size")
    moe = mixture(f, "moe_intermediate_size", shared=shared_block(f, width), shared_gate=True)
    sparse = interleaved_sparse(f, layers)
    dense = moe if all(sparse) else dense_mlp(f)
    f.ignore("intermediate_size")
    spans = qwen_windows(f, layers, "before")
    return decoder(
        f,
        [
            plain_layer(norm, replace(attention, window=span), moe if is_sparse else dense)
            for span, is_sparse in zip(spans, sparse, strict=True)
        ],
    )


@family("qwen3_moe", "qwen3_vl_moe_text")
def qwen3_moe(f: Fields) -> Architecture:
    """Query/key norms over each head, no shared expert."""
    layers = depth(f)
    norm = Norm(hidden_size(f))
    bias = biases(f)
    attention = grouped_attention(f, bias=bias, qk_norm="head")
    moe = mixture(f, "moe_intermediate_size")
    sparse = interleaved_sparse(f, layers)
    dense = moe if all(sparse) else dense_mlp(f)
    f.ignore("intermediate_size")
    spans = qwen_windows(f, layers, "all")
    return decoder(
        f,
        [
            plain_layer(norm, replace(attention, window=span), moe if is_sparse else dense)
            for span, is_sparse in zip(spans, sparse, strict=True)
        ],
    )


@family("gpt_oss")
def gpt_oss(f: Fields) -> Architecture:
    """Biases everywhere (projections, router, experts), one sink per head, windows on alternate layers."""
    layers = depth(f)
    norm = Norm(hidden_size(f))
    bias = biases(f, default=True)
    attention = grouped_attention(f, head_dim=64, bias=bias, sinks=True)
    moe = mixture(f, "intermediate_size", router_bias=True, expert_bias=True)
    spans = windows(f, layers, lambda index: index % 2 == 0)
    f.ignore("experts_per_token", "initial_context_length", "swiglu_alpha", "swiglu_limit")
    return decoder(f, [plain_layer(norm, replace(attention, window=span), moe) for span in spans])


@family("granitemoe", "granitemoeshared")
def granitemoe(f: Fields) -> Architecture:
    """Every layer is MoE, with a shared expert where the width says so."""
    bias = biases(f)
    attention = grouped_attention(f, kv_heads="heads", bias=bias)
    shared = shared_block(f, f.integer("shared_intermediate_size", default=0, least=0))
    layer = plain_layer(Norm(hidden_size(f)), attention, mixture(f, "intermediate_size", shared=shared))
    return decoder(f, [layer] * depth(f))


@family("hunyuan_v1_moe")
def hunyuan_v1_moe(f: Fields) -> Architecture:
    """Query/key norms over each head, always one shared expert of the experts' width."""
    layers = depth(f)
    bias = biases(f)
    attention = grouped_attention(f, kv_heads="heads", bias=bias, qk_norm="head")
    experts = f.integer("num_experts", "num_local_experts")
    width = f.integer("intermediate_size")
    # The class knows one width and one shared expert; the original files repeat them per layer.
    for key, value in (("moe_intermediate_size", width), ("num_shared_expert", 1)):
        stated = f.raw(key, default=value)
        if any(entry != value for entry in (stated if isinstance(stated, list) else [stated])):
            raise f.error(key, f"{stated!r} is not what the family's class builds", f"only {value} is understood")
    f.fixed("moe_layer_num_skipped", 0, "is not what the family's class builds")
    f.fixed("attention_head_dim", attention.head_dim, "contradicts head_dim")
    f.ignore(
        "org_vocab_size", "cla_share_factor", "mask_init_id", "norm_type", "pool_type", "position_embedding_xdrope"
    )
    f.ignore("use_mixed_mlp_moe", "use_qk_norm", "use_rotary_pos_emb", "class_num", "dense_list", "num_media_embeds")
    f.ignore("anyres_pooling_size", "im_newline_id", "mlp_bias", "moe_drop_tokens", "group_limited_greedy")
    shared = shared_block(f, width)
    top_k = f.raw("moe_topk", "num_experts_per_tok")
    each = top_k if isinstance(top_k, list) else [top_k] * layers
    if len(each) != layers:
        raise f.error("moe_topk", f"has {len(each)} entries", f"give one for each of the {layers} layers")
    moes = [
        MoE(attention.hidden, experts, f.check_integer("moe_topk", k, most=experts), width, shared=shared) for k in each
    ]
    norm = Norm(attention.hidden)
    return decoder(f, [plain_layer(norm, attention, moe) for moe in moes])


@family("ernie4_5_moe")
def ernie4_5_moe(f: Fields) -> Architecture:
    """The router's score bias is a parameter here; dense layers around a span of MoE layers."""
    layers = depth(f)
    hidden = hidden_size(f)
    bias = f.flag("use_bias", default=False)
    attention = grouped_attention(f, bias="all" if bias else "none")
    inner = f.integer("moe_intermediate_size")
    shared = shared_block(f, inner * f.integer("moe_num_shared_experts", default=2, least=0), bias=bias)
    moe = mixture(f, "moe_intermediate_size", shared=shared, correction_bias=True)
    start = f.integer("moe_layer_start_index", default=1, least=0, most=MOST_LAYERS)
    end = f.integer("moe_layer_end_index", default=-1, least=-1, most=MOST_LAYERS)
    interval = f.integer("moe_layer_interval", default=1)
    end = layers - 1 if end == -1 else end
    sparse = [(i + 1) % interval == 0 and start <= i <= end for i in range(layers)]
    dense = dense_mlp(f, bias=bias)
    norm = Norm(hidden)
    f.ignore("moe_norm_min", "moe_capacity", "moe_gate", "moe_use_aux_free", "compression_ratio")
    return decoder(
        f,
        [plain_layer(norm, attention, moe if is_sparse else dense) for is_sparse in sparse],
        tied=True,
        head_bias=bias,
        correction_bias=True,
        prediction=True,
        # Its prediction depth is a dense layer (vLLM, ernie_mtp).
        predicted=plain_layer(norm, attention, dense),
    )


@family("llama4_text")
def llama4(f: Fields) -> Architecture:
    """One shared expert always; dense layers between MoE layers have a width of their own; chunked attention."""
    layers = depth(f)
    norm = Norm(hidden_size(f))
    bias = biases(f)
    attention = grouped_attention(f, head_dim=128, bias=bias)
    f.ignore("use_qk_norm")  # an L2 norm without weights
    moe = mixture(
        f, "intermediate_size", score_function="sigmoid", shared=shared_block(f, f.integer("intermediate_size"))
    )
    step = f.integer("interleave_moe_layer_step", default=1)
    sparse = set(f.integers("moe_layers", default=list(range(step - 1, layers, step))))
    no_rope_step = f.integer("no_rope_layer_interval", default=4)
    no_rope = f.integers("no_rope_layers", default=[]) or [int((i + 1) % no_rope_step != 0) for i in range(layers)]
    if len(no_rope) != layers:
        raise f.error("no_rope_layers", f"has {len(no_rope)} entries", f"give one for each of the {layers} layers")
    known = ("chunked_attention", "full_attention")
    kinds = layer_types(f, layers, known, lambda index: known[0] if no_rope[index] else known[1])
    chunk = f.integer("attention_chunk_size", default=8192)
    dense = dense_mlp(f, "intermediate_size_mlp") if len(sparse) < layers else moe
    f.ignore("intermediate_size_mlp")
    return decoder(
        f,
        [
            plain_layer(
                norm,
                replace(attention, window=chunk if kind == "chunked_attention" else None),
                moe if index in sparse else dense,
            )
            for index, kind in enumerate(kinds)
        ],
        score_function="sigmoid",
    )


@family("dbrx")
def dbrx(f: Fields) -> Architecture:
    """Nested attention and feed-forward mappings; LayerNorm without bias."""
    hidden = f.integer("d_model", "hidden_size")
    heads = f.integer("n_heads", "num_attention_heads")
    attention_config, ffn_config = f.section("attn_config"), f.section("ffn_config")
    kv_heads = attention_config.integer("kv_n_heads")
    if f.integer("num_key_value_heads", default=kv_heads) != kv_heads:
        raise f.error("num_key_value_heads", f"contradicts attn_config.kv_n_heads = {kv_heads}", "keep one of them")
    check_groups(attention_config, heads, kv_heads)
    attention = Attention(hidden, heads, kv_heads, hidden // heads, hidden // heads)
    experts = ffn_config.integer("moe_num_experts")
    moe = MoE(
        hidden,
        experts,
        ffn_config.integer("moe_top_k", most=experts),
        expert_ffn=ffn_config.integer("ffn_hidden_size"),
    )
    if f.flag("tie_word_embeddings", default=False):
        raise f.error("tie_word_embeddings", "transformers' DBRX cannot tie embeddings", "set it to false")
    norm = Norm(hidden)
    vocabulary = f.integer("vocab_size")
    layer = plain_layer(norm, attention, moe)
    return Architecture(
        "",
        "",
        Embedding(vocabulary, hidden),
        (layer,) * f.integer("n_layers", "num_hidden_layers", most=MOST_LAYERS),
        norm,
        Head(vocabulary, hidden),
        max_sequence_length=f.integer("max_seq_len", "max_position_embeddings", default=None),
        details=details(f),
    )
