"""Compile the PTX in a finished library ahead, as the driver would at first use, and put the machine code beside it.

A fat binary of a library gives way to a smaller one in the same place, so no address in the library changes: its other
machine code goes, its PTX stays for a driver that would rather have that.
"""

import re
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sparkwright.audit import FatBinary, Readiness
from sparkwright.audit.containers import open_containers
from sparkwright.audit.disassembler import Disassembler, find_disassembler
from sparkwright.audit.inspection import inspect
from sparkwright.audit.target import Target
from sparkwright.errors import AuditFailedError, BuildFailedError, CommandFailedError
from sparkwright.files import sha256_bytes, write_atomic
from sparkwright.native import measure
from sparkwright.native.compile import compile_progress, read_measurements
from sparkwright.paths import cache
from sparkwright.report import note
from sparkwright.run import end_children, run

_SECONDS_PER_BYTE: Final = 12e-6
"""CPU seconds for a byte of fat binary: about what FlashAttention 2 takes on x86-64."""
_INSTEAD: Final = "leave its PTX to the driver: --externals wheel"
_LISTED: Final = re.compile(r"\.(?P<target>sm_\w+)\.(?P<kind>ptx|cubin)$", re.MULTILINE)
_ENTRY: Final = re.compile(rb"^\s*(?:\.\w+ )*\.entry\b", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What compiles PTX, and what it is compiled for."""

    cuda_home: Path
    target: Target
    disassembler: Disassembler

    def program(self, name: str) -> Path:
        """A program of the CUDA toolkit."""
        return self.cuda_home / "bin" / name


def add_machine_code(library: Path, target: Target, *, cuda_home: Path, jobs: int) -> int:
    """Compile what the driver would compile on GB10, in place; the number of modules that got machine code.

    Modules that hold code for GB10, or nothing that it can compile, stay as they are. What was compiled is kept in the
    cache, so that an interrupted run goes on where it stopped. The library is replaced when all of it is done.

    Raises:
        BuildFailedError: ptxas failed, or the machine code does not fit where the old code was.
        AuditFailedError: what ptxas made is not what it was asked for.
    """
    tools = Tools(cuda_home=cuda_home, target=target, disassembler=find_disassembler())
    with open_containers(library) as (container,):
        places = dict(zip(container.offsets, container.pieces, strict=True))
        made = _compile_all(places, tools, name=library.name, jobs=jobs)
        content = bytearray(library.read_bytes())
        for offset, path in made.items():
            room = len(places[offset])
            content[offset : offset + room] = path.read_bytes().ljust(room, b"\0")
    if made:
        write_atomic(library, bytes(content), mode=library.stat().st_mode & 0o777)
    return len(made)


def _compile_all(places: Mapping[int, memoryview], tools: Tools, *, name: str, jobs: int) -> dict[int, Path]:
    """The fat binaries that replace those at these offsets."""
    made_by = f"{tools.target}\n{run([tools.program('ptxas'), '--version'])}"
    folder = cache() / "translated" / sha256_bytes(made_by.encode())[:16]
    paths = {offset: folder / f"{sha256_bytes(bytes(piece))}.fatbin" for offset, piece in places.items()}
    # The largest first, so that no core waits for the longest one at the end.
    order = sorted(places, key=lambda offset: -len(places[offset]))
    waiting = [offset for offset in order if not paths[offset].exists() and _compiles(places[offset], tools)]
    measurements = folder / "measurements.jsonl"
    measurements.unlink(missing_ok=True)
    names = {offset: f"{name}-{number}" for number, offset in enumerate(places)}
    if waiting:
        note(f"compiling the PTX of {len(waiting)} modules of {name} for {tools.target}, {jobs} at once")
        folder.mkdir(parents=True, exist_ok=True)
    costs = {names[offset]: len(places[offset]) * _SECONDS_PER_BYTE for offset in waiting}
    with compile_progress([names[offset] for offset in waiting], costs) as show, ThreadPoolExecutor(jobs) as pool:
        futures = {
            pool.submit(_compile, places[offset], paths[offset], tools, measurements, names[offset]): offset
            for offset in waiting
        }
        try:
            for done in as_completed(futures):
                done.result()
                show(f" {names[futures[done]]}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            end_children()
            raise
    if measured := read_measurements(measurements).values():
        note(
            f"ptxas took {sum(one.cpu_seconds for one in measured):.0f} CPU s, and at most "
            f"{max(one.peak_mb for one in measured)} MB at once"
        )
    return {offset: paths[offset] for offset in sorted(places) if paths[offset].exists()}


def _compiles(piece: memoryview, tools: Tools) -> bool:
    """Whether GB10's driver would have to compile this fat binary."""
    with tempfile.NamedTemporaryFile(prefix="sparkwright-translate-", suffix=".fatbin") as file:
        file.write(piece)
        file.flush()
        listed = list(_LISTED.finditer(run([tools.disassembler.cuobjdump, "-lelf", "-lptx", file.name])))
    sass, ptx = (tuple(one["target"] for one in listed if one["kind"] == kind) for kind in ("cubin", "ptx"))
    return FatBinary(sass=sass, ptx=ptx, code=None).readiness is Readiness.JIT


def _compile(piece: memoryview, made: Path, tools: Tools, measurements: Path, name: str) -> None:
    """Make the fat binary that replaces `piece`, and look into it."""
    with tempfile.TemporaryDirectory(prefix="sparkwright-translate-") as scratch:
        folder = Path(scratch)
        ptx, options = _extract(piece, folder, tools)
        cubin, fat_binary = folder / name, folder / "made.fatbin"
        launcher: list[str | Path] = [sys.executable, "-I", "-S", measure.__file__, measurements]
        images = {"elf": (tools.target, cubin), "ptx": (Target.parse(ptx.name.split(".")[-2]), ptx)}
        try:
            run([*launcher, tools.program("ptxas"), *options, f"-arch={tools.target}", ptx, "-o", cubin], cwd=folder)
            run(
                [
                    tools.program("fatbinary"),
                    f"--create={fat_binary}",
                    "-64",
                    "--compress-all",
                    *([f"--cmdline={' '.join(options)}"] if options else []),
                    *(
                        f"--image3=kind={kind},sm={str(target).removeprefix('sm_')},file={file}"
                        for kind, (target, file) in images.items()
                    ),
                ]
            )
        except CommandFailedError as error:
            raise BuildFailedError(
                f"{name} could not be compiled for {tools.target}:\n{error.what}",
                remedy=_INSTEAD,
            ) from error
        if (size := fat_binary.stat().st_size) > len(piece):
            raise BuildFailedError(
                f"the machine code of {name} for {tools.target} does not fit where it has to go",
                cause=f"with its PTX it takes {size} bytes, and there are {len(piece)}",
                remedy=_INSTEAD,
            )
        _prove(fat_binary, len(_ENTRY.findall(ptx.read_bytes())), tools, name)
        write_atomic(made, fat_binary.read_bytes())


def _prove(fat_binary: Path, entries: int, tools: Tools, name: str) -> None:
    """Make sure that it holds machine code for the target alone, with as many kernels as the PTX has entries."""
    found = inspect(memoryview(fat_binary.read_bytes()), name, tools.disassembler)
    kernels = found.code.kernels if found.code else 0
    if found.sass != (str(tools.target),) or found.readiness is not Readiness.NATIVE or kernels != entries:
        raise AuditFailedError(
            f"{name} was not compiled to what its PTX says",
            cause=f"{kernels} kernels for {', '.join(found.sass) or 'no target'}, not {entries} for {tools.target}",
        )


def _extract(piece: memoryview, folder: Path, tools: Tools) -> tuple[Path, tuple[str, ...]]:
    """The PTX that the driver would choose, as a file, and the options it wants to be compiled with."""
    (folder / "code.fatbin").write_bytes(piece)
    said = run([tools.disassembler.cuobjdump, "-xptx", "all", "code.fatbin"], cwd=folder)
    found = {path: Target.parse(path.name.split(".")[-2]) for path in folder.glob("*.ptx")}
    chosen = max((path for path, target in found.items() if target.compiles_on_gb10), key=lambda path: found[path])
    (line,) = (line for line in said.splitlines() if chosen.name in line)
    options = line.partition(chosen.name)[2].split()
    return chosen, tuple(option for option in options if not option.startswith("-arch"))
