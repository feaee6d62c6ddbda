"""A pins file that could build something else than it says is refused, with the place named."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomlkit
from hypothesis import given
from hypothesis import strategies as st

from sparkwright import paths
from sparkwright.errors import ConfigurationError
from sparkwright.pins import (
    Line,
    default_line,
    host_wheel_kind,
    lines,
    load_line,
    load_releases,
    load_toolchain,
)
from sparkwright.pins.load import read

Edit = Callable[[dict[str, Any]], object]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def small_line() -> dict[str, Any]:
    return {
        "name": "1.2.3",
        "arch_list": ["12.1a"],
        "torch": "2.0",
        "requirements": [],
        "native_units": ["nvfp4"],
        "cutlass": {
            "component": "vllm",
            "kind": "sdist",
            "path": "third/cutlass",
            "version": "4",
            "why": "it compiles",
        },
        "component": [
            {
                "name": "vllm",
                "version": "1.2.3",
                "licence": "Apache-2.0",
                "file": [{"kind": "sdist", "name": "vllm-1.2.3.tar.gz", "size": 7, "sha256": "ab" * 32}],
            }
        ],
        "fetch_content": [
            {
                "name": "kernels",
                "repository": "someone/kernels",
                "commit": COMMIT,
                "variable": "KERNELS_SRC_DIR",
                "declared_in": "cmake/kernels.cmake",
            }
        ],
        "expectation": [{"unit": "nvfp4", "objects": "*/gemm.cu.o", "targets": ["sm_121a"], "fp4_mma": 4}],
    }


def write_line(folder: Path, pins: dict[str, Any]) -> Path:
    path = folder / "1.2.3.toml"
    path.write_text(tomlkit.dumps(pins), encoding="utf-8")
    return path


@pytest.fixture
def pins_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "PINS", tmp_path)
    return tmp_path


def test_small_line_is_accepted(pins_folder: Path) -> None:
    write_line(pins_folder, small_line())
    line = load_line("1.2.3")
    file = line.component("vllm").file("sdist")
    assert (file.project, file.version, file.name) == ("vllm", "1.2.3", "vllm-1.2.3.tar.gz")
    assert line.cutlass_file() == file


@pytest.mark.parametrize(
    ("edit", "place"),
    [
        pytest.param(
            lambda pins: pins["component"][0]["file"][0].pop("sha256"), "sha256: Field required", id="no hash"
        ),
        pytest.param(lambda pins: pins["component"][0]["file"][0].update(sha256="ab" * 31), "sha256", id="short hash"),
        pytest.param(
            lambda pins: pins["component"][0]["file"][0].update(sha256="AB" * 32), "sha256", id="upper case hash"
        ),
        pytest.param(lambda pins: pins["component"][0]["file"][0].update(size=0), "size", id="empty file"),
        pytest.param(lambda pins: pins["component"][0]["file"][0].pop("size"), "size", id="no size"),
        pytest.param(
            lambda pins: pins["component"][0]["file"][0].update(name="https://host/vllm-1.2.3.tar.gz"),
            "name",
            id="address",
        ),
        pytest.param(
            lambda pins: pins["component"][0]["file"][0].update(url="https://host/x"), "url", id="address key"
        ),
        pytest.param(
            lambda pins: pins["component"][0]["file"][0].update(name="../vllm-1.2.3.tar.gz"), "name", id="path as name"
        ),
        pytest.param(
            lambda pins: pins["component"][0]["file"][0].update(name="vllm-1.2.4.tar.gz"),
            "not a file of",
            id="other release",
        ),
        pytest.param(
            lambda pins: pins["component"][0]["file"][0].update(name="vlm-1.2.3.tar.gz"),
            "not a file of",
            id="other project",
        ),
        pytest.param(
            lambda pins: pins["component"][0]["file"][0].update(
                kind="wheel-aarch64", name="vllm-1.2.3-cp38-abi3-manylinux_2_28_x86_64.whl"
            ),
            "is not a wheel-aarch64",
            id="other machine",
        ),
        pytest.param(
            lambda pins: pins["component"][0]["file"].append(pins["component"][0]["file"][0]),
            "one kind",
            id="two sdists",
        ),
        pytest.param(lambda pins: pins["component"][0].update(file=[]), "file", id="no files"),
        pytest.param(lambda pins: pins["component"][0].update(licence="Apache 2"), "licence", id="licence is not SPDX"),
        pytest.param(lambda pins: pins["component"].append(pins["component"][0]), "same name", id="component twice"),
        pytest.param(
            lambda pins: pins["component"][0].update(name="vlm", project="vllm"), "no component vllm", id="no vllm"
        ),
        pytest.param(lambda pins: pins["fetch_content"][0].update(commit=COMMIT[:12]), "commit", id="short commit"),
        pytest.param(lambda pins: pins["fetch_content"][0].update(commit="main"), "commit", id="branch as commit"),
        pytest.param(lambda pins: pins["fetch_content"][0].update(tag="v1"), "either", id="commit and tag"),
        pytest.param(lambda pins: pins["fetch_content"][0].pop("commit"), "either", id="no commit"),
        pytest.param(
            lambda pins: pins["fetch_content"][0].update(repository="https://host/a/b"),
            "repository",
            id="repository with host",
        ),
        pytest.param(
            lambda pins: pins["fetch_content"][0].update(declared_in="../CMakeLists.txt"),
            "declared_in",
            id="outside the tree",
        ),
        pytest.param(lambda pins: pins["fetch_content"][0].update(variable="KERNELS"), "variable", id="odd variable"),
        pytest.param(lambda pins: pins.update(archlist=["12.1a"]), "archlist", id="unknown key of the line"),
        pytest.param(
            lambda pins: pins["component"][0].update(licenses="MIT"), "licenses", id="unknown key of a component"
        ),
        pytest.param(lambda pins: pins["cutlass"].update(commit="x"), "cutlass.commit", id="unknown key of cutlass"),
        pytest.param(lambda pins: pins["expectation"][0].update(fp4=4), "fp4", id="unknown key of an expectation"),
        pytest.param(
            lambda pins: pins["cutlass"].update(component="cutlass"), "no component cutlass", id="no such carrier"
        ),
        pytest.param(
            lambda pins: pins["cutlass"].update(kind="wheel-any"), "no wheel-any", id="carrier lacks the file"
        ),
        pytest.param(lambda pins: pins["cutlass"].update(path="/include"), "cutlass.path", id="absolute path"),
        pytest.param(lambda pins: pins["expectation"][0].update(targets=["12.1a"]), "targets", id="target is no sm_"),
        pytest.param(lambda pins: pins["expectation"][0].update(targets=[]), "targets", id="no target"),
        pytest.param(lambda pins: pins.update(arch_list=[]), "arch_list", id="no arch"),
        pytest.param(lambda pins: pins.update(native_units=[]), "says why", id="nothing to build and no reason"),
        pytest.param(lambda pins: pins.update(name="1.2.4"), "1.2.4", id="another name than the file"),
    ],
)
def test_refused(pins_folder: Path, edit: Edit, place: str) -> None:
    pins = small_line()
    edit(pins)
    path = write_line(pins_folder, pins)
    with pytest.raises(ConfigurationError) as caught:
        load_line("1.2.3")
    assert place in str(caught.value)
    assert path.name in str(caught.value)
    assert "at least 1 item" not in str(caught.value) or "[]" in repr(pins)
    assert caught.value.exit_code == 78


@pytest.mark.parametrize("arch", ["12.1", "12.0", "12.0a", "9.0a", "12.1a+PTX", "sm_121a", ""])
def test_arch_that_does_not_suit_gb10_is_refused(pins_folder: Path, arch: str) -> None:
    write_line(pins_folder, small_line() | {"arch_list": ["12.1a", arch]})
    with pytest.raises(ConfigurationError) as caught:
        load_line("1.2.3")
    assert caught.value.what.endswith(f"arch_list holds {arch}")
    assert caught.value.cause
    assert "12.1a, 12.1f, 12.0f" in caught.value.remedy


@pytest.mark.parametrize("arch", ["12.1a", "12.1f", "12.0f"])
def test_arch_that_suits_gb10_is_accepted(pins_folder: Path, arch: str) -> None:
    write_line(pins_folder, small_line() | {"arch_list": [arch]})
    assert load_line("1.2.3").arch_list == (arch,)


@given(
    place=st.integers(0, 39), replacement=st.one_of(st.just(""), st.characters(exclude_characters="0123456789abcdef"))
)
def test_commit_with_any_character_damaged_is_refused(place: int, replacement: str) -> None:
    pins = small_line()
    pins["fetch_content"][0]["commit"] = COMMIT[:place] + replacement + COMMIT[place + 1 :]
    with pytest.raises(ValueError, match="commit"):
        Line.model_validate(pins)


def test_unknown_line_lists_the_lines() -> None:
    with pytest.raises(ConfigurationError, match=r"no release line 0\.1") as caught:
        load_line("0.1")
    assert all(line in caught.value.cause for line in lines())


def test_path_as_line_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no release line"):
        load_line("../pins/0.33.0")


def test_text_that_is_not_toml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text("name = ", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="not TOML"):
        read(path, Line)
    with pytest.raises(ConfigurationError, match="missing"):
        read(tmp_path / "y.toml", Line)


def test_newest_line_is_the_default(pins_folder: Path) -> None:
    for name in ("0.9.0", "0.33.0", "0.4.0", "toolchain"):
        (pins_folder / f"{name}.toml").touch()
    assert lines() == ("0.33.0", "0.9.0", "0.4.0")
    assert default_line() == "0.33.0"


@pytest.mark.usefixtures("pins_folder")
def test_no_lines_at_all() -> None:
    with pytest.raises(ConfigurationError, match="no release line"):
        default_line()


def test_toolchain_without_one_kind_of_host_is_refused(pins_folder: Path) -> None:
    pins = tomllib.loads((paths.CHECKOUT / "pins" / "toolchain.toml").read_text(encoding="utf-8"))
    pins["component"][0]["file"].pop()
    (pins_folder / "toolchain.toml").write_text(tomlkit.dumps(pins), encoding="utf-8")
    with pytest.raises(ConfigurationError, match="one for aarch64"):
        load_toolchain()


def test_release_of_a_line_is_not_repeated_for_the_matrix(pins_folder: Path) -> None:
    write_line(pins_folder, small_line())
    component = small_line()["component"]
    (pins_folder / "releases.toml").write_text(tomlkit.dumps({"component": component}), encoding="utf-8")
    with pytest.raises(ConfigurationError, match="repeats a release"):
        load_releases()
    component[0] |= {"version": "1.2.2", "file": [component[0]["file"][0] | {"name": "vllm-1.2.2.tar.gz"}]}
    (pins_folder / "releases.toml").write_text(tomlkit.dumps({"component": component}), encoding="utf-8")
    assert [release.version for release in load_releases().of("vllm")] == ["1.2.2", "1.2.3"]


@pytest.mark.parametrize("name", lines())
def test_line_of_the_checkout(name: str) -> None:
    line = load_line(name)
    assert line.component("vllm").file("sdist").name == f"vllm-{name}.tar.gz"
    assert line.arch_list == ("12.1a",)


def test_matrix_covers_both_lines() -> None:
    releases = load_releases()
    versions = [release.version for release in releases.of("vllm")]
    assert versions[0] == "0.16.0"
    assert versions[-1] == default_line()
    assert [release.version for release in releases.of("flashinfer-python")] == ["0.6.3", "0.6.4", "0.7.2.post1"]
    assert all(release.file("sdist") for release in releases.components)
    with pytest.raises(ConfigurationError, match="not among"):
        releases.component("vllm", "0.1.0")


@pytest.mark.parametrize(("machine", "kind"), [("x86_64", "wheel-x86_64"), ("aarch64", "wheel-aarch64")])
def test_host_wheel_kind(monkeypatch: pytest.MonkeyPatch, machine: str, kind: str) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert host_wheel_kind() == kind
    assert all(component.file(host_wheel_kind()) for component in load_toolchain().components)


def test_host_without_wheels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(ConfigurationError, match="riscv64"):
        host_wheel_kind()
