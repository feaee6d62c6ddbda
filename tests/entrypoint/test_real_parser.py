"""The tables of options and variables against the releases themselves, and vLLM's own parser against what we write."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.entrypoint.dump_variables import known_variables, spans
from tests.serve.conftest import serving

from sparkwright.entrypoint.__main__ import plan
from sparkwright.entrypoint.plan import GIB, Host
from sparkwright.recipes import names
from sparkwright.recipes.load import load
from sparkwright.run import run

__all__ = ["serving"]

DATA = Path(__file__).parents[2] / "src/sparkwright/entrypoint/data"
DUMP = Path(__file__).parent / "dump_parser.py"


@pytest.mark.long
def test_variables_of_every_release(vllm_tree: Callable[[str], Path]) -> None:
    table = json.loads((DATA / "variables.json").read_text(encoding="utf-8"))
    found = {
        release: known_variables((vllm_tree(release) / "vllm/envs.py").read_text(encoding="utf-8"))
        for release in table["releases"]
    }
    assert spans(found) == table


@pytest.mark.sources
@pytest.mark.parametrize("release", ["0.33.0", "0.16.0"])
def test_variables_of_the_pinned_lines(release: str, vllm_tree: Callable[[str], Path]) -> None:
    from sparkwright.entrypoint.release import parse_release, variables

    source = (vllm_tree(release) / "vllm/envs.py").read_text(encoding="utf-8")
    assert set(variables().names(parse_release(release))) == known_variables(source)


def command_lines(release: str) -> dict[str, list[str]]:
    """Every recipe of the release, and command lines that use every variable and old setting."""
    base = {"SPARKWRIGHT_VLLM_VERSION": release, "HOME": "/nowhere", "MAX_JOBS": "1"}
    old = {"VLLM_NVFP4_GEMM_BACKEND": "flashinfer-cutlass", "VLLM_TEST_FORCE_FP8_MARLIN": "1"}
    extra = '--kv-cache-dtype fp8 --speculative-config \'{"method":"mtp","num_speculative_tokens":2}\''
    nodes = {"NNODES": "2", "NODE_RANK": "1", "HEAD_IP": "127.0.0.1", "MASTER_PORT": "29555"}
    cases = {name: {"RECIPE": name} for name in names() if release in load(name).lines}
    cases["variables"] = {"MODEL": "a/b", "MAX_MODEL_LEN": "32k", "VLLM_EXTRA_ARGS": extra, **old}
    cases["nodes"] = {"MODEL": "a/b", **nodes}
    cases["ray"] = {"MODEL": "a/b", "TENSOR_PARALLEL_SIZE": "2", "HEAD_IP": "127.0.0.1"}
    host = Host(memory_total=2**40, memory_available=2**40 - GIB, cores=4)
    return {name: list(plan(["serve"], {**base, **case}, host).argv[2:]) for name, case in cases.items()}


@dataclass(frozen=True, kw_only=True)
class Parser:
    """What a release's own parser said: its table of options, and its objection to each command line, or nothing."""

    release: str
    table: str
    said: Mapping[str, str]


@pytest.fixture(scope="module", params=["0.33.0", "0.16.0"])
def parser(
    request: pytest.FixtureRequest,
    serving: Path,
    vllm_tree: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Parser:
    """Run dump_parser.py with the release's own Python code over the serving environment."""
    release, scratch = str(request.param), tmp_path_factory.mktemp("parser")
    lines = {**command_lines(release), "must be refused": ["a/b", "--swap-space-of-old", "4"]}
    table, path = scratch / "table.json", scratch / "lines.json"
    path.write_text(json.dumps(list(lines.values())), encoding="utf-8")
    # The package alone: the metadata beside it would name a vLLM that is not for CPUs.
    (scratch / "vllm").symlink_to(vllm_tree(release) / "vllm")
    environment = {**os.environ, "VLLM_TARGET_DEVICE": "cpu", "PYTHONPATH": str(scratch)}
    run([serving / "bin/python", DUMP, "--table", table, "--parse", path], env=environment)
    said = dict(zip(lines, json.loads(path.read_text(encoding="utf-8")), strict=True))
    return Parser(release=release, table=table.read_text(encoding="utf-8"), said=said)


@pytest.mark.serves
def test_the_table_is_what_the_parser_says(parser: Parser) -> None:
    assert parser.table == (DATA / f"options-{parser.release}.json").read_text("utf-8")


@pytest.mark.serves
def test_the_parser_accepts_what_we_write(parser: Parser) -> None:
    assert parser.said["must be refused"], "the parser refuses nothing: this test would prove nothing"
    assert {name: text for name, text in parser.said.items() if text and name != "must be refused"} == {}
