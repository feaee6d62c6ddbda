"""The compiler launcher: same exit status as the compiler, one line per call, whatever happens to the call."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sparkwright.native import measure
from sparkwright.native.compile import read_measurements


def launch(log: Path, *command: str | Path) -> tuple[int, dict[str, Any]]:
    status = subprocess.run(
        [sys.executable, "-I", "-S", measure.__file__, log, *command], cwd=log.parent, check=False
    ).returncode
    record: dict[str, Any] = json.loads(log.read_text().splitlines()[-1])
    return status, record


def fake_compiler(folder: Path, body: str) -> Path:
    script = folder / "cc"
    script.write_text(f"#!{sys.executable}\nimport os, sys\n{body}\n")
    script.chmod(0o755)
    return script


def test_cost_and_object_are_recorded(tmp_path: Path) -> None:
    compiler = fake_compiler(tmp_path, "block = bytearray(64_000_000)\nfor _ in range(3_000_000): pass")
    status, record = launch(tmp_path / "log", compiler, "-c", "a.cu", "-o", "a.o")
    assert status == 0
    assert record["object"] == "a.o"
    assert record["peak_mb"] >= 60
    assert record["cpu_seconds"] > 0
    assert record["cache"] == "off"
    assert read_measurements(tmp_path / "log")["a.o"].status == 0


@pytest.mark.parametrize(("body", "expected"), [("sys.exit(3)", 3), ("os.kill(os.getpid(), 9)", 137)])
def test_a_failing_compiler_fails_the_call(tmp_path: Path, body: str, expected: int) -> None:
    status, record = launch(tmp_path / "log", fake_compiler(tmp_path, body), "-o", "a.o")
    assert status == expected
    assert record["status"] != 0


@pytest.mark.parametrize(
    ("counters", "expected"),
    [
        (["direct_cache_hit", "local_storage_hit"], "hit"),
        (["preprocessed_cache_hit"], "hit"),
        (["cache_miss", "direct_cache_miss"], "miss"),
        (["unsupported_compiler_option"], "uncacheable"),
    ],
)
def test_the_compiler_cache_tells_what_it_did(tmp_path: Path, counters: list[str], expected: str) -> None:
    body = f"open(os.environ['CCACHE_STATSLOG'], 'w').write({chr(10).join(['# a.cu', *counters])!r})"
    _, record = launch(tmp_path / "log", fake_compiler(tmp_path, body), "-o", "a.o")
    assert record["cache"] == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cc", "log"]


def test_a_line_cut_short_by_an_interruption_is_left_out(tmp_path: Path) -> None:
    launch(tmp_path / "log", fake_compiler(tmp_path, ""), "-o", "a.o")
    with (tmp_path / "log").open("a") as stream:
        stream.write('{"object": "b.o", "cpu')
    assert list(read_measurements(tmp_path / "log")) == ["a.o"]
