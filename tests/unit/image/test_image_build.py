"""build.sh with Docker: what it asks of the machine, what it starts, and what it says when something is wrong."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.unit.image.conftest import IMAGE, LINE, REVISION, TAG, Programs, engine_info, inspected

from sparkwright.errors import (
    BuildFailedError,
    LockedError,
    OutputError,
    SparkwrightError,
    UnavailableError,
    UsageError,
)
from sparkwright.files import exclusive_lock
from sparkwright.image import build, record
from sparkwright.image.arguments import line_arguments
from sparkwright.image.build import Request, build_image, explain, plan
from sparkwright.image.preflight import DISK_BYTES, REBUILD_BYTES, SPARK_PLATFORM, Machine, require
from sparkwright.image.record import latest_path, load_record, sbom_path
from sparkwright.pins import load_line

REQUEST = Request(line=load_line(LINE))


@pytest.fixture
def spark(programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """A Spark with Docker on which every step succeeds."""
    monkeypatch.setattr(record, "BUILD", tmp_path / "build")
    monkeypatch.setattr(build, "BUILD", tmp_path / "build")
    monkeypatch.setattr(build, "read_revision", lambda: REVISION)
    held = {"PINS_SHA256": "c" * 64, "PATCHES": "vllm/one", "VLLM_COMMIT": "4ba787ec9"}
    monkeypatch.setattr(build, "line_arguments", lambda line, extra: line_arguments(line, extra) | held)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=DISK_BYTES))
    planned = json.dumps({"argv": ["vllm", "serve", "org/model"], "env": {}, "notices": []})
    about = {
        "line": LINE,
        "vllm_commit": "4ba787ec9",
        "revision": REVISION.full,
        "pins": "c" * 64,
        "patches": [{"name": "one", "status": "applied"}],
    }
    programs.answer("docker info", out=engine_info())
    programs.answer("docker image inspect", out=json.dumps([inspected()]))
    programs.answer("docker image inspect --format", out=IMAGE)
    programs.answer("docker history", "{{.Size}}", out="0\tENV A=b\n1000\tRUN one\n2000\tFROM base\n")
    programs.answer("docker run", "--dry-run serve", out=planned)
    programs.answer("docker run", "about --json", out=json.dumps({"image": about, "caches": []}))
    installed = [["torch", "2.14.0", "License: BSD", 99], ["vllm", "1", "", 100]]
    programs.answer("docker run", "importlib.metadata", out=json.dumps(installed))
    programs.answer("docker run", "dpkg-query", out="libc6\t2.39-0ubuntu8\tarm64\n")
    programs.answer("docker run", "printf", out="as it is")
    programs.answer("docker run", "ray-worker", status=78, err="sparkwright: HEAD_IP is not set")
    return programs


def test_a_good_image_is_built_tested_and_recorded(spark: Programs) -> None:
    made = build_image(REQUEST)
    assert made.tested
    assert made.tag == TAG
    assert made.layers[0].created_by == "FROM base", "lowest first"
    stored = json.loads(latest_path(LINE).read_text())
    assert stored["tested"] is True
    assert load_record(latest_path(LINE)) == made
    components = json.loads(sbom_path(LINE, TAG).read_text())["components"]
    assert {one["purl"] for one in components} == {
        "pkg:deb/ubuntu/libc6@2.39-0ubuntu8?arch=arm64",
        "pkg:pypi/torch@2.14.0",
        "pkg:pypi/vllm@1",
    }
    assert [(one.name, one.size) for one in made.packages] == [("vllm", 100), ("torch", 99)], "largest first"
    assert spark.calls("buildx", "build")
    assert spark.calls("tag") == [["docker", "image", "tag", IMAGE, "sparkwright:latest"]]


def test_only_what_serves_and_passed_is_the_latest(spark: Programs) -> None:
    spark.answer("docker run", "b12x/__init__.py", out="True")
    for request in (replace(REQUEST, tag="mine"), replace(REQUEST, extra="b12x")):
        version = plan(request).arguments["SPARKWRIGHT_VERSION"]
        labels = inspected()["Config"]["Labels"] | {"org.opencontainers.image.version": version}
        image_says(Labels=labels)(spark)
        assert build_image(request).tested
    image_says()(spark)
    spark.answer("docker run", "printf", out="usage")
    with pytest.raises(BuildFailedError):
        build_image(REQUEST)
    assert not spark.calls("tag")


def test_the_command_line_comes_from_the_pins_and_the_commit(spark: Programs) -> None:
    argv = plan(REQUEST).argv
    assert argv[: argv.index("--build-arg")][-2:] == ("--progress", "plain")
    assert f"SOURCE_DATE_EPOCH={REVISION.time}" in argv
    assert f"SPARKWRIGHT_REVISION={REVISION.commit}" in argv
    assert f"REQUIREMENTS=image-{LINE}.txt" in argv
    assert not any(word.startswith("BUILD_JOBS=") for word in argv), (
        "a default would spoil the cache on another machine"
    )
    assert "--network" not in argv
    chosen = replace(
        REQUEST, jobs=3, extra="b12x", no_cache=True, network="host", overrides=("APT_SNAPSHOT=",), externals="compiled"
    )
    argv = plan(chosen).argv
    assert {
        "BUILD_JOBS=3",
        f"REQUIREMENTS=image-{LINE}-b12x.txt",
        "--no-cache",
        "APT_SNAPSHOT=",
        "EXTERNALS=compiled",
    } <= {*argv}
    assert f"{TAG}-b12x" in argv
    assert argv[argv.index("--network") + 1] == "host"
    with pytest.raises(UsageError, match="does not set"):
        plan(replace(REQUEST, overrides=("nonsense",)))
    with pytest.raises(UsageError, match="EXTERNALS=source is not known"):
        plan(replace(REQUEST, externals="source"))
    assert not spark.calls(), "a plan starts nothing"


def without_buildx(spark: Programs) -> None:
    spark.answer("docker buildx version", status=1, err="docker: unknown command: docker buildx")


def refused_socket(spark: Programs) -> None:
    spark.answer("docker info", status=1, err="permission denied while trying to connect to the Docker daemon socket")


def other_machine(spark: Programs) -> None:
    spark.answer("docker info", out=engine_info(Architecture="x86_64"))


def little_memory(spark: Programs) -> None:
    spark.answer("docker info", out=engine_info(MemTotal=8_000_000_000))


def engine_down(spark: Programs) -> None:
    spark.answer("docker info", status=1, err="Cannot connect to the Docker daemon at unix:///var/run/docker.sock.")


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (lambda spark: spark.remove("docker"), UnavailableError, ("not installed", "--host", "--on user@spark")),
        (engine_down, UnavailableError, ("does not answer", "systemctl start docker")),
        (refused_socket, UnavailableError, ("group docker",)),
        (without_buildx, UnavailableError, ("BuildKit", "docker-buildx")),
        (other_machine, UsageError, ("linux/amd64", "linux/arm64", "--host", "--on user@spark", "--platform")),
        (little_memory, UnavailableError, ("8.0 GB of memory", "11.5 GB")),
    ],
    ids=["no docker", "engine down", "no permission", "no buildkit", "x86-64", "little memory"],
)
def test_a_machine_that_cannot_build_is_told_before_anything_runs(
    spark: Programs, spoil: Callable[[Programs], None], error: type[SparkwrightError], words: tuple[str, ...]
) -> None:
    spoil(spark)
    with pytest.raises(error) as caught:
        build_image(REQUEST)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert not spark.calls("buildx", "build")


def test_a_small_disk_is_told_with_what_is_needed() -> None:
    machine = Machine(platform=SPARK_PLATFORM, cores=20, memory=128_000_000_000, free=20_000_000_000)
    with pytest.raises(OutputError, match=r"20\.0 GB free; the build needs 45 GB"):
        require(machine, wanted=SPARK_PLATFORM, rebuild=False)
    require(machine, wanted=SPARK_PLATFORM, rebuild=True)


def test_a_small_disk_stops_a_build_before_it_starts(spark: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=REBUILD_BYTES))
    with pytest.raises(OutputError, match="the build needs 45 GB"):
        build_image(REQUEST)
    spark.answer("docker image ls", out="0123\n")
    with pytest.raises(OutputError, match="the build needs 45 GB"):
        build_image(replace(REQUEST, no_cache=True))
    assert not spark.calls("buildx", "build")
    build_image(REQUEST)
    assert spark.calls("buildx", "build"), "with an image of the line a rebuild needs less"


def test_two_builds_at_once_are_refused(spark: Programs) -> None:
    with (
        exclusive_lock(latest_path(LINE).with_name(".image.lock"), doing="building the image"),
        pytest.raises(LockedError, match="already building the image"),
    ):
        build_image(REQUEST)
    assert not spark.calls("buildx", "build")


@pytest.mark.parametrize(
    ("output", "error", "words"),
    [
        (
            "ERROR: failed to solve: failed to resolve source metadata for ubuntu:24.04@sha256:00: not found",
            UnavailableError,
            ("gone from its registry", "sparkwright pins update base"),
        ),
        (
            "ERROR: failed to solve: failed to do request: Head https://registry.example: dial tcp: no such host",
            UnavailableError,
            ("could not be fetched", "network"),
        ),
        ("write /x: no space left on device", OutputError, ("disk became full", "finished stages are kept")),
        (
            "#9 ERROR: process did not complete successfully: exit code: 4",
            BuildFailedError,
            ("exit code: 4", "image.log"),
        ),
    ],
    ids=["base gone", "no network", "disk full", "a stage failed"],
)
def test_a_failed_build_is_explained(
    spark: Programs, output: str, error: type[SparkwrightError], words: tuple[str, ...]
) -> None:
    spark.answer("docker buildx build", status=1, out=output)
    with pytest.raises(error) as caught:
        build_image(REQUEST)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert not latest_path(LINE).exists(), "what was not built has no record"


def image_says(**changes: object) -> Callable[[Programs], None]:
    def change(spark: Programs) -> None:
        found = inspected()
        found["Config"] |= changes
        spark.answer("docker image inspect", out=json.dumps([found]))
        spark.answer("docker image inspect --format", out=IMAGE)

    return change


FAULTS: dict[str, tuple[Callable[[Programs], None], str]] = {
    "label of another commit": (
        image_says(Labels=inspected()["Config"]["Labels"] | {"org.opencontainers.image.revision": "0" * 40}),
        "labels",
    ),
    "label of other patches": (
        image_says(Labels=inspected()["Config"]["Labels"] | {"sparkwright.patches": "vllm/two"}),
        "labels",
    ),
    "no licence label": (image_says(Labels={"sparkwright.line": LINE}), "labels"),
    "no healthcheck": (image_says(Healthcheck=None), "configuration"),
    "an architecture for every compiler": (image_says(Env=["NVCC_PREPEND_FLAGS=-arch=sm_121"]), "configuration"),
    "a secret": (image_says(Env=["HF_TOKEN=hf_abc"]), "no secret in it"),
    "a secret in the history": (
        lambda spark: spark.answer("docker history", "{{.CreatedBy}}", out="1\tRUN API_KEY=abc make\n"),
        "no secret in it",
    ),
    "audit failed": (lambda spark: spark.answer("docker run", "audit", status=4, err="no sm_121a"), "audit of the"),
    "no entrypoint": (lambda spark: spark.answer("docker run", "printf", out="usage"), "any command runs"),
    "worker without head accepted": (lambda spark: spark.answer("docker run", "ray-worker"), "a worker without"),
    "needs root": (lambda spark: spark.answer("docker run", "65534", status=1, err="read-only"), "runs as any user"),
    "no Python": (
        lambda spark: spark.answer("docker run", "--network none", status=127, err="python: not found"),
        "about: .*python: not found",
    ),
    "about says nothing": (lambda spark: spark.answer("docker run", "about", out="no json"), "about"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_test_of_an_image_can_fail(spark: Programs, fault: str) -> None:
    spoil, name = FAULTS[fault]
    spoil(spark)
    with pytest.raises(BuildFailedError, match=f"(?s)tests failed: .*{name}"):
        build_image(REQUEST)
    stored = load_record(latest_path(LINE))
    assert stored is not None
    assert not stored.tested


def test_the_doctor_is_asked_where_there_is_a_gpu(spark: Programs) -> None:
    build_image(REQUEST)
    assert not spark.calls("doctor")
    spark.answer("docker info", out=engine_info(Runtimes={"nvidia": {}}))
    build_image(REQUEST)
    assert spark.calls("--gpus", "all", "doctor")
    spark.answer("docker run", "doctor", status=1, err="E2M1 differs")
    with pytest.raises(BuildFailedError, match=r"(?s)doctor: .*E2M1 differs"):
        build_image(REQUEST)


def test_an_image_that_has_grown_is_refused(spark: Programs) -> None:
    spark.answer("docker image inspect", out=json.dumps([inspected() | {"Size": 9_500_000_000}]))
    spark.answer("docker image inspect --format", out=IMAGE)
    with pytest.raises(BuildFailedError, match=r"9\.50 GB unpacked; recorded are"):
        build_image(REQUEST)


def test_another_machine_is_used_over_ssh_without_questions(spark: Programs) -> None:
    spark.answer("ssh", "df", out="Avail\n99000000000\n")
    build_image(replace(REQUEST, on="me@spark2"))
    assert spark.calls("ssh", "BatchMode=yes", "me@spark2", "true")
    assert not any("StrictHostKeyChecking" in word for call in spark.calls("ssh") for word in call)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("ssh: Could not resolve hostname nowhere: Name or service not known", "no host is called nowhere"),
        ("Host key verification failed.", "the key of nowhere is not known here"),
        ("me@nowhere: Permission denied (publickey,password).", "passwords are never used"),
        ("ssh: connect to host nowhere port 22: No route to host", "switched off"),
    ],
)
def test_an_ssh_host_that_cannot_be_used_is_told(spark: Programs, answer: str, words: str) -> None:
    spark.answer("ssh", status=255, err=answer)
    with pytest.raises(UnavailableError) as caught:
        build_image(replace(REQUEST, on="nowhere"))
    assert words in str(caught.value)
    assert not spark.calls("docker")


@pytest.mark.parametrize("host", ["-oProxyCommand=touch /tmp/x", "a b", ""])
def test_a_host_cannot_be_an_option(spark: Programs, host: str) -> None:
    from sparkwright.image.docker import require_ssh

    with pytest.raises(UsageError, match="is not a host"):
        require_ssh(host)
    assert not spark.calls()


def test_explain_keeps_the_end_of_the_output(tmp_path: Path) -> None:
    error = explain("\n".join(f"line {number}" for number in range(100)), tmp_path / "log")
    assert "line 99" in str(error)
    assert "line 10\n" not in str(error)
    assert "line 98" not in str(explain("line 98\nline 99", tmp_path / "log", shown=True)), "it was shown"
