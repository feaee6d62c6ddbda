"""The mode `quantize`: the package's command line, and around it a Ray cluster where there are several nodes."""

import sys

import pytest
from tests.entrypoint.test_plan import planned

from sparkwright.entrypoint.plan import Wait
from sparkwright.errors import ConfigurationError

COMMAND = (sys.executable, "-m", "sparkwright", "quantize")
WORDS = ("/models/IN", "/models/OUT", "--data", "/models/texts.jsonl")
NODES = {"NNODES": "2", "HEAD_IP": "192.0.2.7", "RAY_AUTH_TOKEN": "t"}


def test_one_node_is_the_command_line_and_a_cache_for_what_is_compiled() -> None:
    made = planned("quantize", *WORDS)
    assert made.argv == (*COMMAND, *WORDS)
    assert (made.env, made.before, made.wait, made.needs_cache) == ({}, (), None, True)


def test_several_nodes_are_waited_for_by_a_head_that_is_started_first() -> None:
    made = planned("quantize", *WORDS, **NODES, RAY_PORT="6380", RAY_WAIT_SECONDS="9")
    assert made.argv == (*COMMAND, *WORDS, "--ray", "192.0.2.7:6380")
    assert made.before[:4] == ("ray", "start", "--head", "--port=6380")
    assert "--node-ip-address=192.0.2.7" in made.before
    assert made.env["RAY_AUTH_MODE"] == "token"
    assert made.wait == Wait(until="nodes", address="192.0.2.7:6380", nodes=2, seconds=9)
    assert "t" not in made.as_json().split('"')


def test_a_plan_starts_no_cluster() -> None:
    made = planned("quantize", *WORDS, "--plan", **NODES)
    assert made.argv == (*COMMAND, *WORDS, "--plan", "--ray", "192.0.2.7:6379")
    assert (made.before, made.wait, made.needs_cache) == ((), None, False)


@pytest.mark.parametrize("option", [("--ray", "192.0.2.9:6379"), ("--ray=local",)])
def test_a_cluster_that_is_named_is_joined(option: tuple[str, ...]) -> None:
    made = planned("quantize", *WORDS, *option, **NODES)
    assert made.argv == (*COMMAND, *WORDS, *option)
    assert (made.before, made.wait) == ((), None)
    assert made.env["RAY_AUTH_MODE"] == "token"


@pytest.mark.parametrize(
    ("missing", "said"), [("HEAD_IP", "HEAD_IP is not set"), ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN is not set")]
)
def test_several_nodes_need_an_address_and_a_token(missing: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        planned("quantize", *WORDS, **{**NODES, missing: "UNSET"})
    assert planned("quantize", "--help", **{**NODES, missing: "UNSET"}).argv == (*COMMAND, "--help")
