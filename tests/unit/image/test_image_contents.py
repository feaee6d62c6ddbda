"""What the image is to hold: its lock, its size, its licences, computed without Docker and without network."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tests.unit.image.conftest import IMAGE, LINE, REVISION, TAG
from typer.testing import CliRunner

from sparkwright import paths
from sparkwright.cli import app
from sparkwright.errors import BuildFailedError, ConfigurationError
from sparkwright.image import licences
from sparkwright.image.contents import Contents, Selection, load_contents
from sparkwright.image.installed import Installed
from sparkwright.image.inventory import Entry, load_inventory, lock_name
from sparkwright.image.licences import notice, notice_differences
from sparkwright.image.locked import read_lock
from sparkwright.image.record import ImageRecord
from sparkwright.image.reproduce import differing
from sparkwright.image.sbom import bill_of_materials
from sparkwright.image.size import layer_of, report_of, size_report
from sparkwright.image.target import SPARK, Target
from sparkwright.image.wheels import licence_of
from sparkwright.pins import load_line

GOAL, GOAL_ZSTD = 7_900_000_000, 3_800_000_000
LEFT_OUT = {
    "nccl-extensions",
    "nvidia-cutlass-dsl-libs-cu12",
    "pynvvideocodec",
    "tilelang",
    "tokenspeed-mla",
    "torchaudio",
    "torchcodec",
}


def locked(name: str, target: Target = SPARK) -> dict[str, str]:
    return {one.project: one.version for one in read_lock(paths.REQUIREMENTS / name, target)}


def test_the_image_has_the_releases_that_are_tested_without_it() -> None:
    image, run = locked(lock_name(LINE)), locked(f"run-{LINE}.txt")
    # tokenspeed-triton and z3-solver come in by what is left out.
    assert set(run) - set(image) == LEFT_OUT | {"tokenspeed-triton", "z3-solver"}
    assert {name: version for name, version in image.items() if name in run} == {
        name: version for name, version in run.items() if name in image
    }


def test_the_image_has_what_it_is_for() -> None:
    image = locked(lock_name(LINE))
    assert {"torch", "triton", "flashinfer-python", "nvidia-cutlass", "ninja", "cmake", "pybind11"} <= set(image)
    assert {"ray", "fastsafetensors", "instanttensor", "nvidia-cuda-nvcc", "nvidia-nvvm"} <= set(image)
    assert image["torch"] == load_line(LINE).torch
    assert "vllm" not in image, "ours is made here"


def test_the_image_quantizes_with_the_releases_that_the_tests_quantize_with() -> None:
    image, tested = locked(lock_name(LINE)), locked("quantize.txt")
    assert {"nvidia-modelopt", "transformers", "tokenizers", "accelerate", "ray", "pyarrow"} <= set(tested)
    assert {name: image.get(name) for name in tested} == tested


def test_the_image_has_what_the_package_needs() -> None:
    project = tomllib.loads((paths.CHECKOUT / "pyproject.toml").read_text())["project"]
    for target in (SPARK, Target(machine="x86_64", python=(3, 13), glibc=(2, 41))):
        image = locked(lock_name(LINE), target)
        for wanted in map(Requirement, project["dependencies"]):
            assert wanted.specifier.contains(image[canonicalize_name(wanted.name)]), wanted


def test_an_option_adds_to_the_image_and_changes_nothing() -> None:
    image, more = locked(lock_name(LINE)), locked(lock_name(LINE, "b12x"))
    assert set(more) - set(image) == {"b12x"}
    assert {name: version for name, version in more.items() if name != "b12x"} == image


def test_a_lock_without_hashes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("# Made\none==1 \\\n    --hash=sha256:" + "0" * 64 + "\ntwo==2\n")
    with pytest.raises(ConfigurationError, match="two==2"):
        read_lock(tmp_path / "x.txt", SPARK)


def test_the_stored_inventory_is_that_of_the_lock() -> None:
    inventory = load_inventory(LINE)
    assert inventory.differences() == ()
    lock = read_lock(paths.REQUIREMENTS / lock_name(LINE), SPARK)
    hashes: dict[str, frozenset[str]] = {one.project: one.sha256 for one in lock}
    official = load_line(LINE).component("vllm").file("wheel-aarch64")
    for entry in inventory.entries:
        assert entry.sha256 in hashes.get(entry.project, frozenset({official.sha256})), entry.project
        assert entry.wheel.endswith(("-any.whl", "aarch64.whl"))
        assert 0 <= entry.removed < entry.size
    assert {entry.project for entry in inventory.entries} == {*hashes, "vllm"}
    stale = replace(inventory, made_from=inventory.made_from | {lock_name(LINE): "0" * 64})
    assert "another image" in stale.differences()[0]


def test_no_two_packages_fight_over_a_file_that_matters() -> None:
    # A build script that both left in by mistake.
    assert set(load_inventory(LINE).contested) == {"build_backend.py"}


def test_the_image_is_as_small_as_promised() -> None:
    report = size_report(LINE)
    assert report.size <= GOAL
    assert report.zstd <= GOAL_ZSTD
    report.require_recorded()
    # What is written down by hand says what was computed, to a hundredth.
    assert sum(layer.size for layer in report.layers) == pytest.approx(report.recorded, rel=0.01)
    assert report.zstd == pytest.approx(report.recorded_zstd, rel=0.01)


def test_a_vllm_bump_moves_half_a_gigabyte() -> None:
    layers = {layer.name: layer.zstd for layer in size_report(LINE).layers}
    assert layers["vLLM and FlashInfer"] < 500_000_000
    assert list(layers)[-1] == "vLLM and FlashInfer", "what changes most comes last"
    assert layer_of("b12x") == layer_of("flashinfer-python"), "its b12x/__init__.py must come after FlashInfer's"


def grown(entry: Entry, by: int) -> Entry:
    return replace(entry, size=entry.size + by)


def test_growth_of_more_than_a_tenth_is_refused() -> None:
    inventory, contents = load_inventory(LINE), load_contents(LINE)
    first, *others = inventory.entries
    report_of(replace(inventory, entries=(grown(first, 600_000_000), *others)), contents).require_recorded()
    with pytest.raises(BuildFailedError, match=r"GB unpacked; recorded are 7\.\d+ GB"):
        report_of(replace(inventory, entries=(grown(first, 900_000_000), *others)), contents).require_recorded()
    with pytest.raises(BuildFailedError, match="GB compressed"):
        report_of(
            replace(inventory, entries=(replace(first, packed=first.packed + 500_000_000), *others)), contents
        ).require_recorded()


def test_the_size_is_printed_without_docker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    done = CliRunner().invoke(app, ["image", "size", "--json"])
    assert done.exit_code == 0
    printed = json.loads(done.stdout)
    assert printed["size"] == sum(layer["size"] for layer in printed["layers"])


def test_a_pattern_without_files_is_refused() -> None:
    selection = Selection(project="demo", files=("demo/*.so",), why="because")
    assert selection.pick({"demo/a.so", "demo/sub/b.so", "demo/c.py"}) == {"demo/a.so", "demo/sub/b.so"}
    with pytest.raises(ConfigurationError, match=r"demo has no file demo/\*\.so"):
        selection.pick({"demo/c.py"})


def test_what_is_left_out_is_in_the_lock() -> None:
    contents: Contents = load_contents(LINE)
    assert {one.project for one in (*contents.removed, *contents.stripped)} <= set(locked(lock_name(LINE)))


@pytest.mark.parametrize(
    ("metadata", "licence"),
    [
        ("License-Expression: MIT OR Apache-2.0\nLicense: x\n\nbody", "MIT OR Apache-2.0"),
        ("License: BSD\n", "BSD"),
        ("License: a text\n  of several lines\nClassifier: License :: OSI Approved :: MIT License\n", "MIT License"),
        ("Name: demo\n", "not stated"),
    ],
)
def test_the_licence_is_what_a_package_states(metadata: str, licence: str) -> None:
    assert licence_of(metadata) == licence


def test_notice_lists_the_licences(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert notice_differences() == ()
    text = licences.NOTICE.read_text()
    assert notice(text, LINE) == text
    (tmp_path / "NOTICE").write_text(text.replace("  torch 2.14.0:", "  torch 2.13.0:"))
    monkeypatch.setattr(licences, "NOTICE", tmp_path / "NOTICE")
    assert "is not that of the locked packages" in notice_differences()[0]


def test_the_bill_of_materials_is_the_same_for_the_same_image() -> None:
    record = ImageRecord.model_construct(line=LINE, tag=TAG, image_id=IMAGE, created=REVISION.created)
    python = [Installed("torch", "2.14.0", "License-Expression: BSD-3-Clause\n", 1), Installed("Two_Words", "1", "", 2)]
    bill = bill_of_materials(record, python, [["libc6", "2.39", "arm64"]], load_inventory(LINE))
    assert bill == bill_of_materials(record, python[::-1], [["libc6", "2.39", "arm64"]], load_inventory(LINE))
    read = json.loads(bill)
    assert (read["bomFormat"], read["specVersion"]) == ("CycloneDX", "1.6")
    assert read["metadata"]["component"]["version"] == TAG.rpartition(":")[2]
    torch = next(one for one in read["components"] if one["name"] == "torch")
    assert torch["licenses"] == [{"expression": "BSD-3-Clause"}] or torch["licenses"][0]["license"]["id"]
    assert torch["hashes"][0]["content"] == next(e.sha256 for e in load_inventory(LINE).entries if e.project == "torch")
    assert {one["purl"] for one in read["components"]} >= {
        "pkg:pypi/two-words@1",
        "pkg:deb/ubuntu/libc6@2.39?arch=arm64",
    }


def test_what_differs_between_two_builds_is_named() -> None:
    one = {"a": (1, 5, "x"), "b": (1, 5, "y")}
    assert differing(one, one | {"a": (1, 6, "x")}) == "the times of a"
    assert differing(one, one | {"a": (1, 6, "z"), "c": (1, 5, "x")}) == "a, c"
    assert differing(one, {"a": (1, 6, "x"), "b": (1, 5, "z")}) == "b; the times of 1 more"
    assert differing(one, dict(one)) == "the order or the attributes of its files"
    assert "and 3 more" in differing({}, {str(number): (1, 1, "x") for number in range(15)})
