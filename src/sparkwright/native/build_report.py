"""The report of a host build: for scripts as JSON, for people as a table."""

import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import psutil

from sparkwright import __version__
from sparkwright.audit import Audit, Container, Failure
from sparkwright.audit.model import totals
from sparkwright.files import sha256_bytes, sha256_file
from sparkwright.native.compile import Compilation
from sparkwright.native.compiler import HostCompiler
from sparkwright.native.environment import BuildEnvironment
from sparkwright.native.wheel import Wheel
from sparkwright.patching.engine import Examination
from sparkwright.paths import PINS
from sparkwright.pins import Line
from sparkwright.report import print_table
from sparkwright.run import run


@dataclass(frozen=True, kw_only=True)
class Row:
    """One object or library: what it cost and what it holds."""

    path: str
    compiled: bool
    """Whether it was out of date in this run."""
    cpu_seconds: float
    peak_mb: int
    cache: str
    targets: str
    kernels: int
    fp4_mma: int
    e2m1_convert: int
    max_registers: int
    spilling_kernels: int


@dataclass(frozen=True, kw_only=True)
class BuildReport:
    """All that a run of `sparkwright build --host` did and found."""

    line: str
    unit: str
    arch_list: tuple[str, ...]
    jobs: int
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    pins: str
    patches: Mapping[str, Any]
    seconds: Mapping[str, float]
    objects: tuple[Row, ...]
    libraries: tuple[Row, ...] = ()
    failures: tuple[str, ...] = ()
    wheel: Wheel | None = None
    sparkwright: str = __version__
    finished: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def to_json(self) -> dict[str, Any]:
        """The report for scripts, with the totals that people ask for."""
        return {"totals": self.totals(), **asdict(self)}

    def totals(self) -> dict[str, Any]:
        """Sums over the objects; of memory and registers the largest."""
        compiled = [row for row in self.objects if row.compiled]
        return {
            "objects": len(self.objects),
            "compiled": len(compiled),
            "cache_hits": sum(row.cache == "hit" for row in compiled),
            "cpu_seconds": round(sum(row.cpu_seconds for row in compiled), 1),
            "peak_mb": max((row.peak_mb for row in compiled), default=0),
            "fp4_mma": sum(row.fp4_mma for row in self.objects),
            "e2m1_convert": sum(row.e2m1_convert for row in self.objects),
            "spilling_kernels": sum(row.spilling_kernels for row in self.objects),
        }


def rows(facts: Audit, compilation: Compilation) -> tuple[Row, ...]:
    """One row per object of a compilation; an object of host code only has no targets."""
    containers = {container.path: container for container in facts.containers}
    return tuple(_row(name, containers.get(name), compilation) for name in compilation.objects)


def library_rows(facts: Audit) -> tuple[Row, ...]:
    """One row per linked library."""
    return tuple(_row(container.path, container, None) for container in facts.containers)


def _row(path: str, container: Container | None, compilation: Compilation | None) -> Row:
    found = totals(container.code() if container else ())
    cost = compilation.compiled.get(path) if compilation else None
    code = [*sorted(container.sass()), *(f"{target} (PTX)" for target in sorted(container.ptx()))] if container else []
    return Row(
        path=path,
        compiled=cost is not None,
        cpu_seconds=cost.cpu_seconds if cost else 0.0,
        peak_mb=cost.peak_mb if cost else 0,
        cache=cost.cache if cost else "",
        targets=", ".join(code),
        kernels=found.kernels,
        fp4_mma=found.fp4_mma,
        e2m1_convert=found.e2m1_convert,
        max_registers=found.max_registers,
        spilling_kernels=found.spilling_kernels,
    )


def machine() -> dict[str, Any]:
    """What this ran on."""
    return {
        "system": platform.platform(),
        "processor": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
    }


def versions(environment: BuildEnvironment, compiler: HostCompiler, line: Line, ccache: Path | None) -> dict[str, str]:
    """The releases of everything that had a hand in the machine code."""

    def first(argv: Sequence[str | Path]) -> str:
        match = re.search(r"\d+\.\d+(?:\.\d+)*", run(argv, env=environment.variables()))
        return match.group(0) if match else "unknown"

    nvcc = re.search(r"V(\d[\d.]*)", run([environment.cuda_home / "bin" / "nvcc", "--version"]))
    return {
        "vllm": line.component("vllm").version,
        "torch": run([environment.python, "-c", "import torch; print(torch.__version__)"]).strip(),
        "cutlass": line.cutlass.version,
        "nvcc": nvcc.group(1) if nvcc else "unknown",
        "gcc": compiler.version,
        "cmake": first([environment.tool("cmake"), "--version"]),
        "ninja": first([environment.tool("ninja"), "--version"]),
        "ccache": first([ccache, "--version"]) if ccache else "not installed",
        "python": platform.python_version(),
        "requirements": environment.lock,
    }


def pins_digest() -> str:
    """One sha256 over the files of pins/."""
    return sha256_bytes("".join(f"{path.name} {sha256_file(path)}\n" for path in sorted(PINS.glob("*.toml"))).encode())


def patch_summary(examination: Examination) -> dict[str, Any]:
    """What the series was to a tree."""
    receipt = examination.receipt
    return {
        "version": examination.version,
        "patches": {finding.patch.name: str(finding.status) for finding in examination.findings},
        "files": len(receipt.first_and_last()) if receipt else 0,
    }


def show(report: BuildReport) -> None:
    """Print the table for people."""
    print_table(
        f"vLLM {report.line}, unit {report.unit}, for {', '.join(report.arch_list)}",
        ("object", "CPU s", "MB", "cache", "target", "kernels", "FP4 mma", "E2M1", "spill"),
        [_cells(row) for row in (report.libraries or report.objects)],
    )
    total = report.totals()
    print(
        f"{total['objects']} objects, {total['compiled']} compiled ({total['cache_hits']} from the compiler cache), "
        f"{total['cpu_seconds']} CPU s, largest process {total['peak_mb']} MB, {report.jobs} jobs, "
        f"{sum(report.seconds.values()):.0f} s in all"
    )
    if report.wheel:
        print_table(
            f"{report.wheel.path} ({report.wheel.size / 1e6:.0f} MB)",
            ("part", "from", "files", "MB", "why"),
            [(one.part, one.source, one.files, f"{one.size / 1e6:.1f}", one.why) for one in report.wheel.origins],
        )


def _cells(row: Row) -> tuple[str, ...]:
    path = PurePosixPath(row.path)
    name = str(PurePosixPath(path.parent.name, path.name.removesuffix(".cu.o")))
    cost = (f"{row.cpu_seconds:.1f}", str(row.peak_mb), row.cache) if row.compiled else ("", "", "kept")
    facts = (row.kernels, row.fp4_mma, row.e2m1_convert, row.spilling_kernels)
    return (name, *cost, row.targets, *map(str, facts))


def failure_texts(failures: Sequence[Failure]) -> tuple[str, ...]:
    """Failures as they go into the report."""
    return tuple(str(failure) for failure in failures)
