"""The lock parted into the image's layers, and the installation of one of them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sparkwright.errors import ConfigurationError
from sparkwright.image.contents import load_contents
from sparkwright.image.layers import FOLDERS, write_layers
from sparkwright.paths import REQUIREMENTS
from sparkwright.pins import default_line

LOCK = REQUIREMENTS / f"image-{default_line()}.txt"
ENTRY = re.compile(r"^([a-z0-9.-]+==\S+)", re.MULTILINE)
HASH = re.compile(r"sha256:\w{64}")


@pytest.fixture
def layers(tmp_path: Path) -> Path:
    write_layers(LOCK, load_contents(default_line()), tmp_path / "layers")
    return tmp_path / "layers"


def test_every_release_is_in_exactly_one_layer_with_all_its_hashes(layers: Path) -> None:
    texts = [(layers / name / "requirements.txt").read_text(encoding="utf-8") for name in FOLDERS.values()]
    found = [entry for text in texts for entry in ENTRY.findall(text)]
    assert sorted(found) == sorted(ENTRY.findall(LOCK.read_text(encoding="utf-8")))
    assert len(HASH.findall("".join(texts))) == len(HASH.findall(LOCK.read_text(encoding="utf-8")))
    assert "torch==" in texts[1]
    assert all(entry.startswith("nvidia-") for entry in ENTRY.findall(texts[0]))


def test_a_change_of_one_package_changes_one_layer(layers: Path, tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text(re.sub(r"^(openai==\S+)", r"\1.1", LOCK.read_text(encoding="utf-8"), flags=re.MULTILINE))
    write_layers(lock, load_contents(default_line()), tmp_path / "other")
    changed = {
        path.relative_to(layers).as_posix()
        for path in layers.rglob("*.*")
        if path.read_bytes() != (tmp_path / "other" / path.relative_to(layers)).read_bytes()
    }
    assert changed == {"other/requirements.txt"}


def test_what_is_to_lose_files_must_be_there(tmp_path: Path) -> None:
    contents = load_contents(default_line())
    (first, *rest) = contents.removed
    wrong = first.model_copy(update={"project": "no-such-project"})
    with pytest.raises(ConfigurationError) as caught:
        write_layers(LOCK, contents.model_copy(update={"removed": (wrong, *rest)}), tmp_path)
    assert "no-such-project" in caught.value.what


def install(layer: Path, environment: Path) -> subprocess.CompletedProcess[str]:
    command: list[str | Path] = [sys.executable, layer / "install_layer.py", layer, environment]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def empty_layer(layers: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A layer of nothing, and what stands for an environment: one package, and a pip that notes its options."""
    layer = layers / "flashinfer"
    (layer / "requirements.txt").write_text("")
    python = tmp_path / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/asked\n')
    python.chmod(0o755)
    packages = tmp_path / "env" / "lib" / "python3.11" / "site-packages"
    (packages / "big").mkdir(parents=True)
    (packages / "big" / "unused.so").write_text("")
    (packages / "big" / "used.so").write_text("")
    return layer, packages


def test_files_are_taken_out(empty_layer: tuple[Path, Path], tmp_path: Path) -> None:
    layer, packages = empty_layer
    (layer / "slim.json").write_text(json.dumps({"removed": ["big/un*"], "stripped": []}))
    done = install(layer, tmp_path / "env")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (packages / "big").iterdir()] == ["used.so"]
    assert (tmp_path / "asked").read_text().endswith(f"--no-deps --require-hashes -r {layer}/requirements.txt\n")


def test_a_pattern_that_meets_no_file_changes_nothing_and_fails(empty_layer: tuple[Path, Path], tmp_path: Path) -> None:
    layer, packages = empty_layer
    (layer / "slim.json").write_text(json.dumps({"removed": ["big/un*", "small/*"], "stripped": []}))
    done = install(layer, tmp_path / "env")
    assert done.returncode == 78
    assert "no file small/*" in done.stderr
    assert (packages / "big" / "unused.so").exists()
