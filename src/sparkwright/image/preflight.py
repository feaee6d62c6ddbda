"""What building the image needs of the machine, asked before anything is built."""

import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sparkwright.errors import CommandFailedError, OutputError, UnavailableError, UsageError
from sparkwright.image.docker import SSH, Docker
from sparkwright.native.jobs import PEAK_OF_ONE_FILE, RESERVE
from sparkwright.report import note
from sparkwright.run import run

DISK_BYTES: Final = 45_000_000_000
"""Free space for a first build: 8 GB of image, as much again while its layers are made, 9 GB of build environment,
4 GB of cached downloads, and what compiling takes. Later builds find most of it there."""
REBUILD_BYTES: Final = 15_000_000_000
"""The same when an image of the line is there already."""
SPARK_PLATFORM: Final = "linux/arm64"
_PLATFORMS: Final = {"aarch64": "linux/arm64", "arm64": "linux/arm64", "x86_64": "linux/amd64", "amd64": "linux/amd64"}


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The machine that builds, as far as it tells."""

    platform: str
    cores: int
    memory: int
    free: int | None
    """Bytes free where Docker keeps its images; None when that cannot be seen."""

    @property
    def runs_on_spark(self) -> bool:
        """Whether what it builds is for a DGX Spark."""
        return self.platform == SPARK_PLATFORM


def examine(docker: Docker) -> Machine:
    """Ask the engine and the disk. Raises as `Docker.require_engine`."""
    info = docker.require_engine()
    return Machine(
        platform=_PLATFORMS.get(str(info.get("Architecture")), f"linux/{info.get('Architecture')}"),
        cores=int(info.get("NCPU", 0)),
        memory=int(info.get("MemTotal", 0)),
        free=_free(docker, info),
    )


def _free(docker: Docker, info: dict[str, Any]) -> int | None:
    folder = str(info.get("DockerRootDir", ""))
    if docker.host:
        try:
            answer = run([*SSH, "--", docker.host, "df", "--output=avail", "-B1", folder])
            return int(answer.split()[-1])
        except (CommandFailedError, ValueError, IndexError):
            return None
    # An engine may have folders of its own, in a virtual machine for instance; its name is another one then.
    if info.get("Name") not in (platform.node(), None, "") or not Path(folder).is_dir():
        return None
    return shutil.disk_usage(folder).free


def require(machine: Machine, *, wanted: str, rebuild: bool) -> None:
    """Make sure that an image for the platform `wanted` can be built there.

    Raises:
        UsageError: the machine is of another kind than the image.
        UnavailableError: it has too little memory.
        OutputError: it has too little disk.
    """
    if machine.platform != wanted:
        raise UsageError(
            f"this Docker builds for {machine.platform}, the image for a DGX Spark is for {wanted}"
            if wanted == SPARK_PLATFORM
            else f"this Docker builds for {machine.platform}, not for {wanted}",
            cause="compiling vLLM under emulation would take days, so it is not offered",
            remedy="run ./build.sh on a Spark, or here with --on user@spark; ./build.sh --host does the source, patch,"
            f" compile and audit steps here without Docker; --platform {machine.platform} makes an image for machines"
            " like this one, which proves the Dockerfile and does not run on a Spark",
        )
    needed = PEAK_OF_ONE_FILE + RESERVE
    if machine.memory < needed:
        raise UnavailableError(
            f"the machine has {machine.memory / 1e9:.1f} GB of memory; compiling needs {needed / 1e9:.1f} GB",
            cause="the largest kernel file alone takes 9.5 GB",
            remedy="build on a machine with more memory: --on user@host",
        )
    disk = REBUILD_BYTES if rebuild else DISK_BYTES
    if machine.free is None:
        note(f"the disk of Docker cannot be seen from here; the build needs {disk / 1e9:.0f} GB there")
    elif machine.free < disk:
        raise OutputError(
            f"Docker's disk has {machine.free / 1e9:.1f} GB free; the build needs {disk / 1e9:.0f} GB",
            remedy="free some space: `docker system df` shows what Docker holds, ./push.sh --keep N removes older"
            " images of sparkwright, docker builder prune removes build caches",
        )
