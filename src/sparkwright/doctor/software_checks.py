"""Checks of what is installed: releases, patches, libraries, machine code, the compiler, modules built ahead."""

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import Version

from sparkwright import paths
from sparkwright.audit import Readiness
from sparkwright.audit.disassembler import VARIABLE, find_disassembler
from sparkwright.doctor import import_probe
from sparkwright.doctor.code_targets import CodeTargets, code_targets
from sparkwright.doctor.machine import Machine
from sparkwright.doctor.model import Result, failed, passed, shorten, skipped, warned
from sparkwright.errors import CommandFailedError, ConfigurationError, SparkwrightError
from sparkwright.files import sha256_file
from sparkwright.native.cuda_home import driver_stub
from sparkwright.native.jit_build import read_report
from sparkwright.native.jit_modules import built, load_modules
from sparkwright.pins import Line
from sparkwright.run import run

PROBED: Final = (
    "torch",
    "triton",
    "flashinfer.jit",
    "vllm",
    "vllm._C_stable_libtorch",
    "vllm._moe_C_stable_libtorch",
    "vllm.vllm_flash_attn",
    "vllm._custom_ops",
    "ray",
)
"""What is imported, where it is installed, in the order in which vLLM needs it."""
_CONVERT: Final = """\
__global__ void convert(float low, float high, unsigned short* to) {
  asm("{ .reg .b8 pair; cvt.rn.satfinite.e2m1x2.f32 pair, %2, %1; mov.b16 %0, {pair, 0}; }" : "=h"(*to) : "f"(low),
      "f"(high));
}
"""
_NOT_INSTALLED: Final = "vLLM is not installed for this Python: this is no image"
_SECONDS: Final = "600"


def releases(machine: Machine, line: Line) -> Result:
    """Every package is the locked release; vLLM, torch and FlashInfer are those of the pins."""
    name = "releases"
    vllm = machine.installed.version("vllm")
    if vllm is None:
        return skipped(name, reason=_NOT_INSTALLED)
    expected = {
        "vllm": line.name,
        "torch": line.torch,
        "flashinfer-python": line.component("flashinfer-python").version,
    } | locked(paths.REQUIREMENTS / f"image-{line.name}.txt")
    found = machine.installed.versions(tuple(expected))
    other = [
        f"{project} {version} instead of {expected[project]}"
        for project, version in found.items()
        if Version(version).public != Version(expected[project]).public
    ]
    shown = f"vLLM {vllm}, {len(found)} packages compared"
    if other:
        return failed(
            name,
            shorten(other),
            reason="something was installed over the locked releases; libraries may not fit each other",
            remedy="start from the image again, and install additions into a folder of their own",
        )
    return passed(name, shown)


def locked(path: Path) -> dict[str, str]:
    """The releases that a lock file names for this machine; empty where there is no such file."""
    if not path.is_file():
        return {}
    releases = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line or line[0] in " #-":
            continue
        try:
            one = Requirement(line.rstrip(" \\"))
        except InvalidRequirement:
            continue
        versions = [part.version for part in one.specifier if part.operator == "=="]
        if versions and (one.marker is None or one.marker.evaluate()):
            releases[one.name] = versions[0]
    return releases


def patches(machine: Machine, _line: Line) -> Result:
    """Every file that a patch touched is as the receipt in its package says."""
    name = "patches"
    if machine.installed.version("vllm") is None:
        return skipped(name, reason=_NOT_INSTALLED)
    applied, compared, wrong, components = 0, 0, [], set()
    for held in machine.installed.receipts():
        components.add(held.receipt.component)
        applied += sum(entry.status == "applied" for entry in held.receipt.patches)
        for path, (_, after) in sorted(held.receipt.first_and_last().items()):
            # Of a source tree an installation holds the package alone, whose name is the component's. What else the
            # tree has may be called like an installed package, as vLLM's cmake/ is, and is none of ours.
            if Path(path).parts[0] != held.receipt.component:
                continue
            file = held.root / path
            if not file.is_file() and file.suffix in (".cu", ".cuh", ".h", ".hpp", ".cpp"):
                continue
            compared += 1
            if not file.is_file() or sha256_file(file) != after:
                wrong.append(path)
    missing = {"vllm", "flashinfer"} - components
    if missing:
        return failed(
            name,
            f"no receipt for {' and '.join(sorted(missing))}",
            reason="the installed package is not the patched one",
            remedy="build the image anew; do not install vLLM or FlashInfer over it",
        )
    if wrong:
        return failed(
            name,
            f"{len(wrong)} of {compared} files differ: {shorten(wrong)}",
            reason="they were changed after the patches were applied",
            remedy="start from the image again",
        )
    return passed(name, f"{applied} applied; {compared} files are as their receipts say")


def libraries(machine: Machine, _line: Line) -> Result:
    """The packages import, in a process of their own, with the driver or, without one, with a stand-in for it."""
    name = "libraries"
    if machine.installed.version("vllm") is None:
        return skipped(name, reason=_NOT_INSTALLED)
    home = machine.cuda_home()
    if not has_driver() and not (home and driver_stub(home).is_file()):
        return skipped(name, reason="there is no libcuda.so.1, and no linker's stub to load vLLM's libraries with")
    with tempfile.TemporaryDirectory() as scratch:
        environment, note = with_driver(machine, Path(scratch))
        wanted = [one for one in PROBED if machine.installed.package(one.partition(".")[0])]
        script = Path(import_probe.__file__)
        try:
            answer = run(["timeout", _SECONDS, sys.executable, script, *wanted], env=environment)
        except CommandFailedError as error:
            return failed(
                name,
                error.what.splitlines()[-1],
                reason="a library brought the process down, or took more than ten minutes to load",
                remedy=f"find which: python {script} {' '.join(wanted)}",
            )
    faults: dict[str, str] = json.loads(answer.splitlines()[-1])
    if faults:
        first = next(iter(faults))
        return failed(
            name,
            f"{shorten(list(faults))} cannot be imported{note}",
            reason=faults[first],
            remedy="build the image anew; if it is unchanged, this is a fault of it",
        )
    if note:
        return warned(name, f"{len(wanted)} import{note}", reason="no driver is here, so nothing can be launched")
    return passed(name, f"{len(wanted)} import")


def with_driver(machine: Machine, scratch: Path) -> tuple[dict[str, str], str]:
    """An environment in which vLLM's libraries find a driver: the real one, else the linker's stub; and what to say."""
    environment = dict(machine.environment)
    home = machine.cuda_home()
    stub = driver_stub(home) if home else None
    if has_driver() or stub is None or not stub.is_file():
        return environment, ""
    (scratch / "libcuda.so.1").symlink_to(stub)
    earlier = environment.get("LD_LIBRARY_PATH")
    environment["LD_LIBRARY_PATH"] = f"{scratch}{os.pathsep + earlier if earlier else ''}"
    return environment, ", with the linker's stub in place of the driver"


def has_driver() -> bool:
    """Whether the driver's library can be loaded."""
    import ctypes

    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def machine_code(machine: Machine, _line: Line) -> Result:
    """Every library of vLLM, and every module built ahead, holds code that runs on 12.1."""
    name = "machine code"
    package, folder = machine.installed.package("vllm"), machine.installed.aot_folder()
    if package is None:
        return skipped(name, reason=_NOT_INSTALLED)
    if not _has_disassembler(machine):
        return skipped(name, reason=f"cuobjdump and nvdisasm are not here; {VARIABLE} names them")
    cuobjdump = find_disassembler().cuobjdump
    ahead = [one.path for one in built(folder)] if folder else []
    wrong = [file.stem for file in ahead if not _runs(code_targets(cuobjdump, file))]
    if wrong:
        return failed(
            name,
            f"FlashInfer modules without code for 12.1: {shorten(wrong)}",
            reason="FlashInfer loads them without asking which GPU they are for",
            remedy="remove them, or make them with `sparkwright jit-cache build`",
        )
    files = [*sorted(package.rglob("*.so")), *ahead]
    found = {file.name: targets for file in files if (targets := code_targets(cuobjdump, file))}
    shut = [file for file, targets in found.items() if targets.readiness is Readiness.NONE]
    late = [file for file, targets in found.items() if targets.readiness is Readiness.JIT]
    ready = len(found) - len(shut) - len(late)
    shown = f"{ready} of {len(found)} libraries hold code for 12.1"
    if not ready:
        return failed(
            name,
            shown,
            reason="they were compiled for other GPUs",
            remedy="sparkwright audit PATH shows what is in each",
        )
    if shut or late:
        parts = [f"only as PTX: {shorten(late)}" if late else "", f"none: {shorten(shut)}" if shut else ""]
        return warned(
            name,
            f"{shown}; {'; '.join(part for part in parts if part)}",
            reason="PTX is compiled by the driver at first use, into its cache; a library with none is of no use here",
            remedy="keep CUDA_CACHE_PATH on a volume; sparkwright audit PATH shows what is in each",
        )
    return passed(name, shown)


def _runs(targets: CodeTargets | None) -> bool:
    return targets is not None and targets.readiness is Readiness.NATIVE


def _has_disassembler(machine: Machine) -> bool:
    if machine.environment.get(VARIABLE):
        return True
    return any((paths.cache() / "tools").glob("nvidia-cuda-cuobjdump-*"))


def compiler(machine: Machine, _line: Line) -> Result:
    """What FlashInfer compiles with: nvcc for 12.1a, ninja, a C++ compiler, and what the linker looks for."""
    name = "compiler"
    home = machine.cuda_home()
    nvcc = home / "bin" / "nvcc" if home else None
    if home is None or nvcc is None or not os.access(nvcc, os.X_OK):
        return warned(
            name,
            f"no nvcc{f' in {home}' if home else ''}",
            reason="FlashInfer cannot compile, and vLLM then leaves it out: other kernels, without an error",
            remedy="use the image, or set CUDA_HOME to a CUDA 13 toolkit",
        )
    wanted = {
        "lib64/libcudart.so": (home / "lib64" / "libcudart.so").exists(),
        "lib64/stubs/libcuda.so": (home / "lib64" / "stubs" / "libcuda.so").exists(),
        "ninja": machine.program("ninja") is not None,
        "nvcc on PATH": machine.program("nvcc") is not None,
        "c++": machine.program("c++") is not None,
    }
    missing = [one for one, there in wanted.items() if not there]
    try:
        with tempfile.TemporaryDirectory() as scratch:
            source = Path(scratch, "convert.cu")
            source.write_text(_CONVERT, encoding="utf-8")
            environment = {key: value for key, value in machine.environment.items() if not key.startswith("NVCC_")}
            run([nvcc, "-cubin", "-arch=sm_121a", "-o", Path(scratch, "convert.cubin"), source], env=environment)
    except SparkwrightError as error:
        return failed(
            name,
            f"{nvcc} does not compile for sm_121a",
            reason=error.what.splitlines()[-1],
            remedy="CUDA 12.9 or later and a C++ compiler that it accepts are needed",
        )
    if missing:
        return warned(
            name,
            f"{nvcc} compiles; missing: {', '.join(missing)}",
            reason="FlashInfer's modules do not link, or vLLM leaves FlashInfer out",
            remedy="use the image; docs/image.md says how its toolkit is put together",
        )
    return passed(name, f"{nvcc} compiles for sm_121a; ninja, c++ and the linker's libraries are there")


def nvcc_variables(machine: Machine, _line: Line) -> Result:
    """An architecture given to nvcc by a variable breaks FlashInfer's own choice."""
    name = "nvcc variables"
    found = [one for one in ("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS") if "-arch" in machine.environment.get(one, "")]
    archs = machine.environment.get("FLASHINFER_CUDA_ARCH_LIST", "")
    if found:
        return failed(
            name,
            f"{', '.join(found)} set an architecture",
            reason="FlashInfer's modules then also get plain compute_121, which its headers refuse",
            remedy=f"unset {' '.join(found)}",
        )
    return passed(name, f"FLASHINFER_CUDA_ARCH_LIST={archs}" if archs else "none set")


def flashinfer_modules(machine: Machine, line: Line) -> Result:
    """The FlashInfer modules of the list lie ready, and are those that were audited."""
    name = "FlashInfer modules"
    folder = machine.installed.aot_folder()
    if folder is None:
        return skipped(name, reason="FlashInfer is not installed for this Python")
    try:
        wanted = [module.name for module in load_modules(line).modules]
    except ConfigurationError as error:
        return skipped(name, reason=error.what)
    ready = {one.name: one.path for one in built(folder)}
    report = read_report(folder)
    known = {one.name: one.sha256 for one in report.modules} if report else {}
    strange = [one for one, path in ready.items() if sha256_file(path) != known.get(one)]
    if strange:
        return failed(
            name,
            f"not the ones that were audited: {shorten(strange)}",
            reason="FlashInfer loads whatever lies there, without asking which GPU it is for",
            remedy=f"remove them from {folder}, or make them with `sparkwright jit-cache build`",
        )
    missing = [one for one in wanted if one not in ready]
    if missing:
        return warned(
            name,
            f"{len(ready)} ready, {len(missing)} missing: {shorten(missing, most=2)}",
            reason="each is compiled when it is first needed; fused_moe_120 takes many minutes and much memory",
            remedy="sparkwright jit-cache build",
        )
    return passed(name, f"{len(ready)} ready and audited")


SOFTWARE_CHECKS: Final[tuple[Callable[[Machine, Line], Result], ...]] = (
    releases,
    patches,
    libraries,
    machine_code,
    compiler,
    nvcc_variables,
    flashinfer_modules,
)
