"""Batch and sequence length."""

from __future__ import annotations

from moeplan.search.facts import Facts
from moeplan.search.rules.base import Finding, Row, View, rule


@rule(
    "gpus tp pp cp micro_batch_size global_batch_size",
    "micro_batch_size global_batch_size",
    "Megatron-Core num_microbatches_calculator.py: global_batch_size % (micro_batch_size * dp) == 0",
)
def batch_divides(facts: Facts, view: View) -> Finding:
    """The global batch is a whole number of micro batches on every data-parallel rank."""
    whole = view.dp % 1 == 0

    def per_pass(row: Row) -> int:
        return int(row["micro_batch_size"] * row["gpus"] // (row["tp"] * row["pp"] * row["cp"]))

    def remedy(row: Row) -> str:
        step = per_pass(row)
        below = row["global_batch_size"] // step * step
        return f"use a multiple of {step}, such as {below or step}, or another micro_batch_size"

    return Finding(
        whole & ((view.micro_batches % 1 != 0) | (view.micro_batches < 1)),
        lambda row: (
            f"global_batch_size {row['global_batch_size']} is not a multiple of micro_batch_size * dp = {per_pass(row)}"
        ),
        remedy,
    )


@rule("sequence_length cp", "cp sequence_length", "Megatron-LM arguments.py: seq_length % (2 * cp) == 0")
def sequence_divides_by_cp(facts: Facts, view: View) -> Finding:
    """Context parallelism deals 2*cp equal pieces (a causal mask's cheap and dear halves)."""
    return Finding(
        (view["cp"] > 1) & (view["sequence_length"] % (2 * view["cp"]) != 0),
        lambda row: (
            f"a sequence of {row['sequence_length']} tokens does not divide into 2*cp = {2 * row['cp']} equal pieces"
        ),
    )


@rule("sequence_length cp tp sp", "tp cp sequence_length", "Megatron-Core schedules.py: seq_length / cp / tp under SP")
def sequence_divides_by_tp(facts: Facts, view: View) -> Finding:
    """Sequence parallelism cuts each rank's piece over tp."""
    return Finding(
        view.sequence_parallel & (view["sequence_length"] % (view["cp"] * view["tp"]) != 0),
        lambda row: (
            f"sequence parallelism cuts {row['sequence_length']} tokens over cp*tp = {row['cp'] * row['tp']}, "
            "which does not divide them"
        ),
    )


@rule("sequence_length", "sequence_length", "Megatron-LM arguments.py: max_position_embeddings >= seq_length")
def sequence_within_positions(facts: Facts, view: View) -> Finding:
    """The sequence is no longer than the model's positions."""
    longest = facts.max_sequence_length or float("inf")
    return Finding(
        view["sequence_length"] > longest,
        lambda row: (
            f"a sequence of {row['sequence_length']} tokens is longer than the {longest} positions of {facts.model}"
        ),
        lambda row: f"use at most {longest}",
    )
