"""./build.sh with a real engine: its tests of the image, what it writes down, and what it says when it cannot build."""

import json
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from tests.image.conftest import BUILD, TAG, Built, Script, build_command, call

from sparkwright.errors import CommandFailedError
from sparkwright.image.checks import check_image
from sparkwright.image.docker import Docker
from sparkwright.image.inventory import lock_name
from sparkwright.image.locked import read_lock
from sparkwright.image.target import Target
from sparkwright.paths import REQUIREMENTS
from sparkwright.pins import default_line
from sparkwright.run import run

pytestmark = [pytest.mark.image, pytest.mark.timeout(1800)]

LINE = default_line()
B12X = "b12x is that of its own package"
AUDIT = "audit of the installed vLLM"
PACKAGES = "/opt/venv/lib/python3*/site-packages"


def faults(docker: Docker, found: dict[str, Any], expected: dict[str, str]) -> dict[str, str]:
    return {one.name: one.detail for one in check_image(docker, found, expected=expected) if not one.passed}


def test_what_was_built_was_tested_and_written_down(built: Built, docker: Docker) -> None:
    record = built.record
    assert record["tested"] is True
    assert {"labels", "configuration", "about", "serve is planned", "runs as any user, read-only"} <= {
        one["name"] for one in record["checks"]
    }
    assert (record["tag"], record["units"], record["dirty"]) == (TAG, "smoke", False)
    assert record["image_id"] == docker.image_id(TAG)
    stored = json.loads((built.checkout / "build" / LINE / "image.json").read_text())
    assert stored == {name: value for name, value in record.items() if name != "differences"}
    size = docker.inspect(TAG)["Size"]
    assert sum(layer["size"] for layer in record["layers"]) == pytest.approx(size, rel=0.001)
    packages = {one["name"]: one["size"] for one in record["packages"]}
    assert packages["torch"] > 500_000_000
    assert 0.8 < sum(packages.values()) / size < 1


def test_its_tests_can_fail(built: Built, docker: Docker) -> None:
    """Here with another commit, and with an option that it was not built with."""
    expected = built.record["arguments"] | {
        "SPARKWRIGHT_REVISION": "1" * 40,
        "REQUIREMENTS": lock_name(LINE, "b12x"),
    }
    wrong = faults(docker, docker.inspect(TAG), expected)
    assert set(wrong) == {"labels", "about", B12X}
    assert "b12x" in wrong[B12X]


@pytest.mark.usefixtures("built")
def test_the_image_can_audit_itself(docker: Docker) -> None:
    """With the cuobjdump and nvdisasm that are in it."""
    audit = f"exec sparkwright audit {PACKAGES}/flashinfer/data/aot/norm/norm.so --require"
    sandbox = ("run", "--rm", "--network", "none", TAG, "bash", "-c")
    docker.run(*sandbox, f"{audit} sm121")
    with pytest.raises(CommandFailedError, match="status 4"):
        docker.run(*sandbox, f"{audit} fp4-mma")


@pytest.mark.usefixtures("built")
def test_the_kernels_of_this_project_are_in_it_and_vllm_finds_them(docker: Docker) -> None:
    sandbox = ("run", "--rm", "--network", "none", TAG)
    docker.run(*sandbox, "bash", "-c", f"exec sparkwright audit {PACKAGES}/gb10_kernels --require sm121")
    ask = "from importlib.metadata import entry_points; print(entry_points(group='vllm.general_plugins'))"
    assert "gb10_kernels.vllm_plugin:register" in docker.run(*sandbox, "python", "-c", ask)


@pytest.mark.long
def test_the_audit_of_an_image_for_a_spark(built: Built, docker: Docker) -> None:
    """The official wheel's libraries pass it: they hold code for 12.0. Its FlashAttention 2 would not."""
    found = deepcopy(docker.inspect(TAG))
    found["Config"]["Labels"]["sparkwright.units"] = "native"
    checks = {one.name: one for one in check_image(docker, found, expected=built.record["arguments"])}
    assert checks[AUDIT].passed, checks[AUDIT].detail
    found["Config"]["Labels"]["sparkwright.externals"] = "compiled"
    checks = {one.name: one for one in check_image(docker, found, expected=built.record["arguments"])}
    assert not checks[AUDIT].passed
    assert "_vllm_fa2_C.abi3.so" in checks[AUDIT].detail


@pytest.mark.long
def test_the_option_b12x_installs_its_own_package(built: Built, docker: Docker) -> None:
    tag = "sparkwright-test:b12x"
    lock = lock_name(LINE, "b12x")
    docker.run(*build_command(built.checkout, target="packages", tag=tag, REQUIREMENTS=lock))
    try:
        assert B12X not in faults(docker, docker.inspect(tag), built.record["arguments"] | {"REQUIREMENTS": lock})
    finally:
        docker.run("image", "rm", tag)


def test_the_bill_lists_what_the_lock_says(built: Built, docker: Docker) -> None:
    bill = json.loads((built.checkout / "build" / LINE / "images" / "smoke.cdx.json").read_text())
    listed = {(one["name"].lower().replace("_", "-").replace(".", "-"), one["version"]) for one in bill["components"]}
    python = docker.run("run", "--rm", "--network", "none", TAG, "python3", "--version").split()[1]
    target = Target(machine="x86_64", python=(3, int(python.split(".")[1])), glibc=(2, 41))
    locked = {(one.project, one.version) for one in read_lock(REQUIREMENTS / lock_name(LINE), target)}
    assert locked <= listed
    assert {name for name, _ in listed} >= {"vllm", "sparkwright", "libc6", "ibverbs-providers"}


@pytest.mark.usefixtures("built")
def test_an_image_of_a_part_of_vllm_is_not_pushed(script: Script) -> None:
    said = script("push.sh", TAG, "--to", "registry.example/sparkwright", status=64)
    assert "it holds only the units 'smoke'" in said


def test_what_cannot_be_built_here_is_told_at_once(
    script: Script, docker: Docker, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = script("build.sh", status=64)
    assert "this Docker builds for linux/amd64" in said
    assert "--host" in said
    said = script("build.sh", *BUILD, "--arg", "BASE_IMAGE=no-such-base:1", "--tag", "sparkwright-test:none", status=69)
    assert "could not be fetched" in said
    assert docker.image_id("sparkwright-test:none") is None
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    assert "does not answer" in script("build.sh", *BUILD, status=69)


@pytest.fixture
def small(clone: Path, tmp_path: Path) -> Path:
    """A clone with a Dockerfile that makes a small image."""
    folder = tmp_path / "clone"
    shutil.copytree(clone, folder, symlinks=True, ignore=shutil.ignore_patterns("build"))
    shutil.copy2(folder / "tests" / "image" / "small.Dockerfile", folder / "Dockerfile")
    shutil.copy2(folder / "tests" / "image" / "small-entrypoint.sh", folder)
    (folder / ".dockerignore").unlink()
    git = ("git", "-C", folder, "-c", "user.name=test", "-c", "user.email=test@example.invalid")
    run([*git, "add", "--all"])
    run([*git, "commit", "--quiet", "--message", "Small"])
    return folder


def test_a_second_build_is_compared_with_the_first(small: Path, docker: Docker) -> None:
    tag = "sparkwright-test:small"
    words = (*BUILD, "--tag", tag, "--verify-reproducible")
    try:
        made = json.loads(call(small, "build.sh", *words, "--json", environment=docker.environment))
        assert made["tested"] is True
        # Every other layer differs in the times of its files alone, which this BuildKit cannot set.
        ((layer, what),) = [one for one in made["differences"] if not one[1].startswith("the times of")]
        assert layer.startswith("RUN /bin/")
        assert "date +%N" in layer
        assert "opt/differs-each-time" in what
        assert docker.image_id(f"{tag}-again") is None
        (small / "small-entrypoint.sh").write_text("#!/bin/sh\nexit 1\n")
        said = call(small, "build.sh", *BUILD, "--tag", tag, environment=docker.environment, status=5)
        assert "of its 8 tests failed: about" in said
        assert "any command runs" in said
        said = call(small, "push.sh", "--to", "registry.example/x/y", environment=docker.environment, status=64)
        assert "is not pushed: its tests failed" in said
    finally:
        docker.run("image", "rm", "--force", tag)


@pytest.mark.long
def test_a_second_build_of_the_image_is_compared_with_the_first(built: Built, script: Script, docker: Docker) -> None:
    """Takes as long as the first: nothing comes from the cache."""
    again = json.loads(script("build.sh", *BUILD, "--verify-reproducible", "--json"))
    assert again["tested"]
    assert again["image_id"] == built.record["image_id"]
    assert docker.image_id(f"{TAG}-again") is None
    # Bytecode, logs and caches would be named here; what is named may differ in the time of its files alone.
    assert {what.partition(" of ")[0] for _, what in again["differences"]} <= {"the times"}
