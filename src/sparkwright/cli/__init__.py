"""The command line: one module per command group, each thin: parse, call, print."""

import sys

import typer

from sparkwright import __version__
from sparkwright.cli import checkpoint, image, jit_cache, patch, pins, recipe
from sparkwright.cli.about import about
from sparkwright.cli.audit import audit
from sparkwright.cli.build import build
from sparkwright.cli.doctor import doctor
from sparkwright.cli.quantize import quantize
from sparkwright.cli.roofline import roofline
from sparkwright.errors import SparkwrightError, UsageError
from sparkwright.report import note

_TYPER_USAGE = 2  # what typer ends with when the command line is wrong

app = typer.Typer(
    name="sparkwright",
    help="Build, prove and run vLLM on the NVIDIA DGX Spark (GB10, compute capability 12.1).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(build)
app.command()(image.push)
app.command()(audit)
app.command()(about)
app.command()(doctor)
app.add_typer(jit_cache.app, name="jit-cache")
app.add_typer(pins.app, name="pins")
app.add_typer(patch.app, name="patch")
app.add_typer(image.app, name="image")
app.add_typer(checkpoint.app, name="checkpoint")
app.command()(roofline)
app.command()(quantize)
app.add_typer(recipe.app, name="recipe")


@app.callback(invoke_without_command=True)
def _version(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version of sparkwright and end."),
) -> None:
    if version:
        print(f"sparkwright {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


def main() -> None:
    """Run the command line; an error of ours ends it with its message and its own exit code."""
    try:
        app()
    except SparkwrightError as error:
        note(f"sparkwright: {error}")
        sys.exit(error.exit_code)
    except SystemExit as end:
        # A command may itself end with 2 (typer.Exit): that stands.
        wrong_usage = end.code == _TYPER_USAGE and not isinstance(end.__context__, typer.Exit)
        sys.exit(UsageError.exit_code if wrong_usage else end.code)
