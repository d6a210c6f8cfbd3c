"""torchtitan: a TOML for 0.2.2 and before, a Python configuration for 0.3 and later, and a script for both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moeplan.estimator.layout import even_chunks, layout_chunks
from moeplan.frameworks.carried import what_to_carry
from moeplan.frameworks.megatron_flags import TF32_VARIABLE
from moeplan.frameworks.torchtitan_keys import FLOAT8, MXFP8, ROTATIONS, plan_values, python_document
from moeplan.launch.heading import heading
from moeplan.launch.megatron import nodes, world_size_check
from moeplan.launch.torchtitan_rules import Flavor, flavor_of, refusals, refusals_before_0_3, refusals_since_0_3
from moeplan.launch.words import comment, python_value, toml_value
from moeplan.plan import Plan

if TYPE_CHECKING:
    from moeplan.answers.documents import Estimate

__all__ = ["refusals", "render"]

TOML = "torchtitan.toml"
CONFIGURATION = "torchtitan_config.py"
SCRIPT = "torchtitan.sh"

Document = dict[str, dict[str, Any]]


def render(
    plan: Plan, estimate: Estimate | None = None, command: str | None = None, notes: tuple[str, ...] = ()
) -> dict[str, str]:
    """The launch files of a plan that :func:`refusals` has nothing against: name -> text.

    The TOML is left out where only torchtitan 0.3 can run the plan, and the Python configuration where only 0.2.2 can.
    """
    files = {}
    told = (*notes, *_notes(plan))
    if not refusals_before_0_3(plan):
        lines = heading(plan, "torchtitan <= 0.2.2 configuration", estimate, command, told)
        files[TOML] = _toml(plan, lines)
    if not refusals_since_0_3(plan):
        lines = heading(plan, "torchtitan >= 0.3 configuration", estimate, command, told)
        files[CONFIGURATION] = _python(plan, lines)
    lines = heading(plan, "torchtitan launch script", estimate, command, told)
    files[SCRIPT] = _script(plan, lines, files)
    return files


def document(plan: Plan) -> Document:
    """The TOML's sections."""
    flavor = _flavor(plan)
    model: dict[str, Any] = {"name": flavor.module, "flavor": flavor.name, "hf_assets_path": "./assets/hf"}
    sections: Document = {"job": {"description": "written by moeplan", "dump_folder": "./outputs"}, "model": model}
    if plan.precision in ("fp8", "mxfp8"):
        moe = plan.architecture().moe is not None
        linear, grouped = FLOAT8 if plan.precision == "fp8" else MXFP8
        model["converters"] = [linear, grouped] if moe else [linear]
        sections |= _quantize(plan.precision, moe)
    sections["optimizer"] = {"name": "AdamW", "lr": 3e-4, "eps": 1e-8}
    sections["lr_scheduler"] = {"warmup_steps": 200, "decay_type": "cosine", "min_lr_factor": 0.1}
    sections["training"] = _training(plan) | {"steps": 1000, "dataset": "c4", "max_norm": 1.0}
    sections["parallelism"] = _parallelism(plan, "output")
    full = plan.recompute.granularity == "full"
    sections["activation_checkpoint"] = {"mode": "full" if full else "none"}
    components = (["model"] if plan.overlap.tp else []) + (["loss"] if plan.kernels.fused_cross_entropy else [])
    sections["compile"] = {"enable": bool(components), "components": components or ["loss"]}
    sections["checkpoint"] = {"enable": False, "interval": 500}
    return sections


def _flavor(plan: Plan) -> Flavor:
    flavor = flavor_of(plan.architecture())
    if flavor is None:  # refusals() names the models that torchtitan has
        raise LookupError(plan.architecture().name)
    return flavor


def _training(plan: Plan) -> dict[str, Any]:
    size = plan.batch.micro_batch_size
    # With a pipeline, torchtitan cuts the local batch into micro batches; without, it accumulates over local batches.
    local = plan.global_batch_size // plan.dp if plan.parallel.pp > 1 else size
    return {
        "local_batch_size": local,
        "global_batch_size": plan.global_batch_size,
        "seq_len": plan.batch.sequence_length,
        "mixed_precision_param": "float32" if plan.precision in ("fp32", "tf32") else "bfloat16",
        "mixed_precision_reduce": "float32",
    }


def _parallelism(plan: Plan, head: str) -> dict[str, Any]:
    parallel, sharded = plan.parallel, plan.optimizer.sharding > 0
    keys: dict[str, Any] = {
        # Written out rather than -1, so that another number of GPUs is refused at the start.
        "data_parallel_replicate_degree": 1 if sharded else plan.dp,
        "data_parallel_shard_degree": plan.dp if sharded else 1,
        "fsdp_reshard_after_forward": "never" if plan.optimizer.sharding == 2 else "always",
        "tensor_parallel_degree": parallel.tp,
        "context_parallel_degree": parallel.cp,
        "pipeline_parallel_degree": parallel.pp,
        "expert_parallel_degree": parallel.ep,
        "expert_tensor_parallel_degree": parallel.etp if parallel.ep > 1 else 1,
    }
    if parallel.tp > 1:
        keys["enable_async_tensor_parallel"] = plan.overlap.tp
    if parallel.cp > 1:
        keys["context_parallel_rotate_method"] = ROTATIONS[parallel.cp_comm]
    if parallel.ep > 1:
        backend = "standard" if plan.moe.dispatcher == "alltoall" else plan.moe.dispatcher
        keys["expert_parallel_comm_backend"] = backend
    if parallel.pp > 1:
        keys |= _pipeline(plan, head)
    return keys


def _pipeline(plan: Plan, head: str) -> dict[str, Any]:
    """Keys of the pipeline; ``head`` is what the generation calls the output projection."""
    parallel = plan.parallel
    layers = len(plan.architecture().layers)
    keys: dict[str, Any] = {"pipeline_parallel_microbatch_size": plan.batch.micro_batch_size}
    virtual = parallel.pp * parallel.vpp
    if parallel.pipeline_layout is not None:
        chunks = layout_chunks(parallel.pipeline_layout, parallel.pp, layers, 0)
        virtual = len(chunks)
        keys["module_fqns_per_model_part"] = [
            [
                *(["tok_embeddings"] if chunk.embedding else []),
                *(f"layers.{layer}" for layer in range(chunk.first, chunk.first + chunk.layers)),
                *(["norm", head] if chunk.head else []),
            ]
            for chunk in chunks
        ]
    else:
        # The even split of the plan: over the layers, or with embedding and head counted as a layer each.
        counted = 0 if layers % virtual == 0 else 1
        if even_chunks(parallel.pp, parallel.vpp, layers, 0) is None:
            raise ValueError(f"{layers} layers do not divide over {virtual} stages")  # legality has refused it
        keys["pipeline_parallel_layers_per_stage"] = (layers + 2 * counted) // virtual
        keys["pipeline_parallel_first_stage_less_layers"] = counted
        keys["pipeline_parallel_last_stage_less_layers"] = counted
    schedule = "Interleaved1F1B" if virtual > parallel.pp else "1F1B"
    if parallel.schedule == "zero_bubble":
        schedule = "InterleavedZeroBubble"
    return {"pipeline_parallel_schedule": schedule} | keys


def _quantize(precision: str, moe: bool) -> Document:
    if precision == "fp8":
        sections: Document = {
            "quantize.linear.float8": {"recipe_name": "rowwise", "filter_fqns": ["output", "router.gate"]}
        }
        grouped = "quantize.grouped_mm.float8"
    else:
        sections = {"quantize.linear.mx": {"recipe_name": "mxfp8_cublas", "filter_fqns": ["output", "router.gate"]}}
        grouped = "quantize.grouped_mm.mx"
    return sections | ({grouped: {"fqns": ["experts"]}} if moe else {})


def _notes(plan: Plan) -> list[str]:
    notes = ["optimizer and data are not part of the plan: edit them, or override them behind the script's name"]
    if plan.framework != "fsdp2":
        notes.append(f"the prediction follows {plan.framework}'s accounting; set framework: fsdp2 for this launch")
    if refusals_before_0_3(plan):
        notes.append(f"not for torchtitan <= 0.2.2: {refusals_before_0_3(plan)[0].reason}")
    if refusals_since_0_3(plan):
        notes.append(f"not for torchtitan >= 0.3: {refusals_since_0_3(plan)[0].reason}")
    return notes


def _toml(plan: Plan, lines: list[str]) -> str:
    sections = document(plan)
    parts = [*comment(lines), what_to_carry(plan, plan_values(sections)).line()]
    for title, keys in sections.items():
        parts += ["", f"[{title}]", *(f"{key} = {toml_value(value)}" for key, value in keys.items())]
    return "\n".join(parts) + "\n"


_PYTHON = '''
import os

from torchtitan.components.loss import {losses}
{imports}from torchtitan.models.common.config_utils import decoder_vocab_size
from torchtitan.models.{module} import model_registry
from torchtitan.models.{module}.config_registry import {base}
from torchtitan.trainer import Trainer

PLANNED_GPUS = {gpus}


def moeplan() -> Trainer.Config:
    """The planned configuration; select it with --module torchtitan_config --config moeplan."""
    world_size = int(os.environ.get("WORLD_SIZE", PLANNED_GPUS))
    if world_size != PLANNED_GPUS:
        raise SystemExit(f"planned for {{PLANNED_GPUS}} GPUs, started on {{world_size}}: plan again")
    config = {base}()
    config.model_spec = model_registry({arguments})
    config.loss = {loss}
    config.activation_checkpoint = {recompute}
{assignments}
    return config
'''


def _python(plan: Plan, lines: list[str]) -> str:
    flavor = _flavor(plan)
    loss = "CrossEntropyLoss.Config(global_vocab_size=decoder_vocab_size(config.model_spec))"
    if plan.kernels.fused_cross_entropy:
        loss = f"ChunkedLossWrapper.Config(\n        loss_fn={loss}\n    )"
    imports, converters = _converters(plan)
    full = plan.recompute.granularity == "full"
    if full:
        imports += "from torchtitan.distributed.activation_checkpoint import FullAC\n"
    arguments = [python_value(flavor.name)]
    if plan.parallel.ep > 1 and plan.moe.dispatcher != "alltoall":
        arguments.append(f"moe_comm_backend={python_value(plan.moe.dispatcher)}")
    arguments += converters
    body = _PYTHON.format(
        imports=imports,
        losses="ChunkedLossWrapper, CrossEntropyLoss" if plan.kernels.fused_cross_entropy else "CrossEntropyLoss",
        module=flavor.module,
        base=flavor.base,
        gpus=plan.hardware.gpus,
        arguments=", ".join(arguments),
        loss=loss,
        recompute="FullAC.Config()" if full else "None",
        assignments="\n".join(
            f"    config.{name} = {python_value(value)}" for name, value in _assignments(plan).items()
        ),
    )
    carried = what_to_carry(plan, plan_values(python_document(body))).line()
    return "\n".join([*comment(lines), carried]) + "\n" + body


def _assignments(plan: Plan) -> dict[str, Any]:
    """What 0.3 takes of the TOML's keys under the same names, and what is new there."""
    gone = ("expert_tensor_parallel_degree", "enable_async_tensor_parallel", "context_parallel_rotate_method")
    parallelism = {key: value for key, value in _parallelism(plan, "lm_head").items() if key not in gone}
    parallelism.pop("expert_parallel_comm_backend", None)
    if plan.parallel.tp > 1:
        parallelism["enable_sequence_parallel"] = plan.parallel.sp is not False
    named = {f"training.{key}": value for key, value in _training(plan).items()}
    named["training.disable_cuda_graphs"] = True
    named |= {f"parallelism.{key}": value for key, value in parallelism.items()}
    return named | {"compile.enable": plan.overlap.tp, "compile.enable_async_tensor_parallel": plan.overlap.tp}


def _converters(plan: Plan) -> tuple[str, list[str]]:
    """The import line and the model registry's argument for a quantized model."""
    if plan.precision not in ("fp8", "mxfp8"):
        return "", []
    linear, grouped = ("Float8LinearConverter", "Float8GroupedExpertsConverter")
    setting = 'filter_fqns=["lm_head", "router.gate"]'
    if plan.precision == "mxfp8":
        linear, grouped = ("MXFP8LinearConverter", "MXFP8GroupedExpertsConverter")
        setting = 'fqns=["attention", "shared_experts", "feed_forward"]'
    names = [linear] + ([grouped] if plan.architecture().moe is not None else [])
    made = [f"{linear}.Config({setting})"] + [f"{name}.Config()" for name in names[1:]]
    imported = f"from torchtitan.components.quantization import {', '.join(sorted(names))}\n"
    return imported, [f"converters=[{', '.join(made)}]"]


def _script(plan: Plan, lines: list[str], files: dict[str, str]) -> str:
    count, per_node = nodes(plan)
    parts = ["#!/usr/bin/env bash", *comment(lines), "set -euo pipefail", ""]
    parts += world_size_check(plan.hardware.gpus, count, per_node)
    parts += ["export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"]
    if plan.precision == "tf32":
        parts.append("export {}={}".format(*TF32_VARIABLE))
    elif plan.precision == "fp32":
        parts.append("export NVIDIA_TF32_OVERRIDE=0")
    old, new = TOML in files, CONFIGURATION in files
    parts += [
        "",
        'HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"',
        "ASK='import importlib.metadata; print(importlib.metadata.version(\"torchtitan\"))'",
        'VERSION="${TORCHTITAN_VERSION:-$(python -c "$ASK")}"',
        'case "$VERSION" in',
        "    0.0.* | 0.1.* | 0.2.*)",
        (
            f'        CONFIGURATION=(--job.config_file "$HERE/{TOML}")'
            if old
            else '        echo "this plan needs torchtitan >= 0.3" >&2; exit 2'
        ),
        "        ;;",
        "    *)",
        (
            '        export PYTHONPATH="$HERE${PYTHONPATH:+:$PYTHONPATH}"\n'
            "        CONFIGURATION=(--module torchtitan_config --config moeplan)"
            if new
            else '        echo "this plan needs torchtitan <= 0.2.2" >&2; exit 2'
        ),
        "        ;;",
        "esac",
        "exec torchrun \\",
        '    --nnodes "$NNODES" \\',
        '    --nproc-per-node "$GPUS_PER_NODE" \\',
        '    --node-rank "$NODE_RANK" \\',
        '    --master-addr "$MASTER_ADDR" \\',
        '    --master-port "$MASTER_PORT" \\',
        '    --module torchtitan.train "${CONFIGURATION[@]}" "$@"',
        "",
    ]
    return "\n".join(parts)
