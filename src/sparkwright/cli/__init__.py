"""The command line: one module per command group, each thin: parse, call, print."""

import sys

import typer

from sparkwright.cli import patch
from sparkwright.errors import SparkwrightError

app = typer.Typer(
    name="sparkwright",
    help="Build, prove and run vLLM on the NVIDIA DGX Spark (GB10, compute capability 12.1).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.add_typer(patch.app, name="patch")


def main() -> None:
    """Run the command line; an error of ours ends it with its message and its own exit code."""
    try:
        app()
    except SparkwrightError as error:
        print(f"sparkwright: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
