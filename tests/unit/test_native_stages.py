"""`python -m sparkwright.native STAGE`: what the Dockerfile's stages call."""

import subprocess
import sys

import pytest

from sparkwright.paths import CHECKOUT


def stage(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sparkwright.native", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("wheel", "--externals", "source"), 64, "the source of FlashAttention 2 is in no package index"),
        (("packages",), 64, "name it: --toolchain FOLDER"),
        (("native", "--line", "0.0.1"), 78, "there is no release line 0.0.1"),
        (("native", "--line", "0.16.0"), 78, "unit native cannot be compiled for line 0.16.0"),
        (("nothing",), 2, "invalid choice"),
    ],
)
def test_what_cannot_be_done_is_refused(words: tuple[str, ...], status: int, said: str) -> None:
    done = stage(*words)
    assert done.returncode == status
    assert said in done.stderr


def test_the_compiler_needs_only_the_rooms_that_its_stage_is_given() -> None:
    """A room that were missing in the Dockerfile would be found here, without building it."""
    script = "import sys, sparkwright.native.__main__; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    parts = {name.split(".")[1] for name in loaded if name.startswith("sparkwright.")}
    dockerfile = (CHECKOUT / "Dockerfile").read_text(encoding="utf-8")
    compiling = dockerfile.partition("AS compiling\n")[2].partition("\nFROM ")[0]
    assert {part for part in parts if f"src/sparkwright/{part}" not in compiling} == set()
