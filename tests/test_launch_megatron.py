"""Megatron-LM launch scripts, run by bash up to torchrun and held against the parser's own argument list."""

from __future__ import annotations

import json
import re
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.launch_cases import cases, plan_of
from support.launch_shell import started

import moeplan
from moeplan import launch
from moeplan.cli.app import run
from moeplan.launch.megatron import arguments
from moeplan.launch.megatron_plan import environment
from moeplan.launch.megatron_words import pattern
from moeplan.plan import Plan, load_plan
from moeplan.report.folder import write_folder

REFERENCE = Path(__file__).parent / "reference" / "megatron_arguments.json"
ARGUMENTS = {name: entry for entry in json.loads(REFERENCE.read_text())["arguments"] for name in entry["names"]}
ENVIRONMENT = {"MEGATRON_PATH": "/megatron", "MASTER_ADDR": "first"}


def plan_for(model: str = "qwen3-30b-a3b", gpu: str = "h100", gpus: int = 64, **values: Any) -> Plan:
    dotted = {name.replace("__", "."): value for name, value in values.items()}
    return load_plan({"model": model, "hardware": {"gpu": gpu, "gpus": gpus}}).with_values(dotted)


def flags_of(words: list[str]) -> list[tuple[str, list[str]]]:
    """Words after the training script as (flag, values)."""
    found: list[tuple[str, list[str]]] = []
    for word in words:
        if word.startswith("--"):
            found.append((word, []))
        else:
            found[-1][1].append(word)
    return found


def test_every_argument_is_one_of_the_parsers(tmp_path: Path) -> None:
    """Name, number of values and choices, for what bash hands to torchrun over many models and settings."""
    seen: set[str] = set()
    for case in cases("megatron", every=4):
        words, _ = started(case.files["megatron.sh"], tmp_path, **ENVIRONMENT)
        assert words[:6] == ["--nnodes", words[1], "--nproc-per-node", words[3], "--node-rank", "0"]
        assert int(words[1]) * int(words[3]) == case.plan.hardware.gpus
        found = flags_of(words[words.index("/megatron/pretrain_gpt.py") + 1 :])
        names = [name for name, _ in found]
        assert len(set(names)) == len(names), "an argument is given twice"
        seen |= set(names)
        for name, values in found:
            entry = ARGUMENTS[name]
            number = entry["values"]
            assert (len(values) == 0) if number == 0 else (len(values) >= 1 if number == "+" else len(values) == 1), (
                name
            )
            if entry["choices"] is not None and number is None:
                assert values[0] in [str(choice).split(".")[-1].split(":")[0] for choice in entry["choices"]], name
    assert len(seen) > 90


# DeepSeek-V3 as its report gives it (arXiv:2412.19437, sections 2 and 4.2).
DEEPSEEK_V3 = {
    "--num-layers": "61",
    "--hidden-size": "7168",
    "--ffn-hidden-size": "18432",
    "--num-attention-heads": "128",
    "--q-lora-rank": "1536",
    "--kv-lora-rank": "512",
    "--qk-head-dim": "128",
    "--qk-pos-emb-head-dim": "64",
    "--v-head-dim": "128",
    "--num-experts": "256",
    "--moe-ffn-hidden-size": "2048",
    "--moe-shared-expert-intermediate-size": "2048",
    "--moe-router-topk": "8",
    "--moe-router-score-function": "sigmoid",
    "--moe-router-num-groups": "8",
    "--moe-router-group-topk": "4",
    "--moe-router-topk-scaling-factor": "2.5",
    "--moe-layer-freq": "([0]*3+[1]*58)",
    "--mtp-num-layers": "1",
    "--vocab-size": "129280",
    "--rotary-base": "10000",
    "--norm-epsilon": "1e-06",
}


def test_deepseek_v3_is_spelled_out() -> None:
    flags = arguments(plan_for("deepseek-v3", gpus=256, parallel__ep=64))
    assert {name: flags[name][0] for name in DEEPSEEK_V3} == DEEPSEEK_V3
    for switch in (
        "--multi-latent-attention",
        "--swiglu",
        "--disable-bias-linear",
        "--untie-embeddings-and-output-weights",
        "--moe-router-enable-expert-bias",
        "--qk-layernorm",
    ):
        assert flags[switch] == ()
    assert "--group-query-attention" not in flags  # latent attention excludes it


def test_gpt_oss_is_spelled_out() -> None:
    """Its model card and Megatron-Bridge's provider: alternating windows of 128, sinks, clamped quick-GEGLU, biases."""
    flags = arguments(plan_for("gpt-oss-120b", parallel__ep=8))
    assert flags["--window-size"] == ("127,0",)
    assert flags["--window-attn-skip-freq"] == ("([1,0]*18)",)
    assert flags["--softmax-type"] == ("learnable",)
    assert flags["--position-embedding-type"] == ("yarn",)
    assert flags["--activation-func-clamp-value"] == ("7.0",)
    assert "--quick-geglu" in flags and "--swiglu" not in flags
    assert "--disable-bias-linear" not in flags


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # The parser's defaults would be tp, allgather and 32.
        ({"parallel__tp": 4}, {"--expert-tensor-parallel-size": ("1",), "--moe-token-dispatcher-type": ("alltoall",)}),
        # MoE training with tensor parallelism needs sequence parallelism.
        ({"parallel__tp": 2}, {"--sequence-parallel": ()}),
        # The back end alone does nothing.
        (
            {"moe__dispatcher": "hybridep", "parallel__ep": 8},
            {"--moe-token-dispatcher-type": ("flex",), "--moe-flex-dispatcher-backend": ("hybridep",)},
        ),
        # Lighter state and offload come with the precision-aware optimizer.
        ({"optimizer__state_dtype": "bf16"}, {"--use-precision-aware-optimizer": (), "--exp-avg-sq-dtype": ("bf16",)}),
        (
            {"optimizer__offload_fraction": 0.5},
            {"--use-precision-aware-optimizer": (), "--optimizer-offload-fraction": ("0.5",)},
        ),
        # Full recompute wants method and number spelled out.
        ({"recompute__granularity": "full"}, {"--recompute-method": ("uniform",), "--recompute-num-layers": ("1",)}),
        (
            {"recompute__granularity": "full", "recompute__layers": 3},
            {"--recompute-method": ("block",), "--recompute-num-layers": ("3",)},
        ),
        ({"optimizer__sharding": 3}, {"--use-megatron-fsdp": (), "--ckpt-format": ("fsdp_dtensor",)}),
        ({"precision": "fp8"}, {"--bf16": (), "--fp8-recipe": ("blockwise",), "--fp8-format": ("e4m3",)}),
        ({"gpu": "b200", "precision": "fp8"}, {"--fp8-recipe": ("tensorwise",)}),
        ({"gpu": "b200", "precision": "mxfp8"}, {"--fp8-recipe": ("mxfp8",)}),
        ({"parallel__pp": 2, "parallel__vpp": 4}, {"--num-virtual-stages-per-pipeline-rank": ("4",)}),
        ({"parallel__cp": 2, "parallel__cp_comm": "allgather"}, {"--cp-comm-type": ("all_gather",)}),
        ({"moe__top_k": 4}, {"--moe-router-topk": ("4",)}),
    ],
)
def test_traps_of_the_parser(values: dict[str, Any], expected: dict[str, tuple[str, ...]]) -> None:
    flags = arguments(plan_for(**values))
    assert {name: flags.get(name) for name in expected} == expected


def test_mxfp8_gathers_no_parameters_without_the_gradient_buffer() -> None:
    """Megatron-Core: --fp8-param-gather and --reuse-grad-buf-for-mxfp8-param-ag belong together."""
    flags = arguments(plan_for(gpu="b200", precision="mxfp8"))
    assert ("--fp8-param-gather" in flags) == ("--reuse-grad-buf-for-mxfp8-param-ag" in flags)


def test_etp_is_always_spelled_out_even_for_dense_models() -> None:
    assert arguments(plan_for("llama-3-8b", parallel__tp=2))["--expert-tensor-parallel-size"] == ("1",)


@pytest.mark.parametrize(
    ("values", "connections"),
    [
        ({"parallel__tp": 2}, "1"),  # Hopper with tensor parallelism
        ({"parallel__cp": 2}, "1"),
        ({"gpu": "a100", "parallel__tp": 2}, "1"),
        ({"gpu": "b200", "parallel__tp": 2}, None),  # Blackwell needs none
        ({}, None),
        ({"parallel__tp": 2, "optimizer__sharding": 3}, "8"),  # FSDP refuses 1
        ({"overlap__ep": True, "parallel__ep": 8}, "32"),
    ],
)
def test_cuda_device_max_connections(values: dict[str, Any], connections: str | None) -> None:
    found = environment(plan_for(**values)).get("CUDA_DEVICE_MAX_CONNECTIONS")
    assert (found[0] if found else None) == connections


def test_hybridep_knows_the_nvlink_domain() -> None:
    found = environment(plan_for(gpu="gb200-nvl72", gpus=144, moe__dispatcher="hybridep", parallel__ep=72))
    assert found["NUM_OF_HYBRID_EP_RANKS_PER_NVLINK_DOMAIN"][0] == "72"
    assert found["USE_MNNVL"][0] == "1"


def test_uneven_split_counts_embedding_and_loss() -> None:
    """62 = 60 + embedding + loss divides by 2 * 31, 60 does not divide by 31... here: 94 + 2 over 16 stages."""
    flags = arguments(plan_for("qwen3-235b-a22b", gpus=128, parallel__pp=16))
    assert "--account-for-embedding-in-pipeline-split" in flags and "--account-for-loss-in-pipeline-split" in flags
    even = arguments(plan_for("qwen3-235b-a22b", gpus=128, parallel__pp=2))
    assert "--account-for-embedding-in-pipeline-split" not in even


def stopped(script: str, folder: Path, **variables: str) -> subprocess.CalledProcessError:
    with pytest.raises(subprocess.CalledProcessError) as raised:
        started(script, folder, **variables)
    return raised.value


def test_another_world_size_is_stopped(tmp_path: Path) -> None:
    script = launch.render(plan_for(gpus=64, parallel__ep=8), "megatron")["megatron.sh"]
    words, _ = started(script, tmp_path, **ENVIRONMENT)
    assert words[:4] == ["--nnodes", "8", "--nproc-per-node", "8"]
    words, _ = started(script, tmp_path, **ENVIRONMENT, SLURM_JOB_NUM_NODES="16", GPUS_PER_NODE="4", SLURM_NODEID="3")
    assert words[:6] == ["--nnodes", "16", "--nproc-per-node", "4", "--node-rank", "3"]
    error = stopped(script, tmp_path, **ENVIRONMENT, NNODES="4")
    assert error.returncode == 2
    assert "planned for 64 GPUs, started on 4 nodes of 8" in error.stderr
    assert "set MASTER_ADDR" in stopped(script, tmp_path, MEGATRON_PATH="/megatron").stderr
    assert "MEGATRON_PATH" in stopped(script, tmp_path, MASTER_ADDR="first").stderr


def test_data_and_checkpoints_come_from_the_environment(tmp_path: Path) -> None:
    script = launch.render(plan_for(gpus=8), "megatron")["megatron.sh"]
    words, _ = started(script, tmp_path, MEGATRON_PATH="/megatron")
    assert "--mock-data" in words and "NullTokenizer" in words and "--save" not in words
    words, _ = started(
        script,
        tmp_path,
        MEGATRON_PATH="/my megatron",
        DATA_PATH="/data/one /data/two",
        TOKENIZER_MODEL="/my tokenizer",
        CHECKPOINT_DIR="/my checkpoints",
        TRAIN_ITERS="7",
    )
    assert "/my megatron/pretrain_gpt.py" in words and "--mock-data" not in words
    at = words.index("--data-path")
    assert words[at : at + 3] == ["--data-path", "/data/one", "/data/two"]
    assert words[words.index("--tokenizer-model") + 1] == "/my tokenizer"
    assert words[words.index("--load") + 1] == "/my checkpoints"
    assert words[words.index("--train-iters") + 1] == "7"


def test_slurm_script_starts_the_launch_script_on_every_node(tmp_path: Path) -> None:
    text = launch.render(plan_for(gpus=64), "megatron")["megatron.sbatch"]
    directives = dict(re.findall(r"^#SBATCH --([a-z-]+)=(\S+)$", text, re.MULTILINE))
    assert (directives["nodes"], directives["gpus-per-node"], directives["ntasks-per-node"]) == ("8", "8", "1")
    before = [line for line in text.split("\n#SBATCH")[0].split("\n") if not line.startswith("#")]
    assert before == [], "Slurm reads no directive behind the first command"
    scontrol = tmp_path / "programs" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text("#!/bin/sh\necho node7\necho node8\n")
    scontrol.chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "node[7-14]", "SLURM_JOB_ID": "12345", "SLURM_SUBMIT_DIR": "/my jobs"}
    words, variables = started(text, tmp_path, "srun", SLURM_JOB_NUM_NODES="8", **slurm)
    assert words[-2:] == ["bash", "/my jobs/megatron.sh"]
    assert (variables["MASTER_ADDR"], variables["MASTER_PORT"]) == ("node7", "32345")
    error = stopped(text, tmp_path, SLURM_JOB_NUM_NODES="4", **slurm)
    assert error.returncode == 2 and "planned for 8 nodes, started on 4" in error.stderr


@pytest.mark.parametrize(
    ("bits", "expression"),
    [
        ([0] * 3 + [1] * 58, "([0]*3+[1]*58)"),
        ([1, 0] * 18, "([1,0]*18)"),
        ([0, 0, 0, 1] * 12, "([0,0,0,1]*12)"),
        ([1], "([1]*1)"),
        ([0, 1, 1, 0, 1], "([0]*1+[1]*2+[0]*1+[1]*1)"),
    ],
)
def test_layer_patterns_evaluate_to_the_layers(bits: list[int], expression: str) -> None:
    """Megatron evaluates the expression as Python (arguments.py, _eval_pattern) and allows only these characters."""
    assert pattern(bits) == expression
    assert not re.search(r"[^,\d\[\]()+*]", expression)
    assert eval(expression) == bits


def test_uneven_layouts_of_the_cases_are_megatrons() -> None:
    """The generator of test cases itself: every layer once, the embedding first, the loss last."""
    plan = plan_of("deepseek-v3", {"hardware.gpu": "h100", "hardware.gpus": 128, "layout": 16})
    layout = plan.parallel.pipeline_layout or ""
    assert layout.count("t") == 61 and layout.count("|") == 15 and layout[0] == "E" and layout.endswith("mL")


def test_the_command_line_has_no_fused_loss_and_its_file_says_what_that_costs() -> None:
    # arguments.py refuses Transformer Engine's fusion; the native one keeps fp32 logits (Megatron-LM's CI pays for it).
    plan = plan_for(gpu="h200", gpus=16, parallel__ep=16, batch__micro_batch_size=2)
    text = launch.render(plan, "megatron", moeplan.estimate(plan))["megatron.sh"]
    assert "cross-entropy-loss-fusion" not in text
    unfused = moeplan.estimate(plan.with_values({"kernels.fused_cross_entropy": False}))
    assert unfused.memory.peak_reserved_gib > moeplan.estimate(plan).memory.peak_reserved_gib
    assert f"peak memory {unfused.memory.peak_reserved_gib:.1f} GiB reserved" in text
    assert "the loss runs unfused" in text


def test_a_plan_that_fits_only_with_the_fused_loss_is_called_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tight = next(
        plan
        for size in (8, 16, 24, 32, 40)
        if moeplan.estimate(
            plan := plan_for(
                gpu="h200",
                gpus=16,
                parallel__ep=16,
                batch__micro_batch_size=size,
                batch__global_batch_size=16 * size,
                recompute__granularity="full",
            )
        ).fits
        and not moeplan.estimate(plan.with_values({"kernels.fused_cross_entropy": False})).fits
    )
    path = tmp_path / "plan.yaml"
    path.write_text(tight.to_yaml(), encoding="utf-8")
    assert run(["launch", str(path), "--to", "megatron", "-o", str(tmp_path / "run")]) == 0
    assert "as it runs there it needs" in capsys.readouterr().err
    assert "DOES NOT FIT" in (tmp_path / "run" / "megatron.sh").read_text(encoding="utf-8")


def test_a_search_launches_the_best_plan_that_fits_as_megatron_runs_it(tmp_path: Path) -> None:
    """Where the best plan fits with the fused loss only, the file is of the best one that fits without."""
    asked: dict[str, Any] = {"model": "qwen3-30b-a3b", "gpu": "h100", "gpus": 8}
    best = moeplan.search(**asked).top[0].plan
    # With a margin between the two, the fastest plan stays the fastest that fits, and does not fit without.
    spare = [
        moeplan.estimate(plan, margin_gib=0.0).memory.headroom_gib
        for plan in (best, best.with_values({"kernels.fused_cross_entropy": False}))
    ]
    assert spare[1] < spare[0]
    predict = partial(moeplan.estimate, margin_gib=max(sum(spare) / 2, 0.0))
    answer = moeplan.search(**asked, **predict.keywords)
    fits = [predict(found.plan.with_values({"kernels.fused_cross_entropy": False})).fits for found in answer.top]
    assert answer.top[0].plan == best and not fits[0] and any(fits)
    write_folder(answer, str(tmp_path / "run"), "megatron", overwrite=False, command="moeplan search", predict=predict)
    assert "(fits)" in (tmp_path / "run" / "megatron.sh").read_text(encoding="utf-8")
    place = fits.index(True) + 1
    assert f"megatron: plan {place} of the search" in (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
