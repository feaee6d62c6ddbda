"""`sparkwright doctor` beside the real vLLM: the official wheel of the line, FlashInfer with our patches, no GPU."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from sparkwright.doctor.device_checks import EXPECTED_LINEAR
from sparkwright.doctor.examination import ON_A_GPU
from sparkwright.native.compiler import host_compiler
from sparkwright.native.environment import (
    build_environment,
    locked_environment,
    requirements_of,
    site_packages,
)
from sparkwright.native.source import pristine_tree
from sparkwright.patching.engine import apply_series
from sparkwright.paths import CHECKOUT, cache
from sparkwright.pins import host_wheel_kind, load_line
from sparkwright.run import run
from sparkwright.sources import fetch

pytestmark = [pytest.mark.sources, pytest.mark.compiles, pytest.mark.long, pytest.mark.timeout(3600)]

LINE = load_line("0.33.0")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the doctor of an environment as in the image says, but with upstream's vLLM."""
    scratch, log = tmp_path_factory.mktemp("doctor"), cache() / "envs" / "tests.log"
    build = build_environment(LINE, host_compiler(), log)
    dependencies = locked_environment(requirements_of(LINE, "run"), log)
    prefix = scratch / "env"
    run([sys.executable, "-m", "venv", "--without-pip", prefix])
    site = site_packages(prefix)
    with zipfile.ZipFile(fetch(LINE.component("vllm").file(host_wheel_kind()))) as wheel:
        wheel.extractall(site)
    tree = pristine_tree(LINE.component("flashinfer-python").file("wheel-any"))
    shutil.copytree(tree, site, dirs_exist_ok=True)
    apply_series(site, "flashinfer", LINE.component("flashinfer-python").version)
    # Last what this project needs and vLLM does not.
    own = site_packages(Path(sys.prefix))
    (site / "others.pth").write_text(f"{site_packages(dependencies)}\n{CHECKOUT / 'src'}\n{own}\n")
    environment = {
        "PATH": os.pathsep.join(map(str, (build.cuda_home / "bin", build.prefix / "bin", os.defpath))),
        "CUDA_HOME": str(build.cuda_home),
        "HOME": str(scratch),
        "SPARKWRIGHT_CACHE": str(cache()),
        "VLLM_NO_USAGE_STATS": "1",
    }
    command: list[str | Path] = [prefix / "bin" / "python", "-m", "sparkwright", "doctor", "--json"]
    done = subprocess.run(command, env=environment, cwd=scratch, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return {one["name"]: one for one in answer["checks"]}


def test_its_libraries_load_with_the_stub(report: dict[str, Any]) -> None:
    assert report["libraries"]["verdict"] == "warn"
    assert "with the linker's stub in place of the driver" in report["libraries"]["found"]


def test_it_is_not_our_vllm(report: dict[str, Any]) -> None:
    assert (report["patches"]["verdict"], report["patches"]["found"]) == ("fail", "no receipt for vllm")


def test_flash_attention_is_ptx_only(report: dict[str, Any]) -> None:
    assert report["machine code"]["verdict"] == "warn"
    assert "only as PTX: _vllm_fa2_C.abi3.so" in report["machine code"]["found"]


def test_told_that_it_is_on_a_gb10_vllm_takes_flashinfers_kernel(report: dict[str, Any]) -> None:
    assert report["NVFP4 backend"]["found"] == f"{EXPECTED_LINEAR}, as it would on a GB10"


def test_the_compiler_is_complete_and_no_module_is_ready(report: dict[str, Any]) -> None:
    assert report["compiler"]["verdict"] == "pass"
    assert report["FlashInfer modules"]["found"].startswith("0 ready")


def test_what_needs_a_gpu_is_skipped(report: dict[str, Any]) -> None:
    assert {report[name]["verdict"] for name in ON_A_GPU} == {"skipped"}
