"""The one way to start another program."""

import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from sparkwright.errors import CommandFailedError, UnavailableError

_TAIL_LINES = 40


def run(
    argv: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
    stdin: str | None = None,
    echo: bool = False,
) -> str:
    """Run a program to its end and return what it wrote to stdout.

    stderr is captured too and shown only when the program fails. With `log`, both streams go to that
    file as they come, and the returned text is empty. `env` replaces the environment when given.

    Raises:
        UnavailableError: the program does not exist.
        CommandFailedError: it ended with a non-zero status; the message carries the end of its output.
    """
    command = [os.fspath(word) for word in argv]
    if echo:
        print(f"+ {shlex.join(command)}", file=sys.stderr, flush=True)
    answer = ""
    try:
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("a", encoding="utf-8") as stream:
                status = subprocess.run(
                    command, cwd=cwd, env=env, stdout=stream, stderr=subprocess.STDOUT, check=False
                ).returncode
            output = log.read_text(encoding="utf-8", errors="replace")
        else:
            done = subprocess.run(
                command, cwd=cwd, env=env, input=stdin, capture_output=True, text=True, errors="replace", check=False
            )
            status, answer = done.returncode, done.stdout
            output = f"{done.stdout}{done.stderr}"
    except FileNotFoundError as error:
        raise _missing(command, error) from error
    if status != 0:
        raise _failure(command, status, output, log)
    return answer


def run_lines(
    argv: Sequence[str | Path],
    *,
    on_line: Callable[[str], None],
    log: Path,
    env: Mapping[str, str] | None = None,
) -> None:
    """Run a program to its end and hand over each line that it writes, while it runs; `log` gets them all.

    When this process is interrupted, the program is told to end and waited for.

    Raises:
        UnavailableError: the program does not exist.
        CommandFailedError: it ended with a non-zero status; the message carries the end of its output.
    """
    command = [os.fspath(word) for word in argv]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8", buffering=1) as copy:
        try:
            process = subprocess.Popen(
                command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
            )
        except FileNotFoundError as error:
            raise _missing(command, error) from error
        with process:
            try:
                for line in process.stdout or ():
                    copy.write(line)
                    on_line(line.rstrip("\n"))
            except BaseException:
                process.terminate()
                raise
    if process.returncode != 0:
        raise _failure(command, process.returncode, log.read_text(encoding="utf-8", errors="replace"), log)


def end_children() -> None:
    """Tell all that this process started to end: a signal to it alone, unlike Ctrl-C, does not reach them."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()


def _missing(command: Sequence[str], error: FileNotFoundError) -> UnavailableError:
    return UnavailableError(
        f"{command[0]} cannot be started: {error.strerror or error}",
        cause="it is not installed, or not on PATH",
    )


def _failure(command: Sequence[str], status: int, output: str, log: Path | None) -> CommandFailedError:
    tail = "\n".join(output.splitlines()[-_TAIL_LINES:])
    return CommandFailedError(
        f"{shlex.join(command)} ended with status {status}\n{tail}",
        remedy=f"the whole output is in {log}" if log else "",
    )
