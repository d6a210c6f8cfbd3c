"""The parts of a plan, key by key, with their limits and defaults."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator

# Upper limits only keep nonsense (a mistyped exponent) from reaching the arithmetic: 2^20 GPUs are ten times the
# largest cluster, 2^24 tokens sixteen times the longest context, 2^24 sequences a batch of 10^14 tokens at most.
_MOST_GPUS = 1 << 20
_MOST_SEQUENCES = 1 << 24
_MOST_TOKENS = 1 << 24

Degree: TypeAlias = Annotated[int, Field(ge=1, le=_MOST_GPUS)]
Fraction: TypeAlias = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Precision: TypeAlias = Literal["fp32", "tf32", "fp16", "bf16", "fp8", "mxfp8", "nvfp4"]
RecomputeModule: TypeAlias = Literal["core_attn", "moe_act", "layernorm", "mla_up_proj", "mlp", "moe", "shared_experts"]
OffloadModule: TypeAlias = Literal[
    "attn_norm", "qkv_linear", "core_attn", "attn_proj", "mlp_norm", "expert_fc1", "moe_act"
]


def _reference(value: Any) -> Any:
    if isinstance(value, Mapping) and value:
        return copy.deepcopy(dict(value))
    if isinstance(value, str) and 0 < len(value) <= 4096:
        return value
    raise ValueError("must be a name, a path or a mapping")


Reference: TypeAlias = Annotated[
    str | dict[str, Any],
    PlainValidator(_reference),
    WithJsonSchema({"anyOf": [{"type": "string", "minLength": 1, "maxLength": 4096}, {"type": "object"}]}),
]


class Section(BaseModel):
    """A part of a document: unknown keys refused, types exact (no ``true`` for 1, no ``"8"`` for 8), never changed."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Hardware(Section):
    """What the plan runs on."""

    gpu: Reference
    """Catalog name or alias, path to a GPU YAML file, or an inline mapping."""
    gpus: Degree
    """GPUs in all."""
    gpus_per_node: Annotated[int, Field(ge=1, le=1024)] | None = None
    """GPUs in one host; null: the catalog's."""


class Batch(Section):
    """How many sequences, how long."""

    sequence_length: Annotated[int, Field(ge=1, le=_MOST_TOKENS)] = 4096
    """Tokens in a sequence."""
    micro_batch_size: Annotated[int, Field(ge=1, le=1 << 16)] = 1
    """Sequences per data-parallel rank per forward pass."""
    global_batch_size: Annotated[int, Field(ge=1, le=_MOST_SEQUENCES)] | None = None
    """Sequences per optimizer step; null: gpus * micro_batch_size * 2^k, the smallest with at least 4 Mi tokens."""


class Parallel(Section):
    """Degrees of parallelism; dp = gpus / (tp*pp*cp) and edp = gpus / (pp*ep*etp) follow."""

    tp: Degree = 1
    """Tensor parallelism of attention and dense layers."""
    sp: bool | None = None
    """Sequence parallelism; null: on where tp > 1."""
    pp: Degree = 1
    """Pipeline stages."""
    vpp: Annotated[int, Field(ge=1, le=1024)] = 1
    """Model chunks per pipeline rank (interleaving)."""
    cp: Degree = 1
    """Context parallelism."""
    ep: Degree = 1
    """Expert parallelism."""
    etp: Degree = 1
    """Tensor parallelism inside experts."""
    cp_comm: Literal["p2p", "a2a", "allgather"] = "p2p"
    """How context parallelism exchanges keys and values."""
    pipeline_layout: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    """Megatron's layout string, such as "Et*3|(tt|)*29m|L"; null: an even split."""
    schedule: Literal["1f1b", "zero_bubble", "dualpipe"] = "1f1b"
    """Pipeline schedule (1f1b is interleaved where vpp > 1)."""


class Optimizer(Section):
    """Optimizer and where its state lives."""

    name: Literal["adam", "adamw", "sgd", "muon", "lion"] = "adam"
    """Update rule."""
    sharding: Annotated[int, Field(ge=0, le=3)] = 1
    """ZeRO stage: 0 replicated, 1 optimizer state, 2 and gradients, 3 and parameters."""
    state_dtype: Literal["fp32", "fp16", "bf16", "fp8"] = "fp32"
    """Type of the moments."""
    gradient_dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Type in which gradients accumulate and are reduced."""
    offload_fraction: Fraction = 0.0
    """Part of the optimizer state kept in host memory."""


class Recompute(Section):
    """What is recomputed in the backward pass instead of being kept."""

    granularity: Literal["none", "selective", "full"] = "none"
    """none, selective (the modules named) or full (whole layers)."""
    modules: Annotated[tuple[RecomputeModule, ...], Field(strict=False)] = ()
    """Megatron-Core's names; selective without any means core_attn, as there."""
    method: Literal["uniform", "block"] | None = None
    """With full: uniform over all layers, or the first layers of each stage; null: block where layers is given."""
    layers: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """With full: how many layers of each stage (block) or per checkpoint (uniform); null: all."""

    @model_validator(mode="after")
    def _consistent(self) -> Recompute:
        if self.granularity == "selective" and not self.modules:
            # Megatron-Core: recompute_modules = ["core_attn"] when selective (transformer_config.py).
            object.__setattr__(self, "modules", ("core_attn",))
        if self.modules and self.granularity != "selective":
            raise ValueError("modules are recomputed only with granularity: selective")
        if len(set(self.modules)) != len(self.modules):
            raise ValueError("a module is named twice")
        if (self.method or self.layers) and self.granularity != "full":
            raise ValueError("method and layers need granularity: full")
        return self


class ActivationOffload(Section):
    """Activations that wait for their backward pass in host memory (Megatron's fine-grained offloading)."""

    modules: Annotated[tuple[OffloadModule, ...], Field(strict=False)] = ()
    """Modules whose saved input is offloaded."""
    fraction: Fraction = 1.0
    """Part of it that is offloaded."""


class MoeOptions(Section):
    """How tokens reach experts."""

    top_k: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """Experts per token; null: the model's own."""
    dispatcher: Literal["alltoall", "allgather", "deepep", "hybridep"] = "alltoall"
    """Token dispatcher."""
    capacity_factor: Annotated[float, Field(gt=0.0, le=1024.0, allow_inf_nan=False)] | None = None
    """Expert capacity over the mean load; null: dropless."""
    load_imbalance: Annotated[float, Field(ge=1.0, le=1024.0, allow_inf_nan=False)] = 1.0
    """Tokens on the fullest expert-parallel rank over the mean."""


class Kernels(Section):
    """Fused kernels in use."""

    fused_cross_entropy: bool = True
    """Loss without fp32 copies of the logits."""
    fused_gradient_accumulation: bool = True
    """Weight gradients accumulate inside the GEMM."""
    flash_attention: bool = True
    """Attention without the score matrix."""
    cuda_graphs: bool = False
    """Layers launched as CUDA graphs."""
    dropout: bool = False
    """Attention and residual dropout are on: their masks are kept for the backward pass."""


class Overlap(Section):
    """Communication that hides behind computation."""

    grad_reduce: bool = True
    """Gradient reduction behind the backward pass."""
    param_gather: bool = True
    """Parameter all-gather behind the forward pass."""
    tp: bool = False
    """Tensor-parallel collectives behind GEMMs."""
    ep: bool = False
    """Expert all-to-all behind another micro batch."""


RECOMPUTE_MODULES: tuple[str, ...] = get_args(RecomputeModule)
OFFLOAD_MODULES: tuple[str, ...] = get_args(OffloadModule)
