"""Build the image with Docker: check the machine, build, test what came out, and write down what it is."""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from sparkwright.errors import (
    BuildFailedError,
    CommandFailedError,
    OutputError,
    SparkwrightError,
    UnavailableError,
    UsageError,
)
from sparkwright.files import exclusive_lock
from sparkwright.image.arguments import line_arguments
from sparkwright.image.checks import check_image
from sparkwright.image.contents import load_contents
from sparkwright.image.docker import Docker
from sparkwright.image.installed import Installed, python_packages, system_packages
from sparkwright.image.preflight import SPARK_PLATFORM, Machine, examine, require
from sparkwright.image.record import RELEASED_UNITS, ImageRecord, Layer, Package, store
from sparkwright.image.revision import LATEST, REPOSITORY, Revision, read_revision
from sparkwright.image.sbom import write_sbom
from sparkwright.image.size import require_size
from sparkwright.native.wheel import choose_externals
from sparkwright.paths import BUILD, CHECKOUT
from sparkwright.pins import Line
from sparkwright.report import note

EXTRAS: Final = ("b12x",)
"""What `--with` may name: each has a lock file of its own."""
TARGET: Final = "runtime"
_ARGUMENTS: Final = re.compile(r"^RUN \|\d+ .*?(?=/bin/(?:ba)?sh )")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for."""

    line: Line
    tag: str = ""
    units: str = ""
    """What of vLLM to compile; empty for what the Dockerfile says."""
    jobs: int | None = None
    no_cache: bool = False
    on: str = ""
    progress: str = "plain"
    network: str = ""
    """Of the build's steps; empty for the engine's default."""
    platform: str = SPARK_PLATFORM
    extra: str = ""
    externals: str = ""
    overrides: tuple[str, ...] = ()
    """`NAME=VALUE` for further ARGs of the Dockerfile."""

    @property
    def docker(self) -> Docker:
        """The engine that builds."""
        return Docker(host=self.on)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What will be run."""

    reference: str
    arguments: dict[str, str]
    argv: tuple[str, ...]
    revision: Revision


def plan(request: Request) -> Plan:
    """The docker command line, from pins/ and the state of the checkout. Raises as `read_revision`."""
    revision = read_revision()
    line = request.line.name
    tag = request.tag or revision.tag(line) + (f"-{request.extra}" if request.extra else "")
    reference = tag if ":" in tag else f"{REPOSITORY}:{tag}"
    arguments = {
        **line_arguments(request.line, request.extra),
        "SPARKWRIGHT_REVISION": revision.full,
        "SPARKWRIGHT_VERSION": reference.rpartition(":")[2],
        "SPARKWRIGHT_SOURCE": revision.source,
        "IMAGE_CREATED": revision.created,
        "SOURCE_DATE_EPOCH": str(revision.time),
    }
    # Only when they were asked for: a default that depends on the machine would spoil the cache on the next one.
    if request.jobs is not None:
        arguments["BUILD_JOBS"] = str(request.jobs)
    if request.units:
        arguments["UNITS"] = request.units
    if request.externals:
        arguments["EXTERNALS"] = choose_externals(request.externals).value
    for override in request.overrides:
        name, separator, value = override.partition("=")
        if not separator or not name.isidentifier():
            raise UsageError(f"--arg {override} does not set an ARG", remedy="write --arg NAME=VALUE")
        arguments[name] = value
    argv = ["buildx", "build", "--file", str(CHECKOUT / "Dockerfile"), "--target", TARGET]
    argv += ["--platform", request.platform, "--tag", reference, "--load", "--provenance=false"]
    argv += ["--progress", request.progress]
    argv += ["--network", request.network] if request.network else []
    argv += [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
    argv += ["--no-cache"] if request.no_cache else []
    return Plan(reference=reference, arguments=arguments, argv=(*argv, str(CHECKOUT)), revision=revision)


def build_image(request: Request) -> ImageRecord:
    """Build and test the image; the record is written whether the tests pass or not.

    Raises:
        UnavailableError: Docker, BuildKit, the base image or memory is missing.
        UsageError: the machine is of another kind than the image.
        OutputError: the disk is too small, or became full.
        LockedError: another build of this line is running.
        BuildFailedError: a stage failed, a test of the image failed, or it is too large.
    """
    with exclusive_lock(BUILD / request.line.name / ".image.lock", doing="building the image"):
        chosen = plan(request)
        machine = examine(request.docker)
        known = request.docker.run("image", "ls", "--quiet", "--filter", f"label=sparkwright.line={request.line.name}")
        require(machine, wanted=request.platform, rebuild=bool(known.strip()) and not request.no_cache)
        note(f"building {chosen.reference} for {request.platform}{f' on {request.on}' if request.on else ''}")
        start = time.monotonic()
        _build(request, chosen)
        seconds = time.monotonic() - start
        try:
            packages = python_packages(request.docker, chosen.reference)
        except CommandFailedError:
            packages = ()  # the tests of the image say what is wrong with it
        record = examine_image(request, chosen, packages, seconds=seconds)
        store(record)
        if failed := record.failed():
            raise BuildFailedError(
                f"{record.tag} was built, but {len(failed)} of its {len(record.checks)} tests failed: "
                + "; ".join(f"{check.name}: {check.detail}" for check in failed),
                cause="the image does not do what it is for; push.sh refuses it",
                remedy=f"the whole list is in {BUILD / request.line.name / 'image.json'}",
            )
        write_sbom(record, packages, system_packages(request.docker, record.image_id))
        _require_size(record, machine)
        if not request.tag and not request.extra and record.units == RELEASED_UNITS:
            request.docker.run("image", "tag", record.image_id, LATEST)
        return record


def build_only(request: Request, *, arguments: dict[str, str]) -> None:
    """Build with given ARGs and test nothing; what is compared with an image must not change with its name."""
    chosen = plan(request)
    words = list(chosen.argv)
    for name, value in arguments.items():
        words = [f"{name}={value}" if word.startswith(f"{name}=") else word for word in words]
    _build(request, replace(chosen, argv=tuple(words), arguments=arguments))


def examine_image(request: Request, chosen: Plan, packages: Sequence[Installed], *, seconds: float) -> ImageRecord:
    """Test a built image and describe it."""
    docker = request.docker
    found = docker.inspect(chosen.reference)
    return ImageRecord(
        line=request.line.name,
        tag=chosen.reference,
        image_id=found["Id"],
        platform=request.platform,
        revision=chosen.revision.full,
        dirty=chosen.revision.dirty,
        created=chosen.revision.created,
        built=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        seconds=round(seconds, 1),
        host=request.on,
        arguments=chosen.arguments,
        units=((found.get("Config") or {}).get("Labels") or {}).get("sparkwright.units", ""),
        size=int(found["Size"]),
        layers=layers(docker, chosen.reference),
        packages=tuple(
            Package(name=one.name, version=one.version, size=one.size)
            for one in sorted(packages, key=lambda one: -one.size)
        ),
        checks=check_image(docker, found, expected=chosen.arguments),
    )


def layers(docker: Docker, reference: str) -> tuple[Layer, ...]:
    """The layers of an image that hold something, lowest first."""
    history = docker.run("history", "--no-trunc", "--human=false", "--format", "{{.Size}}\t{{.CreatedBy}}", reference)
    found = [line.split("\t", 1) for line in history.splitlines() if "\t" in line]
    return tuple(
        Layer(created_by=instruction(words)[:200], size=int(float(size)))
        for size, words in reversed(found)
        if float(size) > 0
    )


def instruction(created_by: str) -> str:
    """What the history of an image says that made a layer, without the build arguments, which may fill a page."""
    return _ARGUMENTS.sub("RUN ", " ".join(created_by.split()))


def _require_size(record: ImageRecord, machine: Machine) -> None:
    if machine.runs_on_spark and record.units == RELEASED_UNITS:
        recorded = load_contents(record.line).size
        require_size("unpacked", record.size, recorded.packages + recorded.system, line=record.line)


def _build(request: Request, chosen: Plan) -> None:
    log = BUILD / request.line.name / "logs" / "image.log"
    if request.progress == "tty" and sys.stderr.isatty():
        _build_on_terminal(request, chosen)
        return
    show: Callable[[str], None] = note if request.progress != "quiet" else lambda _line: None
    try:
        request.docker.watch(chosen.argv, log=log, on_line=show)
    except CommandFailedError as error:
        output = log.read_text(encoding="utf-8", errors="replace")
        raise explain(output, log, shown=request.progress != "quiet") from error


def _build_on_terminal(request: Request, chosen: Plan) -> None:
    command = ["docker", *chosen.argv]
    status = subprocess.run(command, env=request.docker.environment, check=False).returncode
    if status != 0:
        raise BuildFailedError("docker buildx build failed; its output is above", remedy="--progress plain keeps a log")


def explain(output: str, log: Path, *, shown: bool = False) -> SparkwrightError:
    """What the output of a failed build means; one that was shown already is not repeated but for its last line."""
    text = output.lower()
    tail = "\n".join(output.splitlines()[-1 if shown else -25 :])
    if "no space left on device" in text:
        return OutputError(
            f"the disk became full while the image was built\n{tail}",
            remedy="free some space (docker system df, docker builder prune) and run the same command again:"
            " finished stages are kept",
        )
    unresolved = "failed to resolve source metadata" in text or "failed to do request" in text
    if unresolved and ("not found" in text or "manifest unknown" in text):
        return UnavailableError(
            f"the base image is gone from its registry\n{tail}",
            cause="the registry no longer has the pinned digest",
            remedy="sparkwright pins update base: it takes the digest that the tag has now; then read what changed",
        )
    if unresolved or "no such host" in text or "connection refused" in text or "i/o timeout" in text:
        return UnavailableError(
            f"the base image or a package could not be fetched\n{tail}",
            cause="no network, or a proxy or mirror that Docker is not set up for",
            remedy=f"run the same command again when the network is back; the whole output is in {log}",
        )
    return BuildFailedError(f"the image could not be built\n{tail}", remedy=f"the whole output is in {log}")
