"""Time `sparkwright patch apply` and `status` on a pristine tree against `git apply` of the same diff.

Both do the same edits to the same files; ours also decides what each patch is to the tree, keeps the originals, and
writes the receipt. Runs alternate; CPU and wall seconds of whole processes.
"""

import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path

from measuring import Cost, measure, store

from sparkwright.patching.engine import examine, unified_diff
from sparkwright.paths import CHECKOUT
from sparkwright.pins import lines, load_line
from sparkwright.sources import fetch, unpack

RUNS = 7
COMMAND = CHECKOUT / ".venv" / "bin" / "sparkwright"


def medians(costs: list[Cost]) -> dict[str, float]:
    """Median CPU and wall seconds."""
    return {
        "cpu": statistics.median(cost.cpu for cost in costs),
        "wall": statistics.median(cost.wall for cost in costs),
    }


def compare(version: str, scratch: Path) -> dict[str, object]:
    """All runs of one release line."""
    pristine = unpack(fetch(load_line(version).component("vllm").file("sdist")), scratch / f"pristine-{version}")
    diff = scratch / f"{version}.diff"
    examination = examine(pristine, "vllm", version)
    diff.write_text(unified_diff(examination), encoding="utf-8", errors="surrogateescape")
    options = ["--component", "vllm", "--version", version, "--json"]
    costs: dict[str, list[Cost]] = {"apply": [], "status": [], "git_apply": []}
    for _ in range(RUNS):
        ours, theirs = scratch / "ours", scratch / "theirs"
        for tree in (ours, theirs):
            shutil.copytree(pristine, tree, symlinks=True)
        costs["apply"].append(measure([COMMAND, "patch", "apply", *options, "--tree", ours]))
        costs["git_apply"].append(measure(["git", "apply", diff], cwd=theirs))
        costs["status"].append(measure([COMMAND, "patch", "status", *options, "--tree", ours]))
        same = subprocess.run(
            ["diff", "--recursive", "--exclude=.sparkwright", ours, theirs], capture_output=True, check=False
        )
        if same.returncode:
            raise SystemExit(f"the two trees differ:\n{same.stdout.decode()[:2000]}")
        shutil.rmtree(ours)
        shutil.rmtree(theirs)
    applied = medians(costs["apply"])
    return {
        "patches": len(examination.findings),
        "files_changed": diff.read_text(encoding="utf-8", errors="surrogateescape").count("\n+++ "),
        "runs": {name: [[cost.cpu, cost.wall] for cost in each] for name, each in costs.items()},
        "median": {name: medians(each) for name, each in costs.items()},
        "ratio_apply_to_git_apply": {
            key: round(applied[key] / value, 2) for key, value in medians(costs["git_apply"]).items() if value
        },
    }


def main() -> None:
    """Measure both lines and store the result."""
    with tempfile.TemporaryDirectory(prefix="sparkwright-benchmark-") as name:
        store("patch-tree", {"units": "seconds", "lines": {one: compare(one, Path(name)) for one in lines()}})


if __name__ == "__main__":
    main()
