"""Megatron-LM's model arguments as moeplan's architecture document (see ``model/document.py``).

Every default is that of Megatron's own parser and ``validate_args`` (megatron/training/arguments.py, core 0.19.2).
"""

from __future__ import annotations

import math
import re
from typing import Any

from moeplan.errors import PlanError
from moeplan.importers.megatron_flags import Flags
from moeplan.importers.megatron_unused import OBSOLETE, REFUSED

# Tokens in well-known vocabularies. GPT2BPETokenizer is what pretrain_gpt.py takes when no tokenizer is named
# (args_defaults); its file holds 50,257 tokens. A TikTokenizer without --vocab-size is cut to 2^17
# (megatron/core/tokenizers/text/libraries/tiktoken_tokenizer.py). The rest are the lengths of the published tokenizers.
_VOCABULARIES = {
    "GPT2BPETokenizer": 50257,
    "TikTokenizer": 1 << 17,
    "Llama2Tokenizer": 32000,
}
_VOCABULARY_OF_MODEL = (
    (r"nemotron_2_256k", 256000),
    (r"deepseek-v[23]|deepseek-r1", 128815),
    (r"(meta-)?llama-3|llama3", 128256),
    (r"llama-?2|mi[sx]tral-(7b|8x7b)", 32000),
    (r"mixtral-8x22b", 32768),
    (r"qwen3", 151669),
    (r"qwen(2|1)", 151646),
    (r"gpt-oss|o200k_harmony", 200019),
    (r"gpt2", 50257),
)
_MAX_LAYERS = 10_000


def architecture_document(flags: Flags, vocabulary: int | None = None) -> dict[str, Any]:
    """The architecture document that the arguments describe.

    Args:
        flags: The arguments; those that are used are marked as read.
        vocabulary: Vocabulary that the user gives, in place of the tokenizer's.

    Raises:
        PlanError: A required argument is missing, malformed, or asks for a model that has no counted shape.
    """
    for name, why in REFUSED.items():
        if name in flags.values:
            raise PlanError(flags.where, f"--{name}: {why}", "moeplan cannot count such a model")
    for name, instead in OBSOLETE.items():
        if name in flags.values:
            raise PlanError(flags.where, f"Megatron-LM no longer takes --{name}", f"use {instead}")
    layers = _layers(flags)
    hidden = flags.required("hidden-size")
    heads = flags.required("num-attention-heads")
    gated = flags.has("swiglu", "quick-geglu")
    has_experts = bool(flags.integer("num-experts"))
    document: dict[str, Any] = {
        "architecture": "decoder",
        "hidden_size": hidden,
        "layers": layers,
        "vocabulary": _vocabulary(flags, vocabulary),
        "heads": heads,
        "gated": gated,
        "activation": _activation(flags),
        "linear_bias": not flags.has("disable-bias-linear"),
        "norm": flags.choice("normalization", ("LayerNorm", "RMSNorm"), "LayerNorm").lower(),
        "norm_epsilon": flags.number("norm-epsilon", 1e-5),
        "init_std": flags.number("init-method-std", 0.02),
        "tied_embeddings": not flags.has("untie-embeddings-and-output-weights"),
    }
    ffn = flags.integer("ffn-hidden-size")
    if ffn is None:
        # validate_args: two thirds of 4h in multiples of 64 for SwiGLU (and for nothing else), else 4h.
        swiglu = flags.has("swiglu")
        ffn = int((4 * hidden * 2 / 3) / 64) * 64 if swiglu else 4 * hidden
    document["ffn"] = ffn
    document |= _positions(flags)
    document |= _attention(flags, layers, hidden, heads)
    if has_experts:
        document["moe"] = _moe(flags, ffn, layers)
    document |= _hybrid(flags, hidden)
    prediction = flags.integer("mtp-num-layers", 0) or 0
    if prediction:
        document["mtp_layers"] = prediction
    return document


def eval_pattern(flags: Flags, name: str, text: str) -> list[int] | int:
    """A layer pattern such as ``([0]*3+[1]*11)``, or a frequency; evaluated without running it.

    Raises:
        PlanError: It is neither.
    """
    compact = text.replace(" ", "")
    if re.fullmatch(r"\d{1,6}", compact):
        return int(compact)
    if not re.fullmatch(r"[\d,\[\]()+*]{1,4096}", compact):
        raise PlanError(flags.where, f"--{name} is {text[:60]!r}", "write it like '([0]*3+[1]*11)' or a number")
    value, rest = _sum(flags, name, compact)
    if rest or isinstance(value, int):
        raise PlanError(flags.where, f"--{name} {text[:60]!r} is no list", "write it like '([0]*3+[1]*11)'")
    return value


def _sum(flags: Flags, name: str, text: str) -> tuple[list[int] | int, str]:
    total, rest = _product(flags, name, text)
    while rest.startswith("+"):
        value, rest = _product(flags, name, rest[1:])
        if isinstance(total, list) and isinstance(value, list):
            _check_length(flags, name, len(total) + len(value))
            total = total + value
        elif isinstance(total, int) and isinstance(value, int):
            total += value
        else:
            raise PlanError(flags.where, f"--{name} adds a list and a number", "write it like '([0]*3+[1]*11)'")
    return total, rest


def _product(flags: Flags, name: str, text: str) -> tuple[list[int] | int, str]:
    total, rest = _atom(flags, name, text)
    while rest.startswith("*"):
        value, rest = _atom(flags, name, rest[1:])
        if isinstance(total, list) and isinstance(value, list):
            raise PlanError(flags.where, f"--{name} multiplies two lists", "write it like '([0]*3+[1]*11)'")
        if isinstance(total, int) and isinstance(value, int):
            total = min(total * value, 1 << 31)
        elif isinstance(total, list) and isinstance(value, int):
            _check_length(flags, name, len(total) * value)
            total = total * value
        elif isinstance(total, int) and isinstance(value, list):
            _check_length(flags, name, len(value) * total)
            total = value * total
    return total, rest


def _atom(flags: Flags, name: str, text: str) -> tuple[list[int] | int, str]:
    error = PlanError(flags.where, f"--{name} cannot be read at {text[:20]!r}", "write it like '([0]*3+[1]*11)'")
    if match := re.match(r"\d{1,9}", text):
        return int(match.group()), text[match.end() :]
    if match := re.match(r"\[((?:\d{1,9},?)*)\]", text):
        return [int(item) for item in match.group(1).split(",") if item], text[match.end() :]
    # Each bracket takes at least one character, and the text is short: the depth is bounded.
    if text.startswith("(") and len(text) < 4096 and not text.startswith("(" * 50):
        value, rest = _sum(flags, name, text[1:])
        if rest.startswith(")"):
            return value, rest[1:]
    raise error


def _check_length(flags: Flags, name: str, length: int) -> None:
    if length > _MAX_LAYERS:
        raise PlanError(flags.where, f"--{name} names more than {_MAX_LAYERS} layers", "is it the right value?")


def _layers(flags: Flags) -> int:
    pattern = _pattern(flags)
    if pattern is not None:
        flags.has("num-layers")
        return len(pattern)
    return flags.required("num-layers", "encoder-num-layers")


def _vocabulary(flags: Flags, given: int | None) -> int:
    # Pai-Megatron-Patch names its tokenizers beside Megatron's.
    named = next((name for name in ("tokenizer-type", "patch-tokenizer-type") if name in flags.values), None)
    tokenizer = flags.text(named) if named is not None else None
    divisor = flags.count("make-vocab-size-divisible-by", 128)
    padded = flags.integer("padded-vocab-size")
    size = given or padded or flags.integer("vocab-size")
    if size is None:
        size = _tokenizer_vocabulary(flags, tokenizer)
    if size < 1:
        raise PlanError(flags.where, f"--vocab-size is {size}", "give a whole number above 0")
    if padded is not None or divisor == 128 or flags.has("no-pad-vocab-size", "disable-pad-vocab-size"):
        return size
    # The plan pads to multiples of 128 * tp, Megatron's default; another divisor is written out here
    # (megatron/training/vocab_utils.py, calculate_padded_vocab_size).
    multiple = divisor * flags.count("tensor-model-parallel-size", 1)
    return math.ceil(size / multiple) * multiple


def _tokenizer_vocabulary(flags: Flags, tokenizer: str | None) -> int:
    flags.has("tokenizer-model", "vocab-file", "merge-file")
    model = " ".join(flags.values.get("tokenizer-model", ()))
    for pattern, size in _VOCABULARY_OF_MODEL:
        if re.search(pattern, model, re.IGNORECASE):
            flags.assumptions.append(
                f"vocabulary of {size:,} tokens: the published tokenizer {model.rsplit('/', 1)[-1]!r}"
            )
            return size
    name = tokenizer or "GPT2BPETokenizer"
    if name in _VOCABULARIES:
        flags.assumptions.append(f"vocabulary of {_VOCABULARIES[name]:,} tokens: {name}'s own; --vocabulary changes it")
        return _VOCABULARIES[name]
    raise PlanError(flags.where, f"the size of the vocabulary of {name} is not in the file", "pass --vocabulary N")


def _activation(flags: Flags) -> str:
    names = {"swiglu": "silu", "quick-geglu": "quick_gelu", "squared-relu": "relu2", "openai-gelu": "gelu_new"}
    chosen = [name for name in names if flags.has(name)]
    if len(chosen) > 1:
        raise PlanError(flags.where, f"--{chosen[0]} and --{chosen[1]} exclude each other", "keep one")
    return names[chosen[0]] if chosen else "gelu"


def _positions(flags: Flags) -> dict[str, Any]:
    kinds = ("learned_absolute", "rope", "yarn", "mrope", "relative", "none")
    kind = flags.choice("position-embedding-type", kinds, "learned_absolute")
    if flags.has("use-rotary-position-embeddings"):
        kind = "rope"
    if kind == "relative":
        raise PlanError(flags.where, "--position-embedding-type relative has no counted shape", "use rope")
    longest = flags.integer("max-position-embeddings") or flags.required("seq-length", "encoder-seq-length")
    flags.has("no-position-embedding")
    if kind == "none" or (kind == "learned_absolute" and flags.has("no-position-embedding")):
        return {"position": "none", "max_sequence_length": longest}
    if kind == "learned_absolute":
        return {"position": "learned", "learned_positions": longest, "max_sequence_length": longest}
    found: dict[str, Any] = {
        "position": "rope",
        "max_sequence_length": longest,
        "rotary_base": flags.number("rotary-base", 10000.0),
        "rotary_percent": flags.number("rotary-percent", 1.0),
    }
    factor = flags.number("rotary-scaling-factor", 1.0)
    if factor != 1.0:
        found["rope_scaling"] = {"type": "yarn", "factor": factor}
    return found


def _attention(flags: Flags, layers: int, hidden: int, heads: int) -> dict[str, Any]:
    if flags.has("multi-latent-attention"):
        if not flags.has("qk-layernorm"):
            flags.lose("qk-layernorm", "latent attention always has its two small norms", value="(absent)")
        flags.has("kv-channels", "group-query-attention", "num-query-groups")
        return {
            "latent_attention": {
                "q_lora_rank": flags.integer("q-lora-rank"),
                "kv_lora_rank": flags.count("kv-lora-rank", 32),
                "qk_nope_head_dim": flags.count("qk-head-dim", 128),
                "qk_rope_head_dim": flags.count("qk-pos-emb-head-dim", 64),
                "v_head_dim": flags.count("v-head-dim", 128),
            }
        }
    channels = flags.integer("kv-channels")
    if channels is None and hidden % heads:
        raise PlanError(
            flags.where, f"--num-attention-heads {heads} does not divide --hidden-size {hidden}", "add --kv-channels"
        )
    groups = flags.count("num-query-groups", 1)
    found: dict[str, Any] = {
        "kv_heads": groups if flags.has("group-query-attention") else heads,
        "head_dim": channels or hidden // heads,
    }
    if flags.has("add-qkv-bias"):
        found["qkv_bias"] = True
    if flags.has("qk-layernorm"):
        found["qk_norm"] = "head"
    if flags.has("attention-output-gate"):
        found["output_gate"] = True
    if flags.choice("softmax-type", ("vanilla", "off-by-one", "learnable"), "vanilla") == "learnable":
        found["sinks"] = True
    return found | _window(flags, layers)


def _window(flags: Flags, layers: int) -> dict[str, Any]:
    size = flags.words("window-size")
    if not size:
        return {}
    left = size[0].strip("()")
    if not re.fullmatch(r"\d{1,9}", left):
        raise PlanError(flags.where, f"--window-size is {' '.join(size)[:60]!r}", "write it like '(128,0)'")
    # Transformer Engine counts the keys to the left of a query; a window holds the query itself too.
    found: dict[str, Any] = {"window": int(left) + 1}
    text = flags.text("window-attn-skip-freq")
    if text is not None:
        frequency = eval_pattern(flags, "window-attn-skip-freq", text)
        # is_layer_window_attention (megatron/core/transformer/utils.py): layers count from 1, every N-th sees all.
        marks = (
            [int((layer + 1) % frequency != 0) for layer in range(layers)] if isinstance(frequency, int) else frequency
        )
        if len(marks) != layers:
            raise PlanError(flags.where, f"--window-attn-skip-freq names {len(marks)} layers, the model has {layers}")
        found["window_layers"] = marks
    return found


def _moe(flags: Flags, ffn: int, layers: int) -> dict[str, Any]:
    score = flags.choice("moe-router-score-function", ("softmax", "sigmoid", "sqrtsoftplus"), "softmax")
    if score == "sqrtsoftplus":
        flags.lose("moe-router-score-function", "an architecture document has softmax and sigmoid")
        score = "sigmoid"
    frequency = eval_pattern(flags, "moe-layer-freq", flags.text("moe-layer-freq", "1") or "1")
    if isinstance(frequency, list) and len(frequency) != layers:
        raise PlanError(flags.where, f"--moe-layer-freq names {len(frequency)} layers, the model has {layers}")
    if frequency == 0:
        raise PlanError(flags.where, "--moe-layer-freq is 0", "give a whole number above 0")
    top_k = flags.count("moe-router-topk", 2)
    # Scores over the chosen experts add up to one, unless softmax ran over all of them before
    # (megatron/core/transformer/moe/moe_utils.py, topk_routing_with_score_function).
    normalized = not flags.has("moe-router-pre-softmax") or score == "sigmoid"
    found: dict[str, Any] = {
        "experts": flags.count("num-experts", 1),
        "top_k": top_k,
        "ffn": flags.integer("moe-ffn-hidden-size") or ffn,
        "layers": frequency,
        "score_function": score,
        "normalize_scores": normalized,
    }
    shared = flags.integer("moe-shared-expert-intermediate-size")
    if shared:
        found["shared_ffn"] = shared
    if not flags.has("disable-bias-linear"):
        # TopKRouter has a bias wherever linear layers do (megatron/core/transformer/moe/router.py).
        found["router_bias"] = True
    for key, name in (("shared_gate", "moe-shared-expert-gate"), ("correction_bias", "moe-router-enable-expert-bias")):
        if flags.has(name):
            found[key] = True
    for key, name in (
        ("latent_size", "moe-latent-size"),
        ("groups", "moe-router-num-groups"),
        ("group_top_k", "moe-router-group-topk"),
    ):
        value = flags.integer(name)
        if value is not None:
            found[key] = value
    for key, name in (
        ("routed_scaling", "moe-router-topk-scaling-factor"),
        ("aux_loss_coefficient", "moe-aux-loss-coeff"),
    ):
        number = flags.number(name, 0.0)
        if number:
            found[key] = number
    if not flags.has("moe-grouped-gemm"):
        flags.lose("moe-grouped-gemm", "the plan runs experts as grouped GEMMs, not one by one", value="(absent)")
    return found


def _pattern(flags: Flags) -> str | None:
    text = flags.text("hybrid-layer-pattern") or flags.text("hybrid-override-pattern")
    flags.has("is-hybrid-model")
    if text is None:
        return None
    if "/" in text:
        raise PlanError(flags.where, "multi-token prediction of a hybrid model has no counted shape", "drop it")
    if "|" in text:
        flags.lose("hybrid-layer-pattern", "stages of a hybrid model are split evenly", value=text)
    pattern = text.replace("|", "")
    stray = re.search(r"[^M*E-]", pattern)
    if stray or not pattern:
        letter = stray.group() if stray else ""
        raise PlanError(flags.where, f"layer {letter!r} of the hybrid pattern has no counted shape", "known: M * - E")
    return pattern


def _hybrid(flags: Flags, hidden: int) -> dict[str, Any]:
    pattern = _pattern(flags)
    if pattern is None:
        return {}
    found: dict[str, Any] = {"pattern": pattern}
    if "M" in pattern:
        head_dim = flags.count("mamba-head-dim", 64)
        found["mamba"] = {
            # MambaMixer: expand = 2 unless the number of heads is given.
            "heads": flags.integer("mamba-num-heads") or 2 * hidden // head_dim,
            "head_dim": head_dim,
            "state": flags.count("mamba-state-dim", 128),
            "groups": flags.count("mamba-num-groups", 8),
        }
    return found
