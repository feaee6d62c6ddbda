"""The CUDA compiler and its inspection tools, composed from pinned wheels into one CUDA_HOME."""

import shutil
from pathlib import Path
from typing import Final

from sparkwright.errors import ConfigurationError
from sparkwright.files import exclusive_lock, explain_write_errors, sha256_bytes
from sparkwright.native.cuda_home import compose
from sparkwright.paths import cache
from sparkwright.pins import Toolchain, host_wheel_kind, load_toolchain
from sparkwright.report import note
from sparkwright.sources import fetch, unpack

WHEEL_PREFIX: Final = Path("nvidia") / "cu13"
"""Where NVIDIA's wheels put everything, below the folder that they are unpacked into."""


def toolchain(*, offline: bool = False) -> Path:
    """A CUDA_HOME with nvcc, cuobjdump, nvdisasm, headers and cudart: enough to compile and to inspect device code.

    It is made once and kept in the cache under the digest of its wheels; it needs neither torch nor a GPU, nor a
    host compiler unless nvcc is run.

    Raises:
        UnavailableError: a wheel is neither in the cache nor reachable.
        IntegrityError: a wheel is not the pinned one.
        OutputError: the cache cannot be written.
    """
    pins = load_toolchain()
    home = cache() / "toolchain" / digest(pins)
    if home.is_dir():
        return home
    with exclusive_lock(home.with_name(f".{home.name}.lock"), doing="composing the CUDA toolchain", wait=True):
        if not home.is_dir():
            _make(home, [fetch(component.file(host_wheel_kind()), offline=offline) for component in pins.components])
    return home


def digest(pins: Toolchain) -> str:
    """A short name for exactly these wheels of this kind of host."""
    hashes = [component.file(host_wheel_kind()).sha256 for component in pins.components]
    return sha256_bytes("\n".join(hashes).encode())[:16]


def _make(home: Path, wheels: list[Path]) -> None:
    # A fixed name: the lock is held, so whatever lies there was left by an interrupted run.
    scratch = home.with_name(f".{home.name}.composing")
    note(f"unpacking the CUDA toolchain: {len(wheels)} wheels")
    with explain_write_errors(home):
        shutil.rmtree(scratch, ignore_errors=True)
        for number, wheel in enumerate(wheels):
            _merge(unpack(wheel, scratch / str(number)) / WHEEL_PREFIX, scratch / "home")
        compose(scratch / "home").rename(home)
        shutil.rmtree(scratch)


def _merge(source: Path, into: Path) -> None:
    if not source.is_dir():
        raise ConfigurationError(f"a CUDA wheel has no {WHEEL_PREFIX}", cause="NVIDIA changed the layout of its wheels")
    for file in sorted(path for path in source.rglob("*") if not path.is_dir()):
        target = into / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.rename(target)
