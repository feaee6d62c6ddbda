"""Every copy of a pin is compared, and making a lock takes its exact releases from the pins."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sparkwright import paths
from sparkwright.cli.pins import app
from sparkwright.errors import CommandFailedError, ConfigurationError, UnavailableError
from sparkwright.pins import default_line, load_line, load_toolchain
from sparkwright.pins.copies import copies
from sparkwright.pins.lock import lock, pinned_releases

LOCK = f"build-{default_line()}.txt"
COMPILER = load_toolchain().component("nvidia-cuda-nvcc")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of pins/ and requirements/ that a test may spoil."""
    for folder in (paths.PINS, paths.REQUIREMENTS):
        shutil.copytree(folder, tmp_path / folder.name)
    shutil.copy2(paths.CHECKOUT / "Dockerfile", tmp_path)
    monkeypatch.setattr(paths, "PINS", tmp_path / "pins")
    monkeypatch.setattr(paths, "REQUIREMENTS", tmp_path / "requirements")
    monkeypatch.setattr("sparkwright.cli.pins.CHECKOUT", tmp_path)
    return tmp_path


def differences() -> dict[str, list[str]]:
    return {copy.path.name: found for copy in copies() if (found := list(copy.differences()))}


def test_the_checkout_agrees() -> None:
    assert differences() == {}
    assert {copy.path.name for copy in copies()} >= {"pins", "dev.txt", LOCK}


def test_check_prints_what_it_compared() -> None:
    done = CliRunner().invoke(app, ["check", "--json"])
    assert done.exit_code == 0
    assert {"path": f"requirements/{LOCK}", "agrees": True, "differences": []} in json.loads(done.stdout)


def replaced(old: str, new: str) -> Callable[[str], str]:
    def edit(text: str) -> str:
        assert old in text
        return text.replace(old, new)

    return edit


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        pytest.param(
            replaced(f"nvidia-cuda-nvcc=={COMPILER.version}", "nvidia-cuda-nvcc==13.0.48"),
            f"has nvidia-cuda-nvcc 13.0.48, pinned is {COMPILER.version}",
            id="compiler of another release",
        ),
        pytest.param(
            replaced(f"torch=={load_line(default_line()).torch} ", "torch==2.13.0 "),
            "has torch 2.13.0, pinned is",
            id="torch of another release",
        ),
        pytest.param(
            replaced(COMPILER.file("wheel-aarch64").sha256, "0" * 64),
            f"lacks the pinned sha256 of {COMPILER.file('wheel-aarch64').name}",
            id="another hash",
        ),
        pytest.param(replaced("\nninja==", "\nninjas=="), "lacks ninja, which build-", id="requirement missing"),
        pytest.param(replaced("\ncmake==3.", "\ncmake==4."), "asks for <4,>=3.26.1", id="requirement out of range"),
        pytest.param(
            lambda text: "--index-url https://mirror.invalid/simple\n" + text, "names a package index", id="index named"
        ),
        pytest.param(lambda text: text.partition("\n")[2], "does not begin with the line", id="no header"),
    ],
)
def test_spoilt_lock_is_reported(checkout: Path, edit: Callable[[str], str], sentence: str) -> None:
    path = checkout / "requirements" / LOCK
    path.write_text(edit(path.read_text(encoding="utf-8")), encoding="utf-8")
    assert any(sentence in one for one in differences()[LOCK])


def test_missing_lock_is_reported(checkout: Path) -> None:
    (checkout / "requirements" / "dev.txt").unlink()
    assert differences() == {"dev.txt": ["does not exist; run `sparkwright pins lock`"]}


def test_lock_that_a_line_names_but_nobody_can_make(checkout: Path) -> None:
    (checkout / "requirements" / LOCK).with_suffix(".in").unlink()
    assert list(differences()) == ["pins"]


def test_file_pinned_twice_differently(checkout: Path) -> None:
    path = checkout / "pins" / "0.16.0.toml"
    carrier = load_line("0.16.0").cutlass_file()
    path.write_text(path.read_text(encoding="utf-8").replace(carrier.sha256, "0" * 64), encoding="utf-8")
    assert differences() == {"pins": [f"{carrier.name} is pinned twice with different size or sha256"]}


def test_check_ends_with_78_and_names_file_and_difference(checkout: Path) -> None:
    path = checkout / "requirements" / LOCK
    path.write_text(path.read_text(encoding="utf-8").replace("torch==2.", "torch==1."), encoding="utf-8")
    done = CliRunner().invoke(app, ["check"])
    assert isinstance(done.exception, ConfigurationError)
    assert done.exception.exit_code == 78
    assert f"requirements/{LOCK} has torch 1." in done.exception.what
    assert LOCK in done.stdout


def test_show() -> None:
    done = CliRunner().invoke(app, ["show", "--json"])
    shown = json.loads(done.stdout)
    assert shown["line"]["name"] == default_line()
    assert shown["line"]["components"][0]["files"][0]["sha256"]
    assert len(shown["toolchain"]["components"]) == len(load_toolchain().components)
    table = CliRunner().invoke(app, ["show", "--line", "0.16.0"]).stdout
    assert "cutlass-headers" in table
    assert "v4.2.1" in table
    assert isinstance(CliRunner().invoke(app, ["show", "--line", "1"]).exception, ConfigurationError)


def test_a_lent_file_does_not_decide_an_environment() -> None:
    assert pinned_releases("dev.txt") == {}
    assert (
        pinned_releases(LOCK)["flashinfer-python"] == load_line(default_line()).component("flashinfer-python").version
    )


FAKE_UV = """#!/bin/sh
while [ $# -gt 0 ]; do
    case $1 in
        --output-file) output=$2 ;;
        --constraint) constraint=$2 ;;
        --upgrade) upgraded=yes ;;
    esac
    shift
done
test -s "$output" && before=kept
{ cat "$constraint"; echo "# $before $upgraded"; } >"$output.new" && mv "$output.new" "$output"
"""


@pytest.fixture
def fake_uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A uv that writes its constraints as the result; the only one to be found."""
    program = tmp_path / "bin" / "uv"
    program.parent.mkdir()
    program.write_text(FAKE_UV, encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setattr("sys.executable", str(tmp_path / "elsewhere" / "python"))
    return program


@pytest.mark.usefixtures("fake_uv")
def test_lock_is_constrained_by_the_pins(checkout: Path) -> None:
    text = lock(LOCK).read_text(encoding="utf-8")
    assert text.startswith(f"# Made from build-{default_line()}.in and pins/ by `sparkwright pins lock`")
    assert f"\nnvidia-cuda-nvcc=={COMPILER.version}\n" in text
    assert f"\ntorch=={load_line(default_line()).torch}\n" in text
    assert text.endswith("# kept \n")
    assert lock(LOCK, upgrade=True).read_text(encoding="utf-8").endswith("# kept yes\n")
    done = CliRunner().invoke(app, ["lock", "dev.txt"])
    assert done.exit_code == 0
    assert "nvidia" not in (checkout / "requirements" / "dev.txt").read_text(encoding="utf-8")


def test_lock_that_fails_leaves_the_old_one(checkout: Path, fake_uv: Path) -> None:
    before = (checkout / "requirements" / LOCK).read_bytes()
    fake_uv.write_text("#!/bin/sh\necho contradiction >&2\nexit 1\n", encoding="utf-8")
    with pytest.raises(CommandFailedError, match="contradiction"):
        lock(LOCK)
    assert (checkout / "requirements" / LOCK).read_bytes() == before


@pytest.mark.usefixtures("checkout")
def test_lock_without_uv(fake_uv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_uv.unlink()
    monkeypatch.setenv("PATH", str(fake_uv.parent))
    with pytest.raises(UnavailableError, match="uv is not installed"):
        lock(LOCK)


@pytest.mark.usefixtures("checkout")
def test_lock_of_an_unknown_name() -> None:
    with pytest.raises(ConfigurationError, match=r"no requirements/other\.in"):
        lock("other.txt")
