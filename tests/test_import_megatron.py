"""Megatron-LM scripts and arguments read into plans, held against Megatron's own parser, code and continuous tests."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeplan.errors import PlanError
from moeplan.estimator.layout import layout_chunks
from moeplan.importers import read, read_megatron
from moeplan.importers.megatron_flags import normalized
from moeplan.importers.megatron_unused import why_unused

REFERENCE = Path(__file__).parent / "reference"

# GPT-2 as Megatron trains it by default: learned positions, LayerNorm, GELU, biases, tied embeddings.
GPT2 = {
    "num-layers": 12,
    "hidden-size": 768,
    "num-attention-heads": 12,
    "seq-length": 1024,
    "max-position-embeddings": 1024,
    "micro-batch-size": 4,
    "global-batch-size": 64,
    "bf16": True,
}
MOE = {
    **GPT2,
    "num-experts": 8,
    "swiglu": True,
    "disable-bias-linear": True,
    "normalization": "RMSNorm",
    "position-embedding-type": "rope",
}


def plan_of(arguments: dict[str, Any], gpus: int = 8) -> Any:
    return read_megatron(arguments, "h100", gpus).plan


@cache
def ci_cases() -> list[dict[str, Any]]:
    return list(json.loads((REFERENCE / "memory_megatron_ci.json").read_text())["cases"])


@cache
def parser_arguments() -> list[dict[str, Any]]:
    return list(json.loads((REFERENCE / "megatron_arguments.json").read_text())["arguments"])


# What the published numbers of GPUs do not allow: Megatron would refuse these itself.
CI_REFUSED = {
    "gpt/gpt3_mcore_reruns_resume_check_grads": "no multiple of --micro-batch-size 2 times 8",
    "gpt/gpt_grpo_tp4_pp1_dp2_8b_cudagraphs_throughput": "tp\\*pp\\*cp = 4 does not divide 1 GPUs",
}


@pytest.mark.parametrize("case", ci_cases(), ids=lambda case: str(case["id"]))
def test_every_case_of_megatrons_ci_is_imported_or_refused_by_name(case: dict[str, Any]) -> None:
    arguments = case["megatron_args"]
    if case["id"] in CI_REFUSED:
        with pytest.raises(PlanError, match=CI_REFUSED[case["id"]]):
            read_megatron(arguments, case["gpu"], case["gpus"])
        return
    imported = read_megatron(arguments, case["gpu"], case["gpus"])
    plan = imported.plan
    assert plan.parallel.tp == arguments.get("tensor-model-parallel-size", 1)
    assert plan.dp * plan.parallel.tp * plan.parallel.pp * plan.parallel.cp == case["gpus"]
    assert len(plan.architecture().layers) == arguments["num-layers"]
    assert all(item.reason for item in imported.unused)
    assert not [item for item in imported.unused if "not an argument" in item.reason]


def test_every_argument_of_megatrons_parser_has_a_place() -> None:
    """Used, inert, beyond a plan, or refused: no spelling of the parser is unknown."""
    unknown = []
    for argument in parser_arguments():
        value: Any = True if argument["values"] == 0 else argument["default"]
        for spelling in argument["names"]:
            name = normalized(spelling)
            arguments = MOE | ({name: value} if value not in (None, False, [], "") else {name: "1"})
            try:
                unused = read_megatron(arguments, "h100", 8).unused
            except PlanError:
                continue  # read, and refused in this combination
            reasons = [item.reason for item in unused if item.name == f"--{name}" and "not an argument" in item.reason]
            unknown += [f"{spelling}: {reason}" for reason in reasons]
    assert unknown == []


def test_saying_a_default_changes_nothing() -> None:
    """An argument given its own default (as the parser has it) makes the same plan as leaving it out."""
    plain, moe = plan_of(GPT2), plan_of(MOE)
    latent = {**MOE, "multi-latent-attention": True, "qk-layernorm": True}
    changed = []
    for argument in parser_arguments():
        default, name = argument["default"], normalized(argument["names"][0])
        if argument["values"] == 0 or default in (None, [], "") or name in GPT2:
            continue
        value = str(default).rpartition(".")[2] if str(default).startswith("AttnBackend") else default
        value = "auto" if name == "attention-backend" else value
        for arguments, expected in ((GPT2, plain), (MOE, moe), (latent, plan_of(latent))):
            if name not in arguments and plan_of({**arguments, name: value}) != expected:
                changed.append(name)
    assert changed == []


@pytest.mark.parametrize(
    ("layers", "hidden", "heads", "published"),
    # GPT-2's four sizes (Radford et al. 2019): parameters of the published weights, as transformers counts them.
    [
        (12, 768, 12, 124_439_808),
        (24, 1024, 16, 354_823_168),
        (36, 1280, 20, 774_030_080),
        (48, 1600, 25, 1_557_611_200),
    ],
)
def test_megatrons_defaults_are_gpt2(layers: int, hidden: int, heads: int, published: int) -> None:
    arguments = {**GPT2, "num-layers": layers, "hidden-size": hidden, "num-attention-heads": heads}
    assert plan_of(arguments).architecture().total_parameters == published


def test_swiglu_without_a_width_takes_two_thirds_in_multiples_of_64() -> None:
    mlp = plan_of({**GPT2, "swiglu": True, "hidden-size": 4096, "num-attention-heads": 32}).architecture().layers[0]
    # int(4 * 4096 * 2 / 3 / 64) * 64 = int(170.67) * 64
    assert mlp.operators[-1].ffn == 10880


def test_a_script_with_a_catalog_models_shape_gets_its_name() -> None:
    """Mixtral-8x7B as Megatron-LM's own example script has it (examples/mixtral/train_mixtral_8x7b_distributed.sh)."""
    script = r"""#!/bin/bash
    # Runs Mixtral 8x7B model
    export CUDA_DEVICE_MAX_CONNECTIONS=1
    GPUS_PER_NODE=8
    MASTER_ADDR=${MASTER_ADDR:-"localhost"}
    NNODES=${SLURM_NNODES:-"1"}
    NODE_RANK=${RANK:-"0"}
    WORLD_SIZE=$(($GPUS_PER_NODE*$NNODES))
    CHECKPOINT_PATH=$1
    TOKENIZER_MODEL=$2
    DISTRIBUTED_ARGS=(
        --nproc_per_node $GPUS_PER_NODE
        --nnodes $NNODES
        --node_rank $NODE_RANK
    )
    MODEL_ARGS=(
        --use-mcore-models
        --disable-bias-linear
        --seq-length 4096
        --max-position-embeddings 32768
        --num-layers 32
        --hidden-size 4096
        --ffn-hidden-size 14336
        --num-attention-heads 32
        --init-method-std 0.01
        --attention-dropout 0.0
        --hidden-dropout 0.0
        --normalization RMSNorm
        --position-embedding-type rope
        --swiglu
        --untie-embeddings-and-output-weights
        --group-query-attention
        --num-query-groups 8
        --no-masked-softmax-fusion
        --no-position-embedding
        --rotary-base 1000000
    )
    MOE_ARGS=(
        --num-experts 8
        --moe-router-topk 2
        --moe-router-load-balancing-type aux_loss
        --moe-aux-loss-coeff 1e-2
        --moe-grouped-gemm
        --moe-token-dispatcher-type alltoall
        --overlap-param-gather
        --overlap-grad-reduce
    )
    DATA_ARGS=(
        --tokenizer-type Llama2Tokenizer
        --tokenizer-model ${TOKENIZER_MODEL}
        --data-path $3
        --split 99990,8,2
    )
    TRAINING_ARGS=(
        --micro-batch-size 1
        --global-batch-size 256
        --lr 1e-4
        --train-iters 500000
        --lr-warmup-iters 500
        --clip-grad 1.0
        --bf16
    )
    MODEL_PARALLEL_ARGS=(
        --tensor-model-parallel-size 1
        --pipeline-model-parallel-size 4
        --expert-model-parallel-size 2
        --use-distributed-optimizer
        --sequence-parallel
    )
    torchrun ${DISTRIBUTED_ARGS[@]} pretrain_gpt.py \
        ${MODEL_ARGS[@]} \
        ${MOE_ARGS[@]} \
        ${DATA_ARGS[@]} \
        ${TRAINING_ARGS[@]} \
        ${MODEL_PARALLEL_ARGS[@]}
    """
    imported = read_megatron(script, "h100", where="train.sh")
    plan = imported.plan
    assert plan.model == "mixtral-8x7b"
    assert plan.hardware.gpus == 8
    assert (plan.parallel.pp, plan.parallel.ep, plan.parallel.etp, plan.dp) == (4, 2, 1, 2)
    assert plan.optimizer.sharding == 1
    assert plan.moe.dispatcher == "alltoall"
    assert not plan.kernels.fused_cross_entropy
    assert any("32,000" in line for line in imported.assumptions)
    assert [item.name for item in imported.unused if item.matters] == ["--no-masked-softmax-fusion"]


@pytest.mark.parametrize(
    "text",
    [
        "torchrun --nproc_per_node=8 --nnodes=2 pretrain_gpt.py {flags}",
        'OPTIONS="{flags}"\npython -m torch.distributed.run --nproc-per-node 8 --nnodes 2 a.py $OPTIONS',
        '#!/bin/bash\n#SBATCH --nodes=2 --ntasks-per-node=8\nR="python -u a.py {flags}"\nsrun sh -c "${{R}}"',
        "#!/bin/bash\n#SBATCH -N 2\n#SBATCH --gres=gpu:h100:8\nsrun python pretrain_gpt.py \\\n  {flags}\n",
    ],
)
def test_launchers_and_where_they_say_the_number_of_gpus(text: str) -> None:
    flags = " ".join(f"--{name}" + ("" if value is True else f" {value}") for name, value in GPT2.items())
    plan = read_megatron(text.format(flags=flags), "h100").plan
    assert plan == plan_of(GPT2, gpus=16)


def test_megatrons_own_configuration_files_are_read(tmp_path: Path) -> None:
    """The form of tests/functional_tests/test_cases/*/model_config.yaml, shell escapes and environment included."""
    path = tmp_path / "model_config.yaml"
    path.write_text(
        "ENV_VARS:\n  NVTE_FLASH_ATTN: 0\n  NVTE_FUSED_ATTN: 0\nMODEL_ARGS:\n"
        + "".join(
            f"  --{name}: {str(value).lower()}\n"
            for name, value in (MOE | {"num-layers": 13}).items()
            if name != "normalization"
        )
        + "  --normalization: RMSNorm\n  --mtp-num-layers: 1\n  --pipeline-model-parallel-size: 2\n"
        + "  --pipeline-model-parallel-layout: Et\\\\|\\\\(tt\\\\|\\\\)*6mL # Et|(tt|)*6mL\n"
        + "  --recompute-granularity: selective\n  --recompute-modules: '[moe_act layernorm]'\n"
        + "  --no-bias-gelu-fusion: false\nTEST_TYPE: regular\n"
    )
    imported = read("megatron", path, gpu="h100", gpus=8)
    plan = imported.plan
    assert plan.parallel.pipeline_layout == "Et|(tt|)*6mL"
    assert plan.parallel.vpp == 4
    assert plan.recompute.modules == ("moe_act", "layernorm")
    assert not plan.kernels.flash_attention
    assert not [item for item in imported.unused if item.name == "--no-bias-gelu-fusion"]


def test_traps_of_megatrons_defaults() -> None:
    plan = plan_of({**MOE, "tensor-model-parallel-size": 2, "expert-model-parallel-size": 2})
    assert plan.parallel.etp == 2  # follows tp
    assert plan.parallel.sp is False  # off unless asked for
    assert plan.moe.dispatcher == "allgather"
    assert plan.optimizer.sharding == 0
    assert plan.optimizer.gradient_dtype == "fp32"  # bf16 training accumulates in fp32
    assert plan.kernels.dropout  # 0.1 twice
    assert not plan.overlap.grad_reduce
    assert plan_of({**GPT2, "grad-reduce-in-bf16": True}).optimizer.gradient_dtype == "bf16"
    assert plan_of({**MOE, "use-megatron-fsdp": True}).optimizer.sharding == 3
    assert plan_of({**MOE, "moe-token-dispatcher-type": "flex"}).moe.dispatcher == "deepep"


def test_recomputation() -> None:
    def recompute(**arguments: Any) -> Any:
        return plan_of({**GPT2, **{name.replace("_", "-"): value for name, value in arguments.items()}}).recompute

    assert recompute(recompute_activations=True).modules == ("core_attn",)
    assert recompute(recompute_granularity="full", recompute_method="uniform", recompute_num_layers=1).layers is None
    block = recompute(recompute_granularity="full", recompute_method="block", recompute_num_layers=3)
    assert (block.granularity, block.method, block.layers) == ("full", "block", 3)


def megatron_layer_counts(
    layers: int, pp: int, vpp: int, first: int | None, last: int | None, accounted: tuple[bool, bool]
) -> list[int]:
    """Layers per virtual stage: Megatron-Core's ``get_num_layers_to_build`` (transformer_block.py), restated."""
    counts = []
    for chunk in range(vpp):
        for rank in range(pp):
            if first is not None or last is not None:
                middle = pp - sum(value is not None for value in (first, last))
                rest = layers - (first or 0) - (last or 0)
                per_rank = rest // middle if middle > 0 else 0
                if rank == 0 and first is not None:
                    per_rank = first
                if rank == pp - 1 and last is not None:
                    per_rank = last
            else:
                per_rank = (layers + sum(accounted)) // pp
            build = per_rank // vpp
            if rank == 0 and chunk == 0 and accounted[0]:
                build -= 1
            if rank == pp - 1 and chunk == vpp - 1 and accounted[1]:
                build -= 1
            counts.append(build)
    return counts


@given(
    pp=st.sampled_from([1, 2, 4]),
    vpp=st.sampled_from([1, 2, 3]),
    per_chunk=st.integers(1, 5),
    first=st.one_of(st.none(), st.integers(1, 4)),
    last=st.one_of(st.none(), st.integers(1, 4)),
    accounted=st.tuples(st.booleans(), st.booleans()),
)
@settings(max_examples=60)
def test_stages_hold_what_megatron_builds(
    pp: int, vpp: int, per_chunk: int, first: int | None, last: int | None, accounted: tuple[bool, bool]
) -> None:
    if pp == 1:
        vpp = 1
    uneven = pp > 2 and (first is not None or last is not None)
    if uneven:
        first, last, accounted = first and first * vpp, last and last * vpp, (False, False)
        layers = per_chunk * vpp * (pp - (first is not None) - (last is not None)) + (first or 0) + (last or 0)
    else:
        first = last = None
        layers = per_chunk * pp * vpp - sum(accounted)
    if layers < max(2 * vpp, 1) or (pp * vpp == 1 and any(accounted)):
        return
    arguments: dict[str, Any] = {**GPT2, "num-layers": layers, "pipeline-model-parallel-size": pp}
    if vpp > 1:
        arguments["num-virtual-stages-per-pipeline-rank"] = vpp
    if first is not None:
        arguments["decoder-first-pipeline-num-layers"] = first
    if last is not None:
        arguments["decoder-last-pipeline-num-layers"] = last
    arguments["account-for-embedding-in-pipeline-split"] = accounted[0]
    arguments["account-for-loss-in-pipeline-split"] = accounted[1]
    expected = megatron_layer_counts(layers, pp, vpp, first, last, accounted)
    if min(expected) < 0:
        return
    parallel = plan_of(arguments).parallel
    if parallel.pipeline_layout is not None:
        found = [chunk.layers for chunk in layout_chunks(parallel.pipeline_layout, pp, layers, 0)]
    else:
        from moeplan.estimator.layout import even_chunks

        chunks = even_chunks(pp, parallel.vpp, layers, 0)
        assert chunks is not None
        found = [chunk.layers for chunk in chunks]
    assert parallel.vpp == vpp
    assert found == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num-layers": "many"}, "--num-layers is 'many'"),
        ({"num-layers": 0}, "--num-layers is 0"),
        ({"hidden-size": -4}, "--hidden-size is -4"),
        ({"num-attention-heads": 7}, "does not divide --hidden-size"),
        ({"moe-layer-freq": "__import__('os')", "num-experts": 4}, "--moe-layer-freq is"),
        ({"moe-layer-freq": "[1]*999999999", "num-experts": 4}, "more than 10000 layers"),
        ({"moe-layer-freq": "([0]*3)", "num-experts": 4}, "names 3 layers"),
        ({"normalization": "RMSnorm"}, "did you mean 'RMSNorm'"),
        ({"expert-model-parallel-size": 2}, "without --num-experts"),
        ({"fp16": True}, "exclude each other"),
        ({"global-batch-size": 7}, "no multiple"),
        ({"heterogeneous-layers-config-path": "x.json"}, "cannot count such a model"),
        ({"batch-size": 8}, "use --micro-batch-size"),
        ({"tokenizer-type": "SentencePieceTokenizer", "tokenizer-model": "my.model"}, "--vocabulary"),
        ({"pipeline-model-parallel-layout": "Et|t^L"}, "no layout symbol"),
        ({"recompute-granularity": "some"}, "use full or selective"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError) as refused:
        plan_of({**GPT2, **arguments})
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_value_that_the_script_does_not_set_is_named() -> None:
    flags = " ".join(f"--{name}" + ("" if value is True else f" {value}") for name, value in GPT2.items())
    script = f"torchrun pretrain_gpt.py {flags} --tensor-model-parallel-size $MY_TP --data-path $DATA"
    with pytest.raises(PlanError, match=r"--tensor-model-parallel-size needs '\$MY_TP'"):
        read_megatron(script, "h100", 8)
    plan = read_megatron(f"MY_TP=2\n{script}", "h100", 8)
    assert plan.plan.parallel.tp == 2
    assert any(item.name == "--data-path" and item.value == "$DATA" for item in plan.unused)


def test_scripts_that_are_started_with_arguments() -> None:
    """The manner of Pai-Megatron-Patch: positional arguments, options in strings, C's conditional, and eval."""
    script = r"""
    ENV=$1
    if [ $ENV = one ]; then NNODES=1; GPUS_PER_NODE=8
    elif [ $ENV = many ]; then NNODES=${WORLD_SIZE}; GPUS_PER_NODE=8
    fi
    TP=${2}
    MICRO=${10}
    OVERLAP=$(( ($TP > 1) ? 1 : 0 ))
    overlap_option=" --overlap-grad-reduce"
    if [ $OVERLAP -eq 1 ]; then overlap_option=" --overlap-grad-reduce \
        --tp-comm-overlap --sequence-parallel"
    fi
    if [ -z ${VP} ]; then vp_option=""; else vp_option="--num-virtual-stages-per-pipeline-rank ${VP}"; fi
    moe_options=" \
        --num-experts 8 --moe-grouped-gemm \
        --moe-layer-freq '([0]*4+[1]*8)' \
        --moe-shared-expert-intermediate-size $((${2} * 512)) \
    "
    run_cmd="torchrun --nproc_per_node $GPUS_PER_NODE --nnodes $NNODES pretrain.py
     --num-layers 12 --hidden-size 768 --num-attention-heads 12 --seq-length 1024 --max-position-embeddings 1024
     --tensor-model-parallel-size ${TP} --micro-batch-size ${MICRO} ${moe_options} ${overlap_option} $vp_option --bf16"
    echo ${run_cmd}
    eval ${run_cmd}
    """
    with pytest.raises(PlanError, match="--set"):
        read_megatron(script, "h100", 8)
    given = {"1": "many", "WORLD_SIZE": "2", "2": "2", "10": "4"}
    plan = read_megatron(script, "h100", variables=given).plan
    assert (plan.hardware.gpus, plan.parallel.tp, plan.batch.micro_batch_size) == (16, 2, 4)
    assert plan.overlap.tp
    moe = [layer.moe for layer in plan.architecture().layers]
    assert [layer is not None for layer in moe] == [False] * 4 + [True] * 8
    assert moe[-1] is not None
    assert moe[-1].shared is not None
    assert moe[-1].shared.ffn == 1024


def test_mappings_with_a_launchers_variables() -> None:
    mapping = {
        "MODEL_ARGS": {f"--{name}": value for name, value in GPT2.items()} | {"--context-parallel-size": "${CP}"}
    }
    with pytest.raises(PlanError, match=r"needs '\$\{CP\}'"):
        read_megatron(mapping, "h100", 8)
    assert read_megatron(mapping, "h100", 8, variables={"CP": "2"}).plan.parallel.cp == 2


def test_unknown_arguments_are_listed_first() -> None:
    unused = read_megatron({**GPT2, "my-own-flag": 3, "lr": 1e-4}, "h100", 8).unused
    assert unused[0].name == "--my-own-flag"
    assert unused[0].matters
    assert [item.name for item in unused if not item.matters] == ["--lr"]
    assert why_unused("lr") == "does not change memory or time"


@pytest.mark.parametrize(
    "text", ["", "echo hello", "# nothing", "{}", "[1, 2]", "a: 1", '{"num-layers": {"a": 1}}', "torchrun x.py 'a"]
)
def test_files_without_a_launch_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text(text)
    with pytest.raises(PlanError):
        read("megatron", path, gpu="h100", gpus=8)


@given(st.data())
@settings(max_examples=60)
def test_no_mapping_breaks_the_importer(data: st.DataObject) -> None:
    names = [normalized(argument["names"][0]) for argument in parser_arguments()]
    odd = st.one_of(
        st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.lists(st.integers(), max_size=3), st.none()
    )
    arguments = {**MOE, **data.draw(st.dictionaries(st.sampled_from([*names, *GPT2]), odd, max_size=6))}
    try:
        read_megatron(arguments, "h100", 8)
    except PlanError as error:
        assert "\n" not in str(error)
