"""The command line of patches: exit codes and streams."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sparkwright.cli import app
from sparkwright.errors import InputUnreadableError, PatchDriftError, UsageError
from sparkwright.patching.series import COMPONENTS, load_series
from sparkwright.paths import CHECKOUT

runner = CliRunner()


def test_list_names_every_patch_with_its_facts() -> None:
    result = runner.invoke(app, ["patch", "list", "--json"], catch_exceptions=False)
    listed = {(entry["component"], entry["name"]): entry for entry in json.loads(result.stdout)}
    assert set(listed) == {(component, named.name) for component in COMPONENTS for named in load_series(component)}
    for entry in listed.values():
        assert all(entry[key] for key in ("title", "reference", "remove_when", "guarded_by", "explanation")), entry


def test_every_patch_is_guarded_by_a_test_that_exists() -> None:
    for component in COMPONENTS:
        for named in load_series(component):
            guard = named.patch.guarded_by.partition("::")
            assert (CHECKOUT / guard[0]).is_file(), f"{named.name}: {guard[0]} does not exist"
            assert guard[2].partition("[")[0] in (CHECKOUT / guard[0]).read_text(encoding="utf-8"), named.name


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--component", "nothing", "--version", "1", "--tree", "."], UsageError),
        (["--component", "vllm", "--version", "0.33.0", "--tree", "/nowhere"], InputUnreadableError),
        (["--component", "vllm", "--version", "0.33.0", "--tree", ".", "--only", "no-such-patch"], UsageError),
    ],
)
def test_wrong_arguments_are_explained(arguments: list[str], error: type[Exception]) -> None:
    result = runner.invoke(app, ["patch", "status", *arguments])
    assert isinstance(result.exception, error)


def test_status_of_an_unknown_source_is_drift(tmp_path: Path) -> None:
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm/__init__.py").touch()
    result = runner.invoke(
        app, ["patch", "status", "--component", "vllm", "--version", "0.33.0", "--tree", str(tmp_path), "--json"]
    )
    assert isinstance(result.exception, PatchDriftError)
    assert "drifted" in {entry["status"] for entry in json.loads(result.stdout)}
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["__init__.py", "vllm"]
