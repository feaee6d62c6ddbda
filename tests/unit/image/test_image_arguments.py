"""What the Dockerfile repeats of pins/ and patches/ is compared with them, and can be made anew."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sparkwright import paths
from sparkwright.cli import app
from sparkwright.image import arguments
from sparkwright.image.arguments import differences, line_arguments
from sparkwright.pins import default_line, load_line


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(paths.PINS, tmp_path / "pins")
    shutil.copy2(paths.CHECKOUT / "Dockerfile", tmp_path)
    monkeypatch.setattr(paths, "PINS", tmp_path / "pins")
    return tmp_path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_the_dockerfile_is_compared_with_the_pins() -> None:
    assert list(differences()) == []
    done = CliRunner().invoke(app, ["pins", "check", "--json"])
    assert {"path": "Dockerfile", "agrees": True, "differences": []} in json.loads(done.stdout)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        pytest.param("ARG LINE=", "ARG LINE=9.", "its ARG block is not what pins/", id="the line"),
        pytest.param("vllm/uma-graph-memory", "vllm/no-such-patch", "its ARG block is not", id="a patch"),
        pytest.param("ARG VLLM_COMMIT=", "ARG VLLM_COMMIT=0", "its ARG block is not", id="vLLM's commit"),
        pytest.param(
            "FROM base AS tool\n", f"FROM x@sha256:{'0' * 64} AS tool\n", "names a digest or a release", id="digest"
        ),
        pytest.param("ARG UNITS=", "RUN pip install torch==2.14.0\nARG UNITS=", "names a digest or", id="release"),
    ],
)
def test_a_dockerfile_that_disagrees_is_reported(checkout: Path, old: str, new: str, sentence: str) -> None:
    edit(checkout / "Dockerfile", old, new)
    assert any(sentence in one for one in differences())


def test_the_block_is_made_anew(checkout: Path) -> None:
    edit(checkout / "pins" / "base.toml", "24.04", "26.04")
    assert len(list(differences())) == 1
    assert CliRunner().invoke(app, ["pins", "dockerfile"]).exit_code == 0
    assert "ARG BASE_IMAGE=ubuntu:26.04@" in (checkout / "Dockerfile").read_text(encoding="utf-8")
    assert list(differences()) == []


def test_every_argument_of_the_block_reaches_a_stage() -> None:
    text = (paths.CHECKOUT / "Dockerfile").read_text(encoding="utf-8").replace(arguments.argument_block(), "")
    for name in line_arguments(load_line(default_line())):
        assert f"\nARG {name}\n" in text, name
