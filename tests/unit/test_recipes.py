"""Recipes: the shipped ones against the parsers' tables, the schema, the command line, and foreign files."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from sparkwright.cli import app
from sparkwright.errors import ConfigurationError
from sparkwright.paths import RECIPES
from sparkwright.pins import lines
from sparkwright.recipes.foreign import ForeignRecipe, fill, map_recipe
from sparkwright.recipes.load import find, load, names, read, resolve
from sparkwright.recipes.model import Recipe, option_words

runner = CliRunner()

MINIMAL: dict[str, Any] = {
    "name": "mine",
    "description": "d",
    "model": "owner/name",
    "memory": {"weights_gb": 1, "source": "s"},
    "backend": {"why": "w", "source": "s"},
    "flags": {},
    "lines": {"0.33.0": {}},
    "sources": ["s"],
}

# Every field of version 1, with JSON in the command; written for this test.
FOREIGN = r"""
recipe_version: "1"
name: Some model
description: an example
model: owner/model
container: a-local-image
build_args: [--something]
mods: []
solo_only: true
defaults: {port: 8000, host: 0.0.0.0, gpu_memory_utilization: 0.7, tensor_parallel: 1}
env: {VLLM_MARLIN_USE_ATOMIC_ADD: 1}
command: |
  OMP_NUM_THREADS=4 vllm serve owner/model \
      --host {host} --port {port} \
      --gpu-memory-utilization {gpu_memory_utilization} -tp {tensor_parallel} \
      --speculative-config '{{"method": "mtp", "num_speculative_tokens": 2}}' \
      --enable-prefix-caching
"""


def shipped() -> list[Recipe]:
    return [load(name) for name in names()]


@pytest.mark.parametrize("name", names())
def test_every_shipped_recipe_is_accepted_by_the_parsers_of_its_lines(name: str) -> None:
    result = runner.invoke(app, ["recipe", "check", str(find(name)), "--json"])
    assert result.exit_code == 0, result.stdout
    assert json.loads(result.stdout)[0]["problems"] == []


def test_every_shipped_recipe_is_named_as_its_file_and_for_a_line_we_pin() -> None:
    for recipe in shipped():
        assert (RECIPES / f"{recipe.name}.yaml").is_file(), recipe.name
        assert set(recipe.lines) <= set(lines()), recipe.name


def test_speeds_are_never_ours() -> None:
    for recipe in shipped():
        for text in (*recipe.notes, recipe.description, recipe.backend.why):
            assert "tok/s" not in text or recipe.backend.source or recipe.figures, recipe.name
        assert all(figure.source for figure in recipe.figures), recipe.name


@pytest.mark.parametrize("name", names())
def test_show_prints_the_command_for_each_line(name: str) -> None:
    for line in load(name).lines:
        result = runner.invoke(app, ["recipe", "show", name, "--line", line, "--json"], catch_exceptions=False)
        shown = json.loads(result.stdout)
        assert shown["argv"][:3] == ["vllm", "serve", load(name).model]
        assert shown["notices"] == []
        assert runner.invoke(app, ["recipe", "show", name, "--line", line], catch_exceptions=False).exit_code == 0


def test_list_names_them_all() -> None:
    listed = json.loads(runner.invoke(app, ["recipe", "list", "--json"], catch_exceptions=False).stdout)
    assert [entry["name"] for entry in listed] == list(names())
    assert runner.invoke(app, ["recipe", "list"], catch_exceptions=False).exit_code == 0


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"speed": 9}, "speed"),
        ({"flags": {"--port": 1}}, "flags"),
        ({"env": {"lower case": "1"}}, "env"),
        ({"nodes": 1}, "nodes"),
        ({"lines": {}}, "lines"),
        ({"lines": {"latest": {}}}, "lines"),
        ({"sources": []}, "sources"),
        ({"memory": {"weights_gb": 0, "source": "s"}}, "weights_gb"),
        ({"backend": {"moe": "marlin", "why": "w", "source": "s"}, "flags": {"moe-backend": "cutlass"}}, "moe-backend"),
        ({"figures": [{"claim": "100 tok/s"}]}, "source"),
    ],
)
def test_a_wrong_recipe_is_refused_by_name(tmp_path: Path, change: dict[str, object], where: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, **change}), encoding="utf-8")
    with pytest.raises(ConfigurationError) as caught:
        read(path)
    assert where in caught.value.what


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ({"swap-space": 4}, "no option --swap-space"),
        ({"moe-backend": "fast"}, "is not a choice"),
        ({"enforce-eager": "yes"}, "'yes' belongs to no option"),
    ],
)
def test_check_finds_what_the_parser_would_refuse(tmp_path: Path, flags: dict[str, object], problem: str) -> None:
    backend = {"moe": flags.get("moe-backend", "auto"), "why": "w", "source": "s"}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, "flags": flags, "backend": backend}), encoding="utf-8")
    result = runner.invoke(app, ["recipe", "check", str(path), "--json"])
    assert isinstance(result.exception, ConfigurationError)
    assert problem in json.loads(result.stdout)[0]["problems"][0][1]


def test_check_finds_a_variable_that_vllm_does_not_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, "env": {"VLLM_NVFP4_GEMM_BACKEND": "marlin"}}), encoding="utf-8")
    result = runner.invoke(app, ["recipe", "check", str(path)])
    assert isinstance(result.exception, ConfigurationError)
    assert "vLLM 0.33.0 does not read VLLM_NVFP4_GEMM_BACKEND" in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (True, ("--x",)),
        (False, ("--no-x",)),
        (0.5, ("--x", "0.5")),
        (["a", "b"], ("--x", "a", "b")),
        ({"a": {"b": [1, True, None]}}, ("--x", '{"a":{"b":[1,true,null]}}')),
    ],
)
def test_option_words(value: Any, words: tuple[str, ...]) -> None:  # noqa: ANN401  every YAML value
    assert option_words("x", value) == words


def test_a_foreign_recipe_maps() -> None:
    mapped = map_recipe(ForeignRecipe.model_validate(yaml.safe_load(FOREIGN)))
    assert mapped.unmapped == ()
    assert mapped.ignored == (
        "container: this image is the container",
        "build_args: nothing is built for a recipe",
    )
    assert mapped.model == "owner/model"
    assert mapped.env == {"VLLM_MARLIN_USE_ATOMIC_ADD": "1", "OMP_NUM_THREADS": "4"}
    assert mapped.words == (
        *("--host", "0.0.0.0", "--port", "8000", "--gpu-memory-utilization", "0.7", "-tp", "1"),
        *("--speculative-config", '{"method": "mtp", "num_speculative_tokens": 2}', "--enable-prefix-caching"),
    )


def test_a_foreign_recipe_serves(tmp_path: Path) -> None:
    path = tmp_path / "foreign.yaml"
    path.write_text(FOREIGN, encoding="utf-8")
    assert runner.invoke(app, ["recipe", "check", str(path)], catch_exceptions=False).exit_code == 0
    shown = json.loads(runner.invoke(app, ["recipe", "show", str(path), "--json"], catch_exceptions=False).stdout)
    assert shown["argv"][3:7] == ["--port", "8000", "--host", "0.0.0.0"]
    assert shown["notices"] == [
        "the recipe Some model: container: this image is the container",
        "the recipe Some model: build_args: nothing is built for a recipe",
    ]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("mods: []", "mods: [mods/fix-it]", "mods: mods/fix-it changes files"),
        ("--port {port}", "--port {prt}", "command: {prt} has no value under defaults"),
        ("OMP_NUM_THREADS=4 vllm", "sleep 1 && vllm", "it is a shell program"),
        ("vllm serve owner/model", "python -m server owner/model", "does not begin with `vllm serve MODEL`"),
        ("'{{", "{{", "command: No closing quotation"),
        ("solo_only: true", "cluster_only: true", "cluster_only"),
    ],
)
def test_what_does_not_map_is_told(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    assert old in FOREIGN
    path = tmp_path / "foreign.yaml"
    path.write_text(FOREIGN.replace(old, new), encoding="utf-8")
    result = runner.invoke(app, ["recipe", "check", str(path), "--json"])
    assert isinstance(result.exception, ConfigurationError)
    assert any(sentence in problem for _, problem in json.loads(result.stdout)[0]["problems"])
    with pytest.raises(ConfigurationError) as caught:
        resolve(str(path), "0.33.0")
    assert sentence in caught.value.what


def test_an_unknown_foreign_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "foreign.yaml"
    path.write_text(f"{FOREIGN}\nrunner: x\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="runner"):
        read(path)


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), st.integers()), st.text(alphabet="ab {}\"':"))
def test_filling_leaves_everything_else_alone(values: dict[str, int], text: str) -> None:
    template = text.replace("{", "{{").replace("}", "}}") + "".join(f"<{{{name}}}>" for name in values)
    filled, missing = fill(template, values)
    assert filled == text + "".join(f"<{value}>" for value in values.values())
    assert missing == []
