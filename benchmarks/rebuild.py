"""Build the nvfp4 unit cold, warm, and after a Python-only patch changed; count what is compiled each time.

The build works in a folder of its own with a compiler cache of its own, so the first build is cold although the
toolchain and the build environment come from the usual cache. Warm: the build tree is gone, the compiler cache is
there. Python-only: one python patch is left out of the series, so the source tree really changes. Native: the same
with a native patch, as the opposite case.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measuring import store

from sparkwright.patching.matrix import read_matrix
from sparkwright.patching.model import Status
from sparkwright.patching.series import NamedPatch, load_series
from sparkwright.paths import CHECKOUT, PATCHES
from sparkwright.pins import default_line

DATA = ("pins", "requirements", "cuda_headers", "tuning_configs")


def checkout(folder: Path) -> Path:
    """A checkout that shares this one's data but has its own patches and build folder."""
    for name in DATA:
        (folder / name).symlink_to(CHECKOUT / name)
    shutil.copytree(PATCHES, folder / "patches")
    return folder


def build(root: Path) -> dict[str, object]:
    """Run the host build; what it compiled and cost."""
    environment = os.environ | {"SPARKWRIGHT_ROOT": str(root), "CCACHE_DIR": str(root / "ccache")}
    started = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "sparkwright", "build", "--host", "--json"],
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    wall = time.monotonic() - started
    report = json.loads((root / "build" / default_line() / "report.json").read_text(encoding="utf-8"))
    wanted = ("objects", "compiled", "cache_hits", "cpu_seconds", "peak_mb")
    return {
        **{name: report["totals"][name] for name in wanted},
        "wall_seconds": round(wall, 1),
        "compile_step_seconds": report["seconds"]["compile"],
        "jobs": report["jobs"],
    }


def python_patch() -> NamedPatch:
    """A Python-only patch that the line applies."""
    grid = read_matrix().grid("vllm")
    needed = {row.name for row in grid.with_status(default_line(), Status.NEEDED) if row.kind == "python"}
    return next(one for one in load_series("vllm") if one.name in needed)


def native_patch() -> NamedPatch:
    """A native patch that changes objects of the unit."""
    return next(one for one in load_series("vllm") if one.name == "e2m1-portable-convert")


def main() -> None:
    """Measure the four builds and store them."""
    results: dict[str, object] = {}
    with tempfile.TemporaryDirectory(prefix="sparkwright-benchmark-") as name:
        root = checkout(Path(name))
        results["cold"] = build(root)
        results["nothing changed"] = build(root)
        shutil.rmtree(root / "build" / default_line() / "native")
        results["warm compiler cache, build tree removed"] = build(root)
        for patch in (python_patch(), native_patch()):
            (root / "patches" / patch.component / patch.source.name).unlink()
            results[f"{patch.patch.kind} patch {patch.name} left out"] = build(root)
            shutil.copy(patch.source, root / "patches" / patch.component)
            build(root)
    store("rebuild", {"unit": "nvfp4", "line": default_line(), "builds": results})


if __name__ == "__main__":
    main()
