"""The commands: exit codes, JSON on stdout, and the page that lists the codes."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sparkwright.checkpoint.findings import RULES, Rule, Severity, markdown
from sparkwright.cli import main
from sparkwright.paths import DOCS

if TYPE_CHECKING:
    from tests.unit.checkpoint.conftest import Model

Make = Callable[[str], "Model"]


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def sparkwright(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Run the command line in this process: exit code, stdout, stderr."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sparkwright", *(os.fspath(one) for one in arguments)])
        try:
            main()
            code: object = 0
        except SystemExit as end:
            code = end.code or 0
        out, err = capfd.readouterr()
        assert isinstance(code, int)
        return code, out, err

    return run


def test_exit_codes_of_verify(sparkwright: Command, make: Make, tmp_path: Path) -> None:
    root = make("modelopt").write(tmp_path / "model")
    assert sparkwright("checkpoint", "verify", root)[0] == 0
    (root / "tokenizer.json").unlink()
    assert sparkwright("checkpoint", "verify", root)[0] == 1
    (root / "config.json").unlink()
    status, out, _ = sparkwright("checkpoint", "verify", root, "--json")
    assert status == 2
    found = {one["code"]: one for one in json.loads(out)["findings"]}
    assert found["config-unreadable"]["severity"] == "error"
    assert all(one["consequence"] and one["remedy"] for one in found.values())


def test_a_wrong_command_line_is_not_a_verdict(sparkwright: Command, tmp_path: Path) -> None:
    assert sparkwright("checkpoint", "verify")[0] == 64
    assert sparkwright("checkpoint", "verify", tmp_path, "--headers-only", "--against", tmp_path)[0] == 64
    assert sparkwright("checkpoint", "verify", tmp_path / "nowhere")[0] == 66
    assert sparkwright("checkpoint", "repair", tmp_path, "--rebuild-index")[0] == 64


def test_inspect_and_roofline_print_tables_and_json(sparkwright: Command, make: Make, tmp_path: Path) -> None:
    root = make("packed").write(tmp_path / "model")
    status, out, _ = sparkwright("checkpoint", "inspect", root)
    assert status == 0
    assert "compressed-tensors nvfp4-pack-quantized" in out
    found = json.loads(sparkwright("roofline", root, "--json", "--context", "100")[1])
    assert {one["context"] for one in found["tokens_per_second"]} == {100}
    assert "4 Sparks" in sparkwright("roofline", root)[1]


def test_a_context_that_the_model_does_not_have_is_refused(sparkwright: Command, make: Make, tmp_path: Path) -> None:
    root = make("packed").write(tmp_path / "model")
    status, out, err = sparkwright("roofline", root, "--context", "4096", "--context", "4097")
    assert (status, out) == (64, "")
    assert "4,097" in err


def test_a_folder_without_weights_has_no_figures(sparkwright: Command, tmp_path: Path) -> None:
    for command in (("checkpoint", "inspect"), ("roofline",)):
        status, out, err = sparkwright(*command, tmp_path)
        assert (status, out) == (66, "")
        assert "no tensor" in err


def test_figures_of_what_is_left_are_said_to_be(sparkwright: Command, make: Make, tmp_path: Path) -> None:
    root = make("packed").write(tmp_path / "model")
    (root / "model-00002-of-00002.safetensors").unlink()
    for command in (("checkpoint", "inspect"), ("roofline",)):
        status, _, err = sparkwright(*command, root, "--json")
        assert status == 0
        assert "missing" in err


def test_repair_says_what_it_wrote(sparkwright: Command, make: Make, tmp_path: Path) -> None:
    root = make("modelopt").write(tmp_path / "model")
    (root / "model.safetensors.index.json").unlink()
    status, out, _ = sparkwright("checkpoint", "repair", root, "--in-place", "--rebuild-index", "--json")
    assert (status, json.loads(out)["written"]) == (0, ["model.safetensors.index.json"])
    assert "nothing to do" in sparkwright("checkpoint", "repair", root, "--in-place", "--rebuild-index")[1]


def test_names_that_look_like_markup_are_printed_as_they_are(sparkwright: Command, make: Make, tmp_path: Path) -> None:
    model = make("modelopt")
    model.tensors["model.model.[/bold]"] = model.tensors["model.norm.weight"]
    status, out, err = sparkwright("checkpoint", "verify", model.write(tmp_path / "model"))
    assert status == 2, err
    assert "[/bold]" in out


def test_the_page_lists_every_code() -> None:
    page = (DOCS / "checkpoints.md").read_text(encoding="utf-8")
    assert markdown() in page, "put the output of `sparkwright checkpoint codes --markdown` into docs/checkpoints.md"


@pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))
def test_every_rule_says_what_to_do(rule: Rule) -> None:
    for text in (rule.title, rule.consequence, rule.remedy):
        assert text
        assert "|" not in text
    assert rule.severity in Severity
