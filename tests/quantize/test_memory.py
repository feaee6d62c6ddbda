"""A deeper model takes no more memory, and one may be four times as large as the memory that the run may take."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.quantize.conftest import Quantize, command

from sparkwright.checkpoint.checkpoint import read_checkpoint
from sparkwright.checkpoint.modules import is_vision
from sparkwright.checkpoint.verify import verify

if TYPE_CHECKING:
    from tests.quantize.conftest import Models, Warm

pytestmark = pytest.mark.quantizes

# 12 MB a layer: forty of them in memory would be seen at once.
SMALL = ("--copies", "--hidden", "512", "--wide", "3072", "--layers")
# 35 MB a layer. Python with torch, transformers and modelopt takes 430 MB before it begins.
LARGE = ("--copies", "--hidden", "768", "--wide", "6816", "--layers", "80")
LIMIT = 690_000_000
ROOT = Path("/sys/fs/cgroup")


@pytest.fixture
def control_group() -> Iterator[Path]:
    """A control group whose processes are killed when they take more than LIMIT."""
    parent = ROOT if (ROOT / "cgroup.controllers").exists() else ROOT / "memory"
    group = parent / f"sparkwright-{os.getpid()}"
    try:
        if parent == ROOT:
            (parent / "cgroup.subtree_control").write_text("+memory")
        group.mkdir()
        (group / ("memory.max" if parent == ROOT else "memory.limit_in_bytes")).write_text(str(LIMIT))
    except OSError as error:
        with contextlib.suppress(OSError):
            group.rmdir()
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no control group can be made: {error}")
    yield group
    group.rmdir()


def _peak(output: Path) -> int:
    """What was resident at most, files that are only mapped included."""
    report = json.loads(output.with_name(f"{output.name}.report.json").read_text(encoding="utf-8"))
    return int(report["peak_rss_bytes"])


def test_the_peak_does_not_grow_with_depth(models: "Models", quantize: Quantize, tmp_path: Path) -> None:
    for layers in ("10", "40"):
        quantize(models("llama", *SMALL, layers), tmp_path / layers)
    assert _peak(tmp_path / "40") < 1.1 * _peak(tmp_path / "10")


def test_what_sees_takes_no_memory(models: "Models", quantize: Quantize, tmp_path: Path) -> None:
    for width in ("64", "3072"):
        quantize(models("qwen3_5_moe", "--sees", width), tmp_path / width)
    large = sum(one.nbytes for one in read_checkpoint(tmp_path / "3072").tensors.values() if is_vision(one.name))
    assert large > 300_000_000
    assert _peak(tmp_path / "3072") < _peak(tmp_path / "64") + large // 4


@pytest.mark.long
def test_a_model_four_times_as_large_as_the_memory(
    quantizing: "Warm", models: "Models", data: Path, control_group: Path, tmp_path: Path
) -> None:
    source, output = models("llama", *LARGE), tmp_path / "made"
    assert read_checkpoint(source).size >= 4 * LIMIT
    words = ("-m", "sparkwright", *command(source, output, data), "--memory", "8")
    quantizing.tool(*words, prefix=("sh", "-c", f'echo $$ > {control_group}/cgroup.procs && exec "$@"', "sh"))
    assert verify(output, against=source).findings == ()
