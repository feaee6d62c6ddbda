"""What an image says of itself, and what a checkout says instead."""

import json
from pathlib import Path

import pytest
from tests.unit.doctor.test_software_checks import ready_modules
from typer.testing import CliRunner

from sparkwright import paths
from sparkwright.cli import app
from sparkwright.doctor import about
from sparkwright.doctor.caches import CACHES
from sparkwright.doctor.installed import Installed
from sparkwright.errors import InputUnreadableError, UnavailableError
from sparkwright.pins import load_line

LINE = load_line("0.33.0")
DATED = {"SOURCE_DATE_EPOCH": "1763726400", "HOME": "/root"}


def test_the_inventory_of_an_image(site: Path, tmp_path: Path) -> None:
    ready_modules(site, ["norm", "fp4_gemm_cutlass_sm120"])
    taken = about.gather(LINE, Installed((site,)), revision="abc123", environment=DATED)
    assert taken.built == "2025-11-21T12:00:00+00:00"
    assert taken.vllm_commit == "4ba787ec9"
    assert taken.versions == {"vllm": "0.33.0+gb10", "torch": "2.14.0+cu130", "flashinfer-python": "0.7.2.post1"}
    assert {(one.component, one.name, one.status) for one in taken.patches} == {
        ("vllm", "a-patch", "applied"),
        ("flashinfer", "a-patch", "applied"),
    }
    assert {one.name for one in taken.jit_modules} == {"norm", "fp4_gemm_cutlass_sm120"}
    late = taken.compiles_at_first_use[0].what
    assert "fused_moe_120" in late
    assert "fp4_gemm_cutlass_sm120" not in late
    about.write(tmp_path / "about.json", taken)
    assert about.read(tmp_path / "about.json") == taken


def test_the_same_build_writes_the_same_bytes(site: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        taken = about.gather(LINE, Installed((site,)), revision="abc", environment=DATED)
        about.write(tmp_path / name, taken)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_without_vllm_there_is_no_image_to_describe() -> None:
    with pytest.raises(UnavailableError, match="vLLM is not installed"):
        about.gather(LINE, Installed(()), revision="", environment=DATED)


def test_an_inventory_that_cannot_be_read_is_no_empty_one(tmp_path: Path) -> None:
    assert about.read(tmp_path / "absent.json") is None
    (tmp_path / "about.json").write_text('{"sparkwright": "0.1.0"}')
    with pytest.raises(InputUnreadableError, match="is not an inventory"):
        about.read(tmp_path / "about.json")


def test_the_command_reads_the_image(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about.write(tmp_path / "about.json", about.gather(LINE, Installed((site,)), revision="abc", environment=DATED))
    monkeypatch.setattr(about, "location", lambda: tmp_path / "about.json")
    shown = CliRunner().invoke(app, ["about"])
    assert shown.exit_code == 0
    for part in ("4ba787ec9", "a-patch", "Compiled at first use", "TRITON_CACHE_DIR", "abc"):
        assert part in shown.stdout
    answer = json.loads(CliRunner().invoke(app, ["about", "--json"]).stdout)
    assert answer["image"]["line"] == "0.33.0"
    assert [one["name"] for one in answer["caches"]] == [cache.name for cache in CACHES]


def test_a_checkout_shows_its_pins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(about, "location", lambda: tmp_path / "about.json")
    assert "A checkout, no image" in CliRunner().invoke(app, ["about"]).stdout
    answer = json.loads(CliRunner().invoke(app, ["about", "--json"]).stdout)
    assert answer["image"] is None
    assert answer["versions"] == {"vllm": "0.33.0", "flashinfer-python": "0.7.2.post1"}


def test_the_place_of_the_inventory() -> None:
    assert about.location() == paths.CHECKOUT / "about.json"


@pytest.mark.parametrize(
    ("cache", "environment", "folder"),
    [
        ("models", {"HOME": "/h"}, "/h/.cache/huggingface"),
        ("models", {"HOME": "/h", "XDG_CACHE_HOME": "/c"}, "/c/huggingface"),
        ("FlashInfer", {"HOME": "/h", "XDG_CACHE_HOME": "/c"}, "/h/.cache/flashinfer"),
        ("FlashInfer", {"HOME": "/h", "FLASHINFER_WORKSPACE_BASE": "/c"}, "/c/.cache/flashinfer"),
        ("Triton", {"HOME": "/h", "TRITON_CACHE_DIR": "/c/t"}, "/c/t"),
        ("CUDA driver", {}, "/.nv/ComputeCache"),
    ],
)
def test_where_each_cache_is(cache: str, environment: dict[str, str], folder: str) -> None:
    (found,) = (one for one in CACHES if one.name == cache)
    assert str(found.folder(environment)) == folder


def test_a_wheel_of_our_own_has_lost_the_commit_and_the_pins_know_it(site: Path) -> None:
    (site / "vllm" / "_version.py").write_text("__commit_id__ = commit_id = None\n")
    taken = about.gather(LINE, Installed((site,)), revision="", environment=DATED)
    assert taken.vllm_commit == LINE.vllm_commit == "4ba787ec9"
