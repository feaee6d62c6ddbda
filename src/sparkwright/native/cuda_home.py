"""Turn a prefix into which CUDA wheels were unpacked into a CUDA_HOME that CMake, torch and nvcc accept.

The wheels leave three things out: the folder `lib64`, the names without a version that a linker looks for, and the
driver's library, which comes with the driver and not with a toolkit.
"""

import re
import tempfile
from pathlib import Path
from typing import Final

from sparkwright.errors import ConfigurationError
from sparkwright.files import explain_write_errors
from sparkwright.native.compiler import HostCompiler
from sparkwright.run import run

_DECLARATION: Final = re.compile(r"^CUresult CUDAAPI (cu[A-Z]\w*)\(", re.MULTILINE)
_RENAMED: Final = re.compile(r"^ *#define +cu[A-Z]\w* +(?:__CUDA_API_PT(?:DS|SZ)\()?(cu[A-Z]\w*)\)?$", re.MULTILINE)
_ERROR_STUB_LIBRARY: Final = 34  # CUresult of every call into NVIDIA's own stub


def compose(prefix: Path) -> Path:
    """Add `lib64` and the unversioned library names; what is already there is left alone. Returns `prefix`.

    Raises:
        ConfigurationError: the prefix holds no compiler, so it is not what the wheels unpack to.
    """
    if not (prefix / "bin" / "nvcc").is_file():
        raise ConfigurationError(
            f"{prefix} holds no bin/nvcc",
            cause="the CUDA wheels changed their layout, or some are missing from the pins",
            remedy="compare pins/toolchain.toml with the folder",
        )
    with explain_write_errors(prefix):
        _link(prefix / "lib64", "lib")
        for library in sorted((prefix / "lib").glob("lib*.so.*")):
            _link(library.with_name(f"{library.name.partition('.so.')[0]}.so"), library.name)
    return prefix


def _link(link: Path, target: str) -> None:
    if not link.is_symlink() and not link.exists():
        link.symlink_to(target)


def driver_functions(header: str) -> tuple[str, ...]:
    """The names that cuda.h declares, in the spelling that reaches the linker too (cuMemAlloc and cuMemAlloc_v2)."""
    return tuple(sorted({*_DECLARATION.findall(header), *_RENAMED.findall(header)}))


def driver_stub(prefix: Path) -> Path:
    """Where the `libcuda.so` to link against lies, whether it exists or not."""
    return prefix / "lib" / "stubs" / "libcuda.so"


def add_driver_stub(prefix: Path, compiler: HostCompiler) -> Path:
    """Put a `libcuda.so` to link against below `lib/stubs`; nothing may ever run with it.

    It defines every function of cuda.h. One without definitions would link as well, because a module may have undefined
    symbols, but torch links with --as-needed: the linker would then leave libcuda.so.1 out of NEEDED, and the
    extension would not load where the driver is.
    """
    stub = driver_stub(prefix)
    if stub.exists():
        return stub
    names = driver_functions((prefix / "include" / "cuda.h").read_text(encoding="utf-8"))
    if not names:
        raise ConfigurationError(f"{prefix}/include/cuda.h declares no driver function", cause="its layout changed")
    with explain_write_errors(stub):
        stub.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=stub.parent) as scratch:
            source, library = Path(scratch, "cuda.c"), Path(scratch, stub.name)
            source.write_text("".join(f"int {name}(void) {{ return {_ERROR_STUB_LIBRARY}; }}\n" for name in names))
            run([compiler.path, "-x", "c", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", library, source])
            library.replace(stub)
    return stub
