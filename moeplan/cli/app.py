"""The command group, and the one place that turns what happened into an exit status and one line on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

import click

from moeplan import __version__
from moeplan.cli import status
from moeplan.errors import PlanError, nearest

# Command -> what it answers. The module of a command has its name and a ``command`` in it; it is imported only when
# the command is run, so that ``moeplan --help`` stays instant.
COMMANDS: dict[str, str] = {
    "search": "Find the best configuration that fits.",
    "estimate": "Memory, step time and cost of one configuration.",
    "max-batch": "The largest batch that fits, and what binds it.",
    "compare": "Parallel strategies side by side.",
    "calculate": "The sizing calculator for a model given by counts.",
    "launch": "Write launch files for a plan.",
    "import": "Read a launch script or config into a plan.",
    "model": "Count a model's parameters.",
    "models": "List the models of the catalog.",
    "gpus": "List the GPUs of the catalog.",
    "schema": "Print the JSON Schema of a document.",
    "calibrate": "Fit factors to measured runs.",
    "measure": "Benchmark this machine's GPU into factors.",
}


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports them on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of a command."""
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"moeplan.cli.{cmd_name.replace('-', '_')}_command")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click, but an unknown command is answered with the nearest."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            hint = nearest(name, COMMANDS, f"choose from {', '.join(COMMANDS)}")
            raise PlanError("moeplan", f"unknown command {name!r}", hint)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit status: 0 done, 1 internal error, 2 bad input, 3 nothing fits, 4 stopped by a budget, 130 Ctrl-C.",
)
@click.version_option(__version__, prog_name="moeplan")
def group() -> None:
    """Find the largest, fastest training configuration of a Mixture-of-Experts model that fits the GPUs you have.

    \b
    moeplan search mixtral-8x7b --gpu a100-sxm-80gb --gpus 64
    moeplan estimate deepseek-v3 --gpu h800 --gpus 2048 --pp 16 --ep 64 --pipeline-layout 'Et*4|(t*4|)*14tmL'
    moeplan max-batch qwen3-30b-a3b --gpu h100 --gpus 16
    """


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; whatever went wrong is one line on stderr."""
    _tolerate_any_text()
    try:
        # Not group.main(): it turns a reader that left into status 1.
        with group.make_context("moeplan", list(sys.argv[1:] if arguments is None else arguments)) as context:
            result = group.invoke(context)
        sys.stdout.flush()
        return result if isinstance(result, int) else status.DONE
    except click.exceptions.Exit as leaving:
        return leaving.exit_code
    except PlanError as error:
        return _say(str(error), status.BAD_INPUT)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else error.format_message(), err=True)
        return status.BAD_INPUT
    except click.ClickException as error:
        return _say(explain(error), status.BAD_INPUT)
    except (KeyboardInterrupt, click.Abort):
        return _say("moeplan: interrupted", status.INTERRUPTED)
    except BrokenPipeError:
        # The reader left (``| head``): that is its right. Python would complain again while it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return status.DONE
    except Exception as error:
        if os.environ.get("MOEPLAN_TRACEBACK"):
            raise
        what = " ".join(f"{type(error).__name__}: {error}".split())
        return _say(
            f"moeplan: internal error: {what}; set MOEPLAN_TRACEBACK=1 to see where, and please report it",
            status.INTERNAL_ERROR,
        )


def explain(error: click.ClickException) -> str:
    """Click's complaint in our form: ``where: what is wrong; what to do``."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    where = context.command_path if context else "moeplan"
    remedy = f"see {where} --help"
    if isinstance(error, click.NoSuchOption):
        known = (
            [name for parameter in context.command.get_params(context) for name in parameter.opts] if context else []
        )
        return str(PlanError(where, f"unknown option {error.option_name}", nearest(error.option_name, known, remedy)))
    if isinstance(error, click.MissingParameter):
        name = error.param.human_readable_name.upper() if error.param is not None else "a parameter"
        if error.param is not None and error.param.param_type_name == "option":
            name = error.param.opts[0]
        return str(PlanError(where, f"{name} is missing", remedy))
    if isinstance(error, click.BadParameter) and error.param is not None:
        shown = error.param.opts[0] if error.param.param_type_name == "option" else error.param.human_readable_name
        return str(PlanError(shown, error.message.rstrip("."), remedy))
    return str(PlanError(where, error.format_message().rstrip("."), remedy))


def _say(message: str, code: int) -> int:
    """Print one line on stderr; a closed stderr is no reason to fail."""
    try:
        sys.stdout.flush()
        click.echo(message, err=True)
    except OSError:
        return code
    return code


def _tolerate_any_text() -> None:
    """Characters that the terminal's encoding lacks are replaced, never an error."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
