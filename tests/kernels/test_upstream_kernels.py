"""The kernels for SM12x that vLLM has itself: what kernels/README.md says of them, read in compiled objects."""

import re
import tarfile
from pathlib import Path

import pytest
from tests.kernels.build import KERNELS

from sparkwright.audit import audit
from sparkwright.audit.model import Container, totals
from sparkwright.native import host
from sparkwright.native.jobs import default_jobs
from sparkwright.native.layout import layout
from sparkwright.native.units import unit
from sparkwright.pins import default_line, load_line, load_releases
from sparkwright.sources import fetch

LINE = load_line(default_line())
CSRC = "csrc/quantization"
_ROW = re.compile(
    r"^\| (?P<what>[^|]+) \| `(?P<file>[\w/]+\.cu)` \| (?P<since>[\d.]+)[^|]* \| "
    r"(?P<kernels>\d+) kernels, (?P<mma>[\d,]+) (?P<kind>FP[48]) mma, (?P<spilling>\d+) with local memory \|$",
    re.MULTILINE,
)
ROWS = {found["file"]: found for found in _ROW.finditer((KERNELS / "README.md").read_text(encoding="utf-8"))}


def test_the_page_speaks_of_all_four() -> None:
    assert len(ROWS) == 4
    assert {found["kind"] for found in ROWS.values()} == {"FP4", "FP8"}


@pytest.fixture(scope="module")
def objects() -> dict[str, Container]:
    """The objects of these files, by file; `./build.sh --host` or a test of it may have compiled them before."""
    host.build(LINE, unit("nvfp4"), jobs=default_jobs())
    folder = layout(LINE.name).native
    paths = {file: f"CMakeFiles/_C_stable_libtorch.dir/{CSRC}/{file}.o" for file in ROWS}
    by_path = {container.path: container for container in audit(folder, only=list(paths.values())).containers}
    return {file: by_path[path] for file, path in paths.items()}


@pytest.mark.compiles
@pytest.mark.parametrize("file", ROWS)
def test_its_machine_code_is_for_gb10_and_is_what_the_page_says(objects: dict[str, Container], file: str) -> None:
    row, container = ROWS[file], objects[file]
    found = totals(container.code())
    assert set(container.sass()) == {"sm_121a"}
    assert found.wrong_target_traps == 0
    assert found.kernels == int(row["kernels"])
    assert found.spilling_kernels == int(row["spilling"])
    expected = int(row["mma"].replace(",", ""))
    assert (found.fp4_mma, found.fp8_mma) == ((expected, 0) if row["kind"] == "FP4" else (0, expected))


def _has(archive: Path, files: set[str]) -> set[str]:
    """Those of the files that a source archive holds."""
    with tarfile.open(archive) as opened:
        return {member.name.partition("/")[2] for member in opened} & files


@pytest.mark.long
@pytest.mark.sources
def test_every_release_since_has_it() -> None:
    files = {f"{CSRC}/{file}" for file in ROWS}
    assert {found["since"] for found in ROWS.values()} == {"0.16.0"}, "the oldest release of the matrix"
    releases = load_releases().of("vllm")
    assert len(releases) > 20
    for release in releases:
        assert _has(fetch(release.file("sdist")), files) == files, release.version
