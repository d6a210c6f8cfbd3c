"""``moeplan measure``: this machine's GPU benchmarked into factors."""

from __future__ import annotations

import click

from moeplan.cli import status
from moeplan.cli.calibrate_command import write_calibration
from moeplan.cli.output import console, json_option, print_json, warn


@click.command("measure")
@click.option("--gpu", default=None, metavar="NAME", help="Catalog name of the GPU (default: by the device's name).")
@click.option("-o", "--output", default=None, metavar="FILE", help="Write the calibration there.")
@click.option("--overwrite", is_flag=True, help="Replace the file if it is there.")
@json_option
def command(gpu: str | None, output: str | None, overwrite: bool, as_json: bool) -> int:
    """Benchmark matrix products, attention and memory on this machine's GPU.

    Needs torch (pip install 'moeplan[measure]') and a GPU; without one it says so. The factors go to a file that every
    command takes with --calibration.
    """
    from moeplan.calibration import measure_gpu

    calibration = measure_gpu(gpu, progress=lambda line: click.echo(line, err=True))
    write_calibration(calibration, output, overwrite)
    if as_json:
        print_json(calibration)
    else:
        from moeplan.report.calibration import show_kernels

        show_kernels(calibration, console())
    for line in calibration.warnings:
        warn(line)
    return status.DONE
