"""Build kernels for the CPU, through kernels/shim."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from sparkwright.native.compiler import host_compiler
from sparkwright.paths import CHECKOUT, CUDA_HEADERS
from sparkwright.run import run

KERNELS: Final = CHECKOUT / "kernels"
HERE: Final = Path(__file__).parent
SANITIZERS: Final = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g1")


def sanitizing() -> dict[str, str]:
    """What a process needs that loads a library built with SANITIZERS: their libraries loaded first, above all."""
    compiler = host_compiler().path
    preload = [run([compiler, f"-print-file-name={name}"]).strip() for name in ("libasan.so", "libubsan.so")]
    return {
        "LD_PRELOAD": ":".join(preload),
        "PYTHONMALLOC": "malloc",
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


def shared_library(folder: Path, cuda_home: Path, sources: Sequence[Path], *options: str) -> Path:
    """A library of these sources and the shim, made in `folder`, two compilers at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    compiler = host_compiler().path
    include = [f"-I{KERNELS / 'shim'}", f"-I{KERNELS}", f"-I{CUDA_HEADERS}", "-isystem", str(cuda_home / "include")]
    strict = ["-std=c++20", "-O1", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-ffp-contract=off"]

    def compiled(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        run([compiler, *strict, *options, *include, "-x", "c++", "-c", source, "-o", target])
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, [*sources, KERNELS / "shim" / "simt.cpp"]))
    library = folder / "library.so"
    run([compiler, *options, "-shared", *objects, "-o", library])
    return library
