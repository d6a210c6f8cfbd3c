"""``moeplan gpus``: the GPUs of the catalog."""

from __future__ import annotations

import click

from moeplan.cli import status
from moeplan.cli.output import console, json_option, print_json


@click.command("gpus")
@json_option
def command(as_json: bool) -> int:
    """List the GPUs of the catalog with their memory, peaks, links and prices.

    Any of them can be the start of a file of your own: 'like: h100-sxm-80gb' and the figures that differ.
    """
    from moeplan.hardware import gpu_names, load_gpu

    gpus = [load_gpu(name) for name in gpu_names()]
    if as_json:
        print_json({"schema_version": 1, "gpus": [gpu.model_dump(mode="json") for gpu in gpus]})
    else:
        from moeplan.report.catalog import show_gpus

        show_gpus(gpus, console())
    return status.DONE
