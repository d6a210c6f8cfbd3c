"""Megatron-LM: a torchrun script that every node runs, and an sbatch script that starts it on all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moeplan.frameworks.carried import Carried, what_to_carry
from moeplan.frameworks.megatron_flags import plan_values
from moeplan.launch.heading import heading
from moeplan.launch.megatron_model import model_flags
from moeplan.launch.megatron_plan import environment, flat, plan_flags
from moeplan.launch.megatron_words import FlagList, ModelFlags
from moeplan.launch.refusal import Refusal
from moeplan.launch.words import comment, one_line, shell
from moeplan.plan import Plan

if TYPE_CHECKING:
    from moeplan.answers.documents import Estimate

SCRIPT = "megatron.sh"
BATCH_SCRIPT = "megatron.sbatch"

# What a plan does not say and a run needs; each may be set in the environment.
_TRAINING = r"""
# Optimization: not part of the plan. Set these in the environment or edit them.
TRAINING_ARGS=(
    --train-iters "${TRAIN_ITERS:-1000}"
    --lr "${LR:-3e-4}"
    --min-lr "${MIN_LR:-3e-5}"
    --lr-decay-style cosine
    --lr-warmup-fraction "${LR_WARMUP_FRACTION:-0.01}"
    --weight-decay "${WEIGHT_DECAY:-0.1}"
    --adam-beta1 0.9
    --adam-beta2 "${ADAM_BETA2:-0.95}"
    --clip-grad 1.0
    --seed "${SEED:-1234}"
    --eval-interval 1000
    --eval-iters "${EVAL_ITERS:-0}"
    --log-interval "${LOG_INTERVAL:-1}"
    --log-throughput
    --manual-gc
    --manual-gc-interval 100
    --distributed-timeout-minutes 60
    --no-create-attention-mask-in-dataloader
)

# Data: set DATA_PATH (prefixes of indexed data sets, separated by blanks) and TOKENIZER_MODEL; without, mock data.
if [ -n "${DATA_PATH:-}" ]; then
    read -r -a DATA_PREFIXES <<< "$DATA_PATH"
    DATA_ARGS=(
        --data-path "${DATA_PREFIXES[@]}"
        --split "${DATA_SPLIT:-99,1,0}"
        --tokenizer-type "${TOKENIZER_TYPE:-HuggingFaceTokenizer}"
        --tokenizer-model "${TOKENIZER_MODEL:?set TOKENIZER_MODEL to the folder or name of the tokenizer}"
    )
else
    DATA_ARGS=(--mock-data --tokenizer-type NullTokenizer)
fi

# Checkpoints: set CHECKPOINT_DIR to save and to go on from.
CHECKPOINT_ARGS=()
if [ -n "${CHECKPOINT_DIR:-}" ]; then
    CHECKPOINT_ARGS=(--save "$CHECKPOINT_DIR" --load "$CHECKPOINT_DIR" --save-interval "${SAVE_INTERVAL:-500}")
fi
"""

_START = r"""
: "${MEGATRON_PATH:?set MEGATRON_PATH to a checkout of Megatron-LM}"
exec torchrun \
    --nnodes "$NNODES" \
    --nproc-per-node "$GPUS_PER_NODE" \
    --node-rank "$NODE_RANK" \
    --master-addr "$MASTER_ADDR" \
    --master-port "$MASTER_PORT" \
    "$MEGATRON_PATH/pretrain_gpt.py" \
    "${MEGATRON_ARGS[@]}" "${TRAINING_ARGS[@]}" "${DATA_ARGS[@]}" "${CHECKPOINT_ARGS[@]}" "$@"
"""


def render(
    plan: Plan, estimate: Estimate | None = None, command: str | None = None, notes: tuple[str, ...] = ()
) -> dict[str, str]:
    """The launch files of a plan that :func:`refusals` has nothing against: name -> text."""
    model = _model(plan)
    told = (*notes, *model.notes, *_notes(plan))
    return {
        SCRIPT: _script(plan, model.flags, heading(plan, "Megatron-LM launch script", estimate, command, told)),
        BATCH_SCRIPT: _batch_script(
            plan, heading(plan, "Slurm batch script for Megatron-LM", estimate, command, notes)
        ),
    }


def arguments(plan: Plan) -> FlagList:
    """Every flag of the model and of the plan, without data and optimization."""
    return _model(plan).flags | flat(plan_flags(plan))


def carried(plan: Plan) -> Carried:
    """What the flags cannot say of the plan."""
    variables = {name: value for name, (value, _) in environment(plan).items()}
    return what_to_carry(plan, plan_values(arguments(plan), variables))


def as_run(plan: Plan) -> Plan:
    """The plan as Megatron-LM's command line runs it: with the unfused loss, whose fp32 logits cost memory.

    The parser refuses Transformer Engine's fused loss, and the native one keeps one fp32 copy of the logits more than
    the unfused loss (Megatron-LM ``arguments.py``, ``fused_cross_entropy.py``).
    """
    return plan.with_values({"kernels.fused_cross_entropy": False})


def refusals(plan: Plan) -> list[Refusal]:
    """Why Megatron-LM cannot run the plan; empty where it can. Legality rules are checked by the caller."""
    model = _model(plan)
    found = list(model.refusals)
    if model.flags.get("--position-embedding-type") == ("yarn",) and "--mtp-num-layers" in model.flags:
        found.append(
            Refusal(
                "Megatron-LM has multi-token prediction with rope positions only, the model has YaRN",
                "set mtp_layers: 0",
                {"mtp_layers": 0},
            )
        )
    found += whole_nodes(plan)
    return found


def whole_nodes(plan: Plan) -> list[Refusal]:
    """A refusal where the GPUs do not fill whole nodes: launchers start the same number of processes on each."""
    gpus, per_node = plan.hardware.gpus, plan.gpus_per_node
    if gpus <= per_node or gpus % per_node == 0:
        return []
    fitting = max(size for size in range(1, per_node + 1) if gpus % size == 0)
    return [
        Refusal(
            f"{gpus} GPUs are not whole nodes of {per_node}",
            f"set hardware.gpus_per_node: {fitting}, or another number of GPUs",
            {"hardware.gpus_per_node": fitting},
        )
    ]


def nodes(plan: Plan) -> tuple[int, int]:
    """Nodes, and processes on each."""
    per_node = min(plan.gpus_per_node, plan.hardware.gpus)
    return plan.hardware.gpus // per_node, per_node


def _model(plan: Plan) -> ModelFlags:
    found = model_flags(plan.architecture(), plan.moe.top_k, plan.mtp_layers, plan.batch.sequence_length)
    if plan.kernels.dropout:
        # A plan has dropout on or off; on is Megatron-LM's own rate.
        found.flags.update({"--attention-dropout": ("0.1",), "--hidden-dropout": ("0.1",)})
    return found


def _notes(plan: Plan) -> list[str]:
    notes = []
    if plan.precision == "mxfp8":
        notes.append(
            "parameters stay bf16 as predicted; --fp8-param-gather with --reuse-grad-buf-for-mxfp8-param-ag (both or "
            "neither) takes less memory"
        )
    if plan.moe.load_imbalance != 1.0:
        notes.append(f"predicted with a load imbalance of {plan.moe.load_imbalance:g} over expert ranks")
    if plan.kernels.fused_cross_entropy:
        notes.append(
            "the loss runs unfused, and so it is predicted: this command line has no fused loss that keeps logits in "
            "16 bits (Megatron-Bridge has: moeplan launch --to megatron-bridge)"
        )
    if plan.framework != "megatron":
        notes.append(f"the prediction follows {plan.framework}'s accounting; set framework: megatron for this launch")
    return notes


def _script(plan: Plan, model: FlagList, lines: list[str]) -> str:
    count, per_node = nodes(plan)
    expert = {flag: words for flag, words in model.items() if flag.startswith(("--moe", "--num-experts"))}
    sections: dict[str, FlagList] = {"model": {k: v for k, v in model.items() if k not in expert}}
    if expert:
        sections["experts"] = expert
    sections |= plan_flags(plan)
    parts = ["#!/usr/bin/env bash", *comment(lines), carried(plan).line(), "set -euo pipefail", ""]
    parts += world_size_check(plan.hardware.gpus, count, per_node)
    parts += ["", "# What this configuration needs of its environment."]
    for name, (value, why) in environment(plan).items():
        parts.append(f"export {name}={shell(value)}" + (f"  # {why}" if why else ""))
    parts += ["", "MEGATRON_ARGS=("]
    for title, flags in sections.items():
        parts.append(f"    # {title}")
        parts += ["    " + " ".join([flag, *map(shell, words)]) for flag, words in flags.items()]
    parts.append(")")
    return "\n".join(parts) + "\n" + _TRAINING + _START


def world_size_check(gpus: int, count: int, per_node: int) -> list[str]:
    """Shell lines that find out nodes, rank and rendezvous, and stop where the world is not the planned one."""
    return [
        "# Where it runs: from Slurm, from the environment, or as planned.",
        f'NNODES="${{NNODES:-${{SLURM_JOB_NUM_NODES:-{count}}}}}"',
        f'GPUS_PER_NODE="${{GPUS_PER_NODE:-{per_node}}}"',
        'NODE_RANK="${NODE_RANK:-${SLURM_NODEID:-0}}"',
        'MASTER_PORT="${MASTER_PORT:-29500}"',
        f"PLANNED_GPUS={gpus}",
        'if [ "$((NNODES * GPUS_PER_NODE))" -ne "$PLANNED_GPUS" ]; then',
        '    echo "planned for $PLANNED_GPUS GPUs, started on $NNODES nodes of $GPUS_PER_NODE: plan again" >&2',
        "    exit 2",
        "fi",
        'if [ "$NNODES" -gt 1 ] && [ -z "${MASTER_ADDR:-}" ]; then',
        '    echo "set MASTER_ADDR to the first node\'s name and NODE_RANK on every node" >&2',
        "    exit 2",
        "fi",
        'MASTER_ADDR="${MASTER_ADDR:-127.0.0.1}"',
    ]


def _batch_script(plan: Plan, lines: list[str]) -> str:
    count, per_node = nodes(plan)
    name = "".join(
        c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in one_line(plan.architecture().name)
    )
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            *comment(lines),
            f"#SBATCH --job-name=moeplan-{name[:60]}",
            f"#SBATCH --nodes={count}",
            "#SBATCH --ntasks-per-node=1",
            f"#SBATCH --gpus-per-node={per_node}",
            "#SBATCH --exclusive",
            "#SBATCH --mem=0",
            "set -euo pipefail",
            "",
            f"PLANNED_NODES={count}",
            'if [ "$SLURM_JOB_NUM_NODES" -ne "$PLANNED_NODES" ]; then',
            '    echo "planned for $PLANNED_NODES nodes, started on $SLURM_JOB_NUM_NODES: plan again" >&2',
            "    exit 2",
            "fi",
            'MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"',
            'MASTER_PORT="${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 20000))}"',
            "export MASTER_ADDR MASTER_PORT",
            "",
            "# Slurm runs a copy of this file, so the launch script is looked for where the job was submitted.",
            f'LAUNCH_SCRIPT="${{LAUNCH_SCRIPT:-${{SLURM_SUBMIT_DIR:-.}}/{SCRIPT}}}"',
            'srun --ntasks-per-node=1 --kill-on-bad-exit=1 bash "$LAUNCH_SCRIPT" "$@"',
            "",
        ]
    )
