"""The way out when the digest of the base image is gone from its registry."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.unit.image.conftest import Programs, engine_info
from typer.testing import CliRunner

from sparkwright import paths
from sparkwright.cli import app
from sparkwright.cli import pins as cli
from sparkwright.errors import UnavailableError, UsageError
from sparkwright.pins import base

NEW = "sha256:" + "7" * 64


def manifest(*machines: str) -> str:
    return json.dumps({"digest": NEW, "manifests": [{"platform": {"architecture": machine}} for machine in machines]})


@pytest.fixture
def checkout(tmp_path: Path, programs: Programs, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(paths.PINS, tmp_path / "pins")
    shutil.copyfile(paths.CHECKOUT / "Dockerfile", tmp_path / "Dockerfile")
    monkeypatch.setattr(paths, "PINS", tmp_path / "pins")
    monkeypatch.setattr(cli, "PINS", tmp_path / "pins")
    programs.answer("docker info", out=engine_info())
    return tmp_path


def test_the_digest_and_its_copy_are_made_anew(checkout: Path, programs: Programs) -> None:
    old = base.load_base().digest
    programs.answer("docker buildx imagetools inspect", out=manifest("amd64", "arm64"))
    done = CliRunner().invoke(app, ["pins", "update", "base"])
    assert done.exit_code == 0
    assert base.load_base().digest == NEW
    assert f"@{NEW}\n" in (checkout / "Dockerfile").read_text()
    assert old not in (checkout / "Dockerfile").read_text()
    assert "still has the pinned digest" in CliRunner().invoke(app, ["pins", "update", "base"]).stderr


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"status": 1, "err": "ERROR: ubuntu:24.04: not found"}, "was not able to tell"),
        ({"out": manifest("amd64")}, "not an image for arm64"),
    ],
)
def test_what_cannot_be_pinned_changes_nothing(
    checkout: Path, programs: Programs, answer: dict[str, Any], words: str
) -> None:
    before = (checkout / "pins" / "base.toml").read_bytes()
    programs.answer("docker buildx imagetools inspect", **answer)
    done = CliRunner().invoke(app, ["pins", "update", "base"])
    assert isinstance(done.exception, UnavailableError)
    assert words in str(done.exception)
    assert (checkout / "pins" / "base.toml").read_bytes() == before


def test_only_the_base_has_such_a_command() -> None:
    assert isinstance(CliRunner().invoke(app, ["pins", "update", "torch"]).exception, UsageError)
