"""What people see: tables and results on stdout, progress and notices on stderr."""

import json
import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

_WIDE = 200  # columns used when stdout is not a terminal, so that piped tables are not wrapped


_SHORT = 12  # cells up to this width stay on one line, so that a narrow terminal folds the long columns


def console() -> Console:
    """The console for results; wide and plain when stdout is a file or a pipe."""
    return Console(file=sys.stdout) if sys.stdout.isatty() else Console(file=sys.stdout, width=_WIDE)


def note(message: str) -> None:
    """Say something about the work in progress (stderr)."""
    print(message, file=sys.stderr, flush=True)


def gigabytes(count: float) -> str:
    """Bytes in decimal gigabytes, for people."""
    return f"{count / 1e9:,.2f} GB"


def print_json(value: object) -> None:
    """Print a result for scripts."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a result for people; numbers are right-aligned by the caller's formatting."""
    table = Table(title=title, title_justify="left", header_style="bold")
    cells = [[str(cell) for cell in row] for row in rows]
    for number, column in enumerate(columns):
        short = all(len(row[number]) <= _SHORT for row in cells)
        table.add_column(column, overflow="fold", no_wrap=short)
    for row in cells:
        table.add_row(*row)
    console().print(table)


def progress(*, unit: str = "") -> Progress:
    """A progress display on stderr with an estimate; it draws nothing unless stderr is a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}" + (f" {unit}" if unit else "")),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(file=sys.stderr),
        disable=not sys.stderr.isatty(),
    )
