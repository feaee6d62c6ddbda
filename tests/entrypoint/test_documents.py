"""The commands that README.md and docs/multi-node.md tell people to paste, planned as they stand there."""

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.entrypoint.conftest import Entrypoint

from sparkwright.paths import CHECKOUT, DOCS

IMAGE = "$IMAGE"
_WITHOUT_VALUE = ("--rm", "-d", "-it", "--init", "--read-only")


@dataclass(frozen=True)
class Pasted:
    """A `docker run` taken apart: what the container gets."""

    env: dict[str, str]
    words: list[str]
    volumes: dict[str, str]


def serving_section() -> str:
    text = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    (section,) = re.findall(r"<!-- serving -->\n(.*?)<!-- end of serving -->", text, re.DOTALL)
    return str(section)


def commands(text: str) -> list[list[str]]:
    """The commands of its code blocks, as a shell would split them."""
    blocks = re.findall(r"^```(?:bash)?\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def pasted(words: list[str]) -> Pasted:
    """Take a `docker run` apart."""
    assert words[:2] == ["docker", "run"]
    env: dict[str, str] = {}
    volumes: dict[str, str] = {}
    index = 2
    while words[index] != IMAGE:
        word = words[index]
        assert word.startswith("-"), words
        index += 1 if word in _WITHOUT_VALUE else 2
        if word == "-e":
            name, _, value = words[index - 1].partition("=")
            env[name] = value
        elif word == "-v":
            outside, inside, *_ = words[index - 1].split(":")
            volumes[inside] = outside
    return Pasted(env, words[index + 1 :], volumes)


def runs(path: Path, text: str) -> list[object]:
    found = [pasted(words) for words in commands(text) if words[0] == "docker"]
    return [pytest.param(each, id=f"{path.name}-{number}") for number, each in enumerate(found)]


README_RUNS = runs(CHECKOUT / "README.md", serving_section())
NODE_RUNS = runs(DOCS / "multi-node.md", (DOCS / "multi-node.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("command", [*README_RUNS, *NODE_RUNS])
def test_what_is_pasted_is_planned_as_it_reads(entrypoint: Entrypoint, command: Pasted) -> None:
    (entrypoint.home / "secret").write_text("token", encoding="utf-8")
    env = {
        name: str(entrypoint.home / "secret") if name.endswith("_FILE") else value
        for name, value in command.env.items()
    }
    if "HEAD_IP" in env:
        env["HEAD_IP"] = "127.0.0.1"  # an address of this machine
    planned = entrypoint.dry(*command.words, env=env)
    argv = planned["argv"]
    assert argv[:3] == ["vllm", "serve", command.env["MODEL"]]
    for option, value in zip(command.words[1::2], command.words[2::2], strict=True):
        assert argv[argv.index(option) + 1] == value
    if "NODE_RANK" in env:
        assert argv[argv.index("--nnodes") + 1] == "2"
    assert not [notice for notice in planned["notices"] if "has no effect" in notice]


def test_the_readme_shows_all_that_it_should() -> None:
    found = commands(serving_section())
    assert len(serving_section().splitlines()) < 40
    assert [words[0] for words in found] == ["docker", "docker", "docker", "curl"]
    body = json.loads(found[-1][found[-1].index("-d") + 1])
    assert body["model"] == pasted(found[0]).env["MODEL"]
    assert ":8888/v1/chat/completions" in found[-1][1]
    draft = json.loads(pasted(found[1]).words[-1])
    assert draft == {"method": "mtp", "num_speculative_tokens": 2}


def test_the_old_variables_of_the_readme_become_what_it_says(entrypoint: Entrypoint) -> None:
    old = re.findall(r"`(VLLM_\w+)`", serving_section())
    assert len(old) == 4
    for name in old:
        value = "marlin" if name == "VLLM_NVFP4_GEMM_BACKEND" else "1"
        planned = entrypoint.dry("serve", env={"MODEL": "owner/name", name: value})
        assert {"--moe-backend", "--linear-backend"} & set(planned["argv"]), name
        assert planned["unset"] == [name]
        assert any(f"{name}={value}" in notice for notice in planned["notices"])


def test_a_name_in_the_readmes_recipe_hint_is_a_command(entrypoint: Entrypoint) -> None:
    assert entrypoint.run("recipe", "list").status == 0
