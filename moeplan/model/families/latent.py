"""Families with multi-head latent attention."""

from __future__ import annotations

from moeplan.model.architecture import Architecture, Layer
from moeplan.model.families.common import (
    decoder,
    dense_mlp,
    depth,
    family,
    hidden_size,
    latent_attention,
    mixture,
    plain_layer,
    shared_block,
    sparse_after,
)
from moeplan.model.fields import MOST_LAYERS, Fields
from moeplan.operators.indexer import Indexer
from moeplan.operators.moe import MoE
from moeplan.operators.norm import Norm


def deepseek_moe(f: Fields, **features: object) -> MoE:
    """Routed experts and ``n_shared_experts`` times their width fused in one shared block."""
    bias = bool(features.pop("shared_bias", False))
    # Absent, the classes would take their own default: the number must be stated, 0 for none.
    shared = f.integer("n_shared_experts", "num_shared_experts", least=0)
    block = shared_block(f, shared * f.integer("moe_intermediate_size"), bias=bias)
    return mixture(f, "moe_intermediate_size", **({"shared": block} | features))


@family("deepseek_v2")
def deepseek_v2(f: Fields) -> Architecture:
    """Latent attention, softmax scores, first layers dense."""
    attention = latent_attention(f, saved=True)
    bias = f.flag("mlp_bias", default=False)
    moe = deepseek_moe(f, shared_bias=bias)
    dense = dense_mlp(f, bias=bias)
    norm = Norm(hidden_size(f))
    sparse = sparse_after(f, depth(f), "first_k_dense_replace")
    return decoder(f, [plain_layer(norm, attention, moe if is_sparse else dense) for is_sparse in sparse])


@family("deepseek_v3", "kimi_k2")
def deepseek_v3(f: Fields) -> Architecture:
    """Latent attention, sigmoid scores with a correction buffer, multi-token prediction."""
    attention = latent_attention(f, saved=True)
    moe = deepseek_moe(f, score_function="sigmoid")
    dense = dense_mlp(f)
    norm = Norm(hidden_size(f))
    sparse = sparse_after(f, depth(f), "first_k_dense_replace")
    layers = [plain_layer(norm, attention, moe if is_sparse else dense) for is_sparse in sparse]
    return decoder(f, layers, prediction=True, score_function="sigmoid", correction_bias=True)


def indexed(f: Fields, prediction: bool) -> Architecture:
    """Sparse attention over latents: an indexer per layer, or one for several where ``indexer_types`` says."""
    layers = depth(f)
    f.ignore("layer_types", "attention_type")
    attention = latent_attention(f, window=f.integer("index_topk"))
    if attention.q_lora_rank is None:
        raise f.error("q_lora_rank", "is missing", "the indexer reads the query compression")
    index = Indexer(
        attention.hidden,
        attention.q_lora_rank,
        f.integer("index_n_heads"),
        f.integer("index_head_dim"),
        f.integer("index_topk"),
    )
    moe = deepseek_moe(f, score_function="sigmoid")
    dense = dense_mlp(f)
    f.ignore("mlp_bias")  # the classes build their blocks without biases whatever it says
    norm = Norm(attention.hidden)
    sparse = sparse_after(f, layers, "first_k_dense_replace", default=3)
    kinds = f.sequence("indexer_types", default=["full"] * layers, length=layers)
    for kind in kinds:
        if kind not in ("full", "shared"):
            raise f.error("indexer_types", f"{kind!r} is not understood", "give 'full' or 'shared'")
    return decoder(
        f,
        [
            Layer((norm, *((index,) if kind == "full" else ()), attention, norm, moe if is_sparse else dense))
            for kind, is_sparse in zip(kinds, sparse, strict=True)
        ],
        prediction=prediction,
        score_function="sigmoid",
        correction_bias=True,
    )


@family("deepseek_v32")
def deepseek_v32(f: Fields) -> Architecture:
    """DeepSeek-V3 with an indexer in every layer."""
    return indexed(f, prediction=True)


@family("glm_moe_dsa")
def glm_moe_dsa(f: Fields) -> Architecture:
    """GLM-5: DeepSeek-V3.2's block; some layers reuse the selection of an earlier one."""
    layers = depth(f)
    frequency = f.integer("index_topk_freq", default=1)
    if frequency > 1 and f.raw("indexer_types", default=None) is None:
        raise f.error(
            "index_topk_freq", f"{frequency} needs indexer_types", f"list one kind for each of {layers} layers"
        )
    f.ignore("index_skip_topk_offset")
    return indexed(f, prediction=True)


@family("glm4_moe_lite")
def glm4_moe_lite(f: Fields) -> Architecture:
    """GLM-4.7-Flash: DeepSeek-V3's block, first layer dense."""
    attention = latent_attention(f)
    moe, dense, norm = deepseek_moe(f, score_function="sigmoid"), dense_mlp(f), Norm(hidden_size(f))
    sparse = sparse_after(f, depth(f), "first_k_dense_replace", default=1)
    layers = [plain_layer(norm, attention, moe if is_sparse else dense) for is_sparse in sparse]
    return decoder(f, layers, prediction=True, score_function="sigmoid", correction_bias=True)


@family("axk1")
def axk1(f: Fields) -> Architecture:
    """DeepSeek-V3's block with one more norm behind the experts."""
    attention = latent_attention(f)
    moe, dense, norm = deepseek_moe(f, score_function="sigmoid"), dense_mlp(f), Norm(hidden_size(f))
    sparse = sparse_after(f, depth(f), "first_k_dense_replace", default=1)
    layers = [
        Layer((norm, attention, norm, moe, norm) if is_sparse else (norm, attention, norm, dense))
        for is_sparse in sparse
    ]
    return decoder(f, layers, score_function="sigmoid", correction_bias=True)


@family("longcat_flash")
def longcat_flash(f: Fields) -> Architecture:
    """A layer holds two attentions and two dense blocks; the MoE block bypasses the second half (shortcut-connected).

    Top-k also chooses among identity experts. transformers' class allocates rows for them in one of its tensors; they
    hold no parameters and are not counted here.
    """
    layers = int(f.integer("num_layers", most=MOST_LAYERS))
    if f.integer("num_hidden_layers", default=2 * layers) not in (layers, 2 * layers):
        raise f.error("num_hidden_layers", f"contradicts num_layers = {layers}", "remove it")
    attention = latent_attention(f)
    # One spelling may stand beside the other in files saved by transformers 5.
    moe = mixture(
        f,
        "expert_ffn_hidden_size",
        "moe_intermediate_size",
        identity_experts=f.integer("zero_expert_num", default=256, least=0),
        router_bias=f.flag("router_bias", default=False),
    )
    f.ignore("zero_expert_type", "mla_scale_q_lora", "mla_scale_kv_lora", "attention_method")
    dense = dense_mlp(f, "ffn_hidden_size", "intermediate_size")
    norm = Norm(attention.hidden)
    layer = Layer((norm, attention, norm, moe, dense, norm, attention, norm, dense))
    # Its prediction depth is a dense layer with one attention (SGLang, longcat_flash_nextn.py).
    predicted = plain_layer(norm, attention, dense)
    return decoder(f, [layer] * layers, prediction=True, predicted=predicted, correction_bias=True)


@family("youtu", "minicpm3")
def dense_latent(f: Fields) -> Architecture:
    """Latent attention with a dense feed-forward in every layer."""
    tied = True
    bias = f.flag("mlp_bias", default=False) if f.mapping.get("model_type") == "minicpm3" else False
    f.ignore("scale_emb", "scale_depth", "dim_model_base", "embedding_initializer_range")
    layer = plain_layer(Norm(hidden_size(f)), latent_attention(f), dense_mlp(f, bias=bias))
    return decoder(f, [layer] * depth(f), tied=tied)
