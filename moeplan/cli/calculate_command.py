"""``moeplan calculate``: the sizing calculator for a model given by counts."""

from __future__ import annotations

import click

from moeplan.cli import status
from moeplan.cli.output import console, json_option, print_json


def _numbers(flag: str, text: str) -> list[float]:
    from moeplan.model.counted import parse_count

    return [
        parse_count(flag, f"0{word}" if word.startswith(".") else word) for word in text.replace("_", "").split(",")
    ]


@click.command("calculate")
@click.option("--experts", required=True, metavar="N", help="Routed experts.")
@click.option("--expert-params", required=True, metavar="N", help="Parameters of one expert: 1B, 250M, 1e9.")
@click.option("--shared-params", default="0", metavar="N", help="Parameters that every token meets (default 0).")
@click.option("--batch-size", default="4096", metavar="N[,N...]", help="Tokens in the batch (default 4096).")
@click.option("--active-ratio", default="1", metavar="X[,X...]", help="Part of the experts a token meets (default 1).")
@click.option("--output-dim", default="1024", metavar="N", help="Width of an expert's output (default 1024).")
@click.option("--dtype", default="bf16", metavar="NAME", help="fp32, tf32, fp16, bf16 or fp8 (default bf16).")
@click.option("--optimizer", default="adam", metavar="NAME", help="adam, adamw, sgd, muon or lion (default adam).")
@click.option("--activation-dtype", default="fp32", metavar="NAME", help="Type of saved activations (default fp32).")
@click.option("--gpu", default=None, metavar="NAME", help="Count how many of this GPU hold it at least.")
@json_option
def command(
    experts: str,
    expert_params: str,
    shared_params: str,
    batch_size: str,
    active_ratio: str,
    output_dim: str,
    dtype: str,
    optimizer: str,
    activation_dtype: str,
    gpu: str | None,
    as_json: bool,
) -> int:
    """Size the training memory of a Mixture of Experts that is known by its counts only.

    Several batch sizes or active ratios, separated by commas, are compared side by side.

    \b
    moeplan calculate --experts 64 --expert-params 1B --shared-params 10B --batch-size 4096 --active-ratio 0.25
    """
    from moeplan.answers.sizing import calculate

    document = calculate(
        experts=_numbers("--experts", experts)[0],
        expert_parameters=_numbers("--expert-params", expert_params)[0],
        shared_parameters=_numbers("--shared-params", shared_params)[0],
        batch_size=_numbers("--batch-size", batch_size),
        active_ratio=_numbers("--active-ratio", active_ratio),
        output_dim=_numbers("--output-dim", output_dim)[0],
        dtype=dtype,
        optimizer=optimizer,
        activation_dtype=activation_dtype,
        gpu=gpu,
    )
    if as_json:
        print_json(document)
    else:
        from moeplan.report.sizing import show_sizing

        show_sizing(document, console())
    return status.DONE
