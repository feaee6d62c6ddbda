"""`./build.sh --host --wheel`: a valid wheel that imports as on GB10 and has the FP4 kernels."""

import base64
import csv
import hashlib
import io
import json
import os
import sys
import zipfile
from pathlib import Path

import pytest

from sparkwright.audit import Readiness, Requirement, audit, check
from sparkwright.native import host
from sparkwright.native.build_report import BuildReport
from sparkwright.native.compiler import host_compiler
from sparkwright.native.environment import build_environment, locked_environment, requirements_of, site_packages
from sparkwright.native.jobs import default_jobs
from sparkwright.native.layout import layout
from sparkwright.native.units import unit
from sparkwright.native.wheel import PARTS, Externals, Wheel
from sparkwright.paths import CHECKOUT
from sparkwright.pins import load_line
from sparkwright.run import run

pytestmark = [pytest.mark.compiles, pytest.mark.long, pytest.mark.timeout(7200)]

LINE = load_line("0.33.0")
FOLDERS = layout(LINE.name)
FA2 = "vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so"
EXTENSIONS = ("_C_stable_libtorch", "_moe_C_stable_libtorch", "cumem_allocator", "fs_io_C", "spinloop")


@pytest.fixture(scope="module")
def report() -> BuildReport:
    return host.build(LINE, unit("native"), jobs=default_jobs(), wheel=True)


@pytest.fixture(scope="module")
def wheel(report: BuildReport) -> Wheel:
    assert report.wheel is not None
    return report.wheel


@pytest.fixture(scope="module")
def installed(wheel: Wheel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with nothing in it but the wheel; what vLLM depends on is looked up in a locked one."""
    dependencies = locked_environment(requirements_of(LINE, "run"), FOLDERS.log("run-environment"))
    prefix = tmp_path_factory.mktemp("installed") / "env"
    run([sys.executable, "-m", "venv", prefix])
    (site_packages(prefix) / "dependencies.pth").write_text(f"{site_packages(dependencies)}\n")
    run([prefix / "bin" / "python", "-m", "pip", "install", "--no-deps", "--no-index", CHECKOUT / wheel.path])
    return prefix


def test_every_file_of_the_wheel_is_recorded_with_its_hash(wheel: Wheel) -> None:
    with zipfile.ZipFile(CHECKOUT / wheel.path) as package:
        names = {name for name in package.namelist() if not name.endswith("/")}
        record = next(name for name in names if name.endswith(".dist-info/RECORD"))
        recorded = {row[0]: row[1] for row in csv.reader(io.StringIO(package.read(record).decode()))}
        assert names == set(recorded)
        for name in names - {record}:
            digest = base64.urlsafe_b64encode(hashlib.sha256(package.read(name)).digest()).rstrip(b"=").decode()
            assert recorded[name] == f"sha256={digest}", name


def test_all_parts_are_in_it_and_their_origin_is_told(wheel: Wheel) -> None:
    names = set(zipfile.ZipFile(CHECKOUT / wheel.path).namelist())
    for extension in EXTENSIONS:
        assert any(name.startswith(f"vllm/{extension}.") for name in names), extension
    assert {"vllm/vllm-rs", "vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so"} <= names
    assert not any("_vllm_fa3_C" in name for name in names)
    assert [origin.part for origin in wheel.origins] == ["vLLM", *(part.name for part in PARTS)]
    assert all(origin.files for origin in wheel.origins)


def test_every_library_compiled_here_runs_on_gb10(report: BuildReport, tmp_path: Path) -> None:
    assert {row.targets for row in report.libraries} == {"sm_121a"}
    assert report.wheel is not None
    with zipfile.ZipFile(CHECKOUT / report.wheel.path) as package:
        for name in package.namelist():
            if name.startswith(tuple(f"vllm/{extension}." for extension in EXTENSIONS)):
                package.extract(name, tmp_path)
    assert check(audit(tmp_path), Requirement) == []


def test_vllm_imports_as_on_gb10_and_has_its_fp4_kernels(installed: Path, tmp_path: Path) -> None:
    stub = build_environment(LINE, host_compiler(), FOLDERS.log("environment")).cuda_home / "lib/stubs/libcuda.so"
    (tmp_path / "libcuda.so.1").symlink_to(stub)
    variables = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "LD_LIBRARY_PATH": str(tmp_path),
        "VLLM_NO_USAGE_STATS": "1",
    }
    script = Path(__file__).with_name("import_as_gb10.py")
    output = run([installed / "bin" / "python", script], cwd=tmp_path, env=variables)
    answers = json.loads(output.splitlines()[-1])
    assert answers == {
        "version": f"{LINE.name}+gb10",
        "modules": 7,
        "supports_fp4": True,
        "supports_fp8": True,
        "supports_block_fp8": True,
        "supports_fp4_on_hopper": False,
    }


def test_the_report_keeps_where_everything_came_from(wheel: Wheel) -> None:
    stored = json.loads(FOLDERS.report.read_text())["wheel"]
    assert stored["sha256"] == wheel.sha256
    with zipfile.ZipFile(CHECKOUT / wheel.path) as package:
        names = package.namelist()
        assert any(name.endswith(".dist-info/sparkwright/origins.json") for name in names)
        assert any(name.endswith(".dist-info/sparkwright/patches.json") for name in names)


def test_with_its_ptx_compiled_the_whole_wheel_is_for_gb10(wheel: Wheel) -> None:
    """The one library of the official wheel that only has PTX is the attention library."""
    assert FA2 in {failure.path for failure in check(audit(CHECKOUT / wheel.path), [Requirement.SM121])}
    made = host.build(LINE, unit("native"), jobs=default_jobs(), wheel=True, externals=Externals.COMPILED).wheel
    assert made
    facts = audit(CHECKOUT / made.path)
    assert check(facts, [Requirement.SM121]) == []
    assert {one.path for one in facts.containers if one.translation_units()[Readiness.JIT]} == set()
    told = {origin.part: origin.why for origin in made.origins}
    assert "76 modules of PTX in _vllm_fa2_C.abi3.so compiled here for sm_121a" in told["FlashAttention 2 and 4"]
