"""The installable wheel: vLLM's extensions as compiled here, external projects by hash from the official wheel."""

import os
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Final

from sparkwright.audit.target import Target
from sparkwright.errors import BuildFailedError, CommandFailedError, ConfigurationError, UsageError
from sparkwright.files import sha256_file, write_json
from sparkwright.native.configure import BUILD_TYPE, RECORD, Configuration
from sparkwright.native.environment import BuildEnvironment
from sparkwright.native.layout import Layout
from sparkwright.native.translate import add_machine_code
from sparkwright.patching.receipt import RECEIPT, read_receipt
from sparkwright.paths import CHECKOUT
from sparkwright.pins import Line, PinnedFile
from sparkwright.run import run

LOCAL_VERSION: Final = "gb10"
OFFICIAL: Final = "official"
"""What the version says besides, when the libraries are not compiled here."""
RUST_FRONTEND: Final = "vllm/vllm-rs"
LINKED: Final = "vLLM's own extensions"
EXTENSIONS: Final = ("_C_stable_libtorch", "_moe_C_stable_libtorch", "cumem_allocator", "fs_io_C", "spinloop")


class Externals(StrEnum):
    """What becomes of the external projects, which come from the official wheel of the same release."""

    WHEEL = "wheel"
    """They stay as they are: the driver compiles what is PTX at first use."""
    COMPILED = "compiled"
    """That PTX is compiled here."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a lean build leaves out, as globs over the paths in the official wheel."""

    name: str
    files: tuple[str, ...]
    why: str


PARTS: Final = (
    Part(
        name="FlashAttention 2 and 4",
        files=("vllm/vllm_flash_attn/_vllm_fa2_C.*", "vllm/vllm_flash_attn/*.py"),
        why="without it no model module imports on CUDA",
    ),
    Part(name="Rust front end", files=(RUST_FRONTEND,), why="its crates cannot be pinned through a package index"),
    Part(name="DeepGEMM", files=("vllm/third_party/deep_gemm/*",), why="host code; it compiles kernels at run time"),
    Part(name="triton_kernels", files=("vllm/third_party/triton_kernels/*",), why="Python only"),
    Part(name="FlashKDA", files=("vllm/_flashkda_C.*",), why="holds code for sm_120"),
)


def choose_externals(chosen: str) -> Externals:
    """What a user chose for the external projects.

    Raises:
        UsageError: it is none of the choices.
    """
    try:
        return Externals(chosen)
    except ValueError as error:
        raise UsageError(
            f"EXTERNALS={chosen} is not known",
            cause="the source of FlashAttention 2 is in no package index, and a lean build leaves its CMake project out"
            if chosen == "source"
            else "",
            remedy=f"{Externals.WHEEL} takes it from the official wheel, whose PTX the driver compiles at first use; "
            f"{Externals.COMPILED} compiles that PTX for GB10 during the build",
        ) from error


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a part of the wheel came from."""

    part: str
    source: str
    sha256: str
    """Of the archive that it was taken from."""
    files: int
    size: int
    why: str


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """The finished wheel."""

    path: str
    """Below the checkout."""
    size: int
    sha256: str
    origins: tuple[Origin, ...]


def make_wheel(
    line: Line,
    how: Configuration,
    environment: BuildEnvironment,
    folders: Layout,
    *,
    official: tuple[PinnedFile, Path],
    jobs: int,
    externals: Externals = Externals.WHEEL,
) -> Wheel:
    """Make the wheel through vLLM's setup.py on top of a compiled build folder, and add what a lean build leaves out.

    `official` is the official wheel of the same release for this kind of host, as pinned and as fetched.

    Raises:
        BuildFailedError: setup.py or packing failed.
        ConfigurationError: the official wheel lacks a part.
    """
    pinned, archive = official
    scratch = folders.root / "wheel"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    with zipfile.ZipFile(archive) as package:
        # setup.py runs cargo unless the front end lies in the tree already.
        _extract(package, [RUST_FRONTEND], how.source)
        log = folders.log("wheel")
        log.unlink(missing_ok=True)
        built = _setup(line, how, environment, folders, scratch, log=log, jobs=jobs)
        tree = _unpack(built, environment, scratch, log)
        # Of a file that both have, ours stays: it may be patched.
        ours = {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()} - {RUST_FRONTEND}
        origins = [_own_origin(line, tree)]
        for part in PARTS:
            names = [name for name in select(part, package.namelist()) if name not in ours]
            _extract(package, names, tree)
            size = sum(package.getinfo(name).file_size for name in names)
            compiled = _compile_ptx(tree, names, line, environment, jobs) if externals is Externals.COMPILED else ()
            origins.append(
                Origin(
                    part=part.name,
                    source=pinned.name,
                    sha256=pinned.sha256,
                    files=len(names),
                    size=size,
                    why="; ".join((part.why, *compiled)),
                )
            )
    _add_provenance(tree, how.source, origins)
    made = _pack(tree, environment, folders, origins, log)
    shutil.rmtree(scratch)
    return made


def take_wheel(
    line: Line,
    source: Path,
    environment: BuildEnvironment,
    folders: Layout,
    *,
    official: tuple[PinnedFile, Path],
    jobs: int,
    externals: Externals = Externals.WHEEL,
) -> Wheel:
    """The official wheel with the patched Python of `source`: for builds that compile too little to link a library.

    Its version says so. What a wheel made here would not hold is not in it either.

    Raises:
        BuildFailedError: packing failed.
        ConfigurationError: the official wheel lacks a part.
    """
    pinned, archive = official
    scratch = folders.root / "wheel"
    shutil.rmtree(scratch, ignore_errors=True)
    log = folders.log("wheel")
    log.unlink(missing_ok=True)
    old, new = (f"vllm-{line.name}{local}" for local in ("", f"+{LOCAL_VERSION}.{OFFICIAL}"))
    tree = scratch / new
    with zipfile.ZipFile(archive) as package:
        names = [name for name in package.namelist() if not name.endswith("/")]
        parts = {name for part in PARTS for name in select(part, names)}
        extensions = [Part(name=LINKED, files=(f"vllm/{name}.*",), why="") for name in EXTENSIONS]
        taken = parts | {name for part in extensions for name in select(part, names)}
        taken |= {name for name in names if _is_python_of_ours(name, source) or name.startswith(f"{old}.dist-info/")}
        _extract(package, sorted(taken), tree)
    compiled = _compile_ptx(tree, sorted(parts), line, environment, jobs) if externals is Externals.COMPILED else ()
    replaced = [path for path in _patched_files(source) if (source / path).is_file() and path.startswith("vllm/")]
    for path in replaced:
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / path, tree / path)
    metadata = (tree / f"{old}.dist-info").rename(tree / f"{new}.dist-info")
    described = (metadata / "METADATA").read_text(encoding="utf-8")
    described = described.replace(f"\nVersion: {line.name}\n", f"\nVersion: {new.removeprefix('vllm-')}\n", 1)
    (metadata / "METADATA").write_text(described, encoding="utf-8")
    why = "; ".join(("nothing was linked here: the whole official wheel, with patched Python", *compiled))
    size = sum(path.stat().st_size for path in tree.rglob("*") if path.is_file())
    origins = (Origin(part="vLLM", source=pinned.name, sha256=pinned.sha256, files=len(taken), size=size, why=why),)
    _add_provenance(tree, source, origins)
    made = _pack(tree, environment, folders, origins, log)
    shutil.rmtree(scratch)
    return made


def _compile_ptx(
    tree: Path, names: Sequence[str], line: Line, environment: BuildEnvironment, jobs: int
) -> tuple[str, ...]:
    """Compile the PTX in these files of the official wheel; for each library that had some, what became of it."""
    target = Target.parse(f"sm_{line.arch_list[0].replace('.', '')}")
    libraries = [name for name in names if name.endswith(".so")]
    home = environment.cuda_home
    counts = {name: add_machine_code(tree / name, target, cuda_home=home, jobs=jobs) for name in libraries}
    return tuple(
        f"{count} modules of PTX in {PurePosixPath(name).name} compiled here for {target}"
        for name, count in counts.items()
        if count
    )


def _is_python_of_ours(name: str, source: Path) -> bool:
    return name.startswith("vllm/") and (source / name).is_file()


def _patched_files(source: Path) -> list[str]:
    receipt = read_receipt(source)
    return sorted(receipt.first_and_last()) if receipt else []


def _pack(
    tree: Path,
    environment: BuildEnvironment,
    folders: Layout,
    origins: Sequence[Origin],
    log: Path,
) -> Wheel:
    folders.wheels.mkdir(parents=True, exist_ok=True)
    packed = tree.parent / "packed"
    packed.mkdir()
    _run([environment.python, "-m", "wheel", "pack", tree, "--dest-dir", packed], log)
    (wheel,) = packed.iterdir()  # its name is made from the tags inside, which are not always those of the archive
    made = wheel.replace(folders.wheels / wheel.name)
    return Wheel(
        path=made.relative_to(CHECKOUT).as_posix(),
        size=made.stat().st_size,
        sha256=sha256_file(made),
        origins=tuple(origins),
    )


def select(part: Part, names: Sequence[str]) -> list[str]:
    """The files of a part among the names in a wheel.

    Raises:
        ConfigurationError: one of its globs matches nothing.
    """
    for pattern in part.files:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigurationError(
                f"the official wheel holds no {pattern} ({part.name})",
                cause="the release was packed in another way than the ones known here",
                remedy="look into the wheel and correct PARTS in src/sparkwright/native/wheel.py",
            )
    return [name for name in names if not name.endswith("/") and any(fnmatchcase(name, glob) for glob in part.files)]


def _extract(package: zipfile.ZipFile, names: Sequence[str], into: Path) -> None:
    for name in names:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ConfigurationError(f"the official wheel holds the path {name}, which leads out of a folder")
        target = into / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with package.open(name) as content, target.open("wb") as stream:
            shutil.copyfileobj(content, stream, 1 << 20)
        executable = package.getinfo(name).external_attr >> 16 & 0o111
        target.chmod(0o755 if executable else 0o644)


def _setup(
    line: Line,
    how: Configuration,
    environment: BuildEnvironment,
    folders: Layout,
    scratch: Path,
    *,
    log: Path,
    jobs: int,
) -> Path:
    settings = scratch / "setup.cfg"
    # The build folder that was compiled already; and nothing of setuptools' own goes into the source tree.
    settings.write_text(f"[build]\nbuild_base = {scratch / 'setup'}\nbuild_temp = {folders.native}\n", encoding="utf-8")
    variables = how.variables | {
        "DIST_EXTRA_CONFIG": str(settings),
        "VLLM_TARGET_DEVICE": "cuda",
        "VLLM_LEAN": "1",
        "VLLM_VERSION_OVERRIDE": f"{line.name}+{LOCAL_VERSION}",
        "CMAKE_BUILD_TYPE": BUILD_TYPE,
        "CMAKE_ARGS": " ".join(how.arguments),
        "MAX_JOBS": str(jobs),
        "NVCC_THREADS": "1",
    }
    # setup.py configures with its own job pools; the next build does it anew.
    (how.build / RECORD).unlink(missing_ok=True)
    _run([*environment.pip_wheel, "--no-cache-dir", "--wheel-dir", scratch / "built", how.source], log, variables)
    made = list((scratch / "built").glob("*.whl"))
    if len(made) != 1:
        raise BuildFailedError(f"setup.py made {len(made)} wheels", remedy=f"the whole output is in {log}")
    return made[0]


def _unpack(built: Path, environment: BuildEnvironment, scratch: Path, log: Path) -> Path:
    _run([environment.python, "-m", "wheel", "unpack", built, "--dest", scratch / "tree"], log)
    return next((scratch / "tree").iterdir())


def _own_origin(line: Line, tree: Path) -> Origin:
    sdist = line.component("vllm").file("sdist")
    files = [path for path in tree.rglob("*") if path.is_file() and path != tree / RUST_FRONTEND]
    return Origin(
        part="vLLM",
        source=sdist.name,
        sha256=sdist.sha256,
        files=len(files),
        size=sum(path.stat().st_size for path in files),
        why="patched, and compiled here",
    )


def _add_provenance(tree: Path, source: Path, origins: Sequence[Origin]) -> None:
    metadata = next(tree.glob("*.dist-info")) / "sparkwright"
    metadata.mkdir()
    shutil.copyfile(source / RECEIPT, metadata / "patches.json")
    write_json(metadata / "origins.json", [asdict(origin) for origin in origins])


def _run(argv: Sequence[str | Path], log: Path, env: dict[str, str] | None = None) -> None:
    try:
        run(argv, env=env if env is not None else {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}, log=log)
    except CommandFailedError as error:
        raise BuildFailedError(
            f"the wheel could not be made:\n{error.what}", remedy=f"the whole output is in {log}"
        ) from error
