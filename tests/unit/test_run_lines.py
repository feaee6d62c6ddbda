"""A long program's lines arrive while it runs; an interruption ends it too."""

import sys
import time
from pathlib import Path

import psutil
import pytest

from sparkwright.errors import CommandFailedError, UnavailableError
from sparkwright.run import run_lines


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_lines_of_both_streams_are_handed_over_and_logged(tmp_path: Path) -> None:
    seen: list[str] = []
    run_lines(
        python("import sys; print('a', flush=True); print('b', file=sys.stderr)"),
        on_line=seen.append,
        log=tmp_path / "logs" / "log",
    )
    assert seen == ["a", "b"]
    assert (tmp_path / "logs" / "log").read_text() == "a\nb\n"


def test_a_failure_carries_the_end_of_the_output(tmp_path: Path) -> None:
    with pytest.raises(CommandFailedError, match="status 3") as caught:
        run_lines(python("print('why'); raise SystemExit(3)"), on_line=lambda _: None, log=tmp_path / "log")
    assert "why" in caught.value.what


def test_a_program_that_does_not_exist_is_told(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="no-such-program"):
        run_lines(["no-such-program"], on_line=lambda _: None, log=tmp_path / "log")


def test_an_interruption_ends_the_program(tmp_path: Path) -> None:
    pids: list[int] = []

    def interrupt(line: str) -> None:
        pids.append(int(line))
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_lines(
            python("import os, time; print(os.getpid(), flush=True); time.sleep(60)"),
            on_line=interrupt,
            log=tmp_path / "log",
        )
    assert time.monotonic() - started < 30
    assert not psutil.pid_exists(pids[0])
