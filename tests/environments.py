"""Environments of real tools, made from requirements/ into the cache."""

import hashlib
import sys
from pathlib import Path

from sparkwright.errors import CommandFailedError, UnavailableError
from sparkwright.files import exclusive_lock, write_atomic
from sparkwright.paths import REQUIREMENTS, cache
from sparkwright.run import run

# Without a hash: where it comes from is told there.
_TORCH = "serve-torch.txt"


def environment(lock: str, *, editable: Path | None = None) -> Path:
    """The Python of an environment that holds a lock file of requirements/ and the CPU build of torch; made once.

    `editable` is a project that is put into it, without what that needs.
    """
    contents = hashlib.sha256(b"".join((REQUIREMENTS / name).read_bytes() for name in (lock, _TORCH)))
    contents.update(f"{sys.version} {editable}".encode())
    folder = cache() / "environments" / f"{lock.removesuffix('.txt')}-{contents.hexdigest()[:12]}"
    python, done = folder / "bin/python", folder / "made"
    with exclusive_lock(folder.with_name(f"{folder.name}.lock"), doing="making the environment", wait=True):
        if not done.exists():
            _make(folder, python, lock, editable)
            write_atomic(done, "")
    return python


def _make(folder: Path, python: Path, lock: str, editable: Path | None) -> None:
    uv: list[str | Path] = [sys.executable, "-m", "uv", "--quiet"]
    run([*uv, "venv", "--clear", "--python", sys.executable, folder])
    run(
        [
            *uv,
            "pip",
            "install",
            "--python",
            python,
            "--no-deps",
            "--require-hashes",
            "--requirement",
            REQUIREMENTS / lock,
        ]
    )
    # pip, as uv does not read where pip is told to look for the CPU build.
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "--quiet"]
    try:
        run([*pip, "install", "--no-deps", "--no-compile", "--requirement", REQUIREMENTS / _TORCH])
    except CommandFailedError as error:
        raise UnavailableError(
            f"the CPU build of torch could not be installed (requirements/{_TORCH})\n{error.what}",
            cause="the package index has CUDA builds only, and pip is shown no other place that has it",
            remedy="set PIP_EXTRA_INDEX_URL to PyTorch's index of CPU builds (pytorch.org's install page names it), or "
            "PIP_FIND_LINKS to a folder that holds the wheel",
        ) from error
    if editable is not None:
        run([*uv, "pip", "install", "--python", python, "--no-deps", "--editable", editable])
