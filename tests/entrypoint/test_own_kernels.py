"""The switch of the project's own kernels reaches their plugin as 1 or 0, on every node."""

import pytest
from tests.entrypoint.test_plan import planned

from sparkwright.errors import ConfigurationError

RAY = {"HEAD_IP": "192.0.2.7", "WORKER_IP": "192.0.2.8", "RAY_AUTH_TOKEN": "t"}


@pytest.mark.parametrize(("given", "passed_on"), [("yes", "1"), ("On", "1"), ("off", "0"), ("1", None), ("0", None)])
@pytest.mark.parametrize("mode", ["serve", "ray-head", "ray-worker"])
def test_a_switch_is_spelt_as_the_plugin_reads_it(mode: str, given: str, passed_on: str | None) -> None:
    made = planned(mode, GB10_KERNELS=given, **({} if mode == "serve" else RAY))
    assert made.env.get("GB10_KERNELS") == passed_on


@pytest.mark.parametrize("mode", ["serve", "ray-head", "ray-worker"])
def test_it_is_off_unless_it_is_given(mode: str) -> None:
    assert "GB10_KERNELS" not in planned(mode, **({} if mode == "serve" else RAY)).env


@pytest.mark.parametrize("mode", ["serve", "ray-head", "ray-worker"])
def test_what_is_no_switch_is_refused(mode: str) -> None:
    with pytest.raises(ConfigurationError, match="GB10_KERNELS='fast' is not what GB10_KERNELS may be: 1 or 0"):
        planned(mode, GB10_KERNELS="fast", **({} if mode == "serve" else RAY))


def test_a_vllm_without_the_registries_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"with vLLM 0\.16\.0: the kernels' plugin needs 0.32 or later"):
        planned("serve", GB10_KERNELS="1", SPARKWRIGHT_VLLM_VERSION="0.16.0")
    assert planned("serve", GB10_KERNELS="0", SPARKWRIGHT_VLLM_VERSION="0.16.0").argv
