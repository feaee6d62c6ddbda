"""The shipped Dockerfile under BuildKit: it builds, compiles only what it must, and refuses what is wrong."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.image.conftest import build_command
from tests.image.engine import Engine

from sparkwright.paths import CHECKOUT
from sparkwright.pins import load_line

pytestmark = [pytest.mark.image, pytest.mark.timeout(1800)]

CONTEXT = [line[1:] for line in (CHECKOUT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
PYTHON_PATCH = "patches/vllm/uma_graph_memory.py"
Edit = Callable[[str], str]


@pytest.fixture
def context(tmp_path: Path) -> Path:
    """A copy of what the Dockerfile is built from, to be spoilt."""
    for name in ("Dockerfile", ".dockerignore", *CONTEXT):
        source = CHECKOUT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        elif source.exists():
            shutil.copy2(source, tmp_path / name)
    return tmp_path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def steps(output: str) -> dict[str, str]:
    """The steps of a build by `[stage n/m] instruction`, each with how it ended."""
    names = dict(re.findall(r"^#(\d+) (\[[^\]]+\d+/\d+\] .*)$", output, re.MULTILINE))
    ends = dict(re.findall(r"^#(\d+) (CACHED|DONE|ERROR)", output, re.MULTILINE))
    return {name: ends.get(number, "") for number, name in names.items()}


def output(engine: Engine, context: Path, target: str) -> str:
    done = subprocess.run(
        ["docker", *build_command(context, target=target)],
        env=dict(engine.variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


@pytest.mark.usefixtures("image")
def test_a_patch_of_python_compiles_nothing_again(engine: Engine, context: Path) -> None:
    edit(context / PYTHON_PATCH, 'new="MemorySnapshot().free_memory"', 'new="(MemorySnapshot().free_memory)"')
    ends = steps(output(engine, context, "native"))
    (patching,) = (end for name, end in ends.items() if name.startswith("[patched") and "RUN" in name)
    assert patching == "DONE"
    compiling = {name: end for name, end in ends.items() if name.startswith("[native")}
    assert len(compiling) >= 3
    assert set(compiling.values()) == {"CACHED"}, compiling


@pytest.mark.usefixtures("image")
def test_a_change_of_what_is_served_compiles_nothing_again(engine: Engine, context: Path) -> None:
    with (context / "src/sparkwright/entrypoint/plan.py").open("a") as stream:
        stream.write("\n# A change.\n")
    ends = steps(output(engine, context, "native"))
    assert {end for name, end in ends.items() if "RUN" in name} == {"CACHED"}, ends


@pytest.mark.usefixtures("image")
def test_a_native_patch_compiles_again(engine: Engine, context: Path) -> None:
    edit(context / "patches/vllm/refuse_plain_sm12x.py", "message(FATAL_ERROR", "message(FATAL_ERROR  ")
    process = subprocess.Popen(
        ["docker", *build_command(context, target="native")],
        env=dict(engine.variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        # Once it compiles, the question is answered.
        if re.search(r"^#\d+ [\d.]+ == compile", line):
            break
    process.terminate()
    process.communicate()
    assert "== compile" in seen, seen[-3000:]


def test_a_wrong_hash_is_refused(engine: Engine, context: Path) -> None:
    pinned = load_line("0.33.0").component("vllm").file("sdist").sha256
    edit(context / "pins/0.33.0.toml", pinned, "0" * 64)
    said = engine.docker(*build_command(context, target="sources"), fails=True)
    assert f"lists vllm-0.33.0.tar.gz with sha256 {pinned}, pinned is {'0' * 64}" in said


def test_a_wrong_hash_of_a_package_is_refused(engine: Engine, context: Path) -> None:
    lock = context / "requirements/sparkwright.txt"
    lock.write_text(re.sub(r"sha256:\w{64}", f"sha256:{'0' * 64}", lock.read_text(encoding="utf-8")), encoding="utf-8")
    said = engine.docker(*build_command(context, target="tool"), fails=True)
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in said


def test_a_drifted_patch_is_refused(engine: Engine, context: Path) -> None:
    edit(
        context / PYTHON_PATCH,
        "edits=_runners(_ACCELERATOR, 6) + _GRAPH_MANAGER + ",
        "edits=_runners(_ACCELERATOR, 7) + ",
    )
    said = engine.docker(*build_command(context, target="patched"), fails=True)
    assert "uma-graph-memory" in said
    assert "drifted" in said


def test_an_architecture_without_a_suffix_is_refused(engine: Engine, context: Path) -> None:
    edit(context / "pins/0.33.0.toml", 'arch_list = ["12.1a"]', 'arch_list = ["12.1"]')
    said = engine.docker(*build_command(context, target="sources"), fails=True)
    assert "arch_list holds 12.1" in said
    assert "leaves them empty" in said


@pytest.mark.usefixtures("image")
def test_an_object_for_plain_12_1_is_refused(engine: Engine, context: Path) -> None:
    """Even when every guard before the audit is taken away: here the flags of one object, in ninja's own file."""
    dockerfile = context / "Dockerfile"
    dockerfile.write_text(
        f"{dockerfile.read_text(encoding='utf-8')}\n"
        "FROM native AS spoilt\n"
        "RUN sed -i '/nvfp4_quant_kernels.cu.o:/,/^$/s/121a/121/g' /opt/sparkwright/build/*/native/build.ninja\n"
        "RUN --mount=type=cache,target=/opt/cache/downloads \\\n"
        '    python -m sparkwright.native native --line "$LINE" --units "$UNITS" --toolchain /opt/toolchain\n',
        encoding="utf-8",
    )
    said = engine.docker(*build_command(context, target="spoilt"), fails=True)
    assert "the machine code is not what was required" in said
    assert "sm_121, not sm_121a" in said
