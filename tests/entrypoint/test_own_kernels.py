"""The switch of the project's own kernels reaches their plugin as 1 or 0, on every node."""

import pytest
from tests.entrypoint.test_plan import planned

from sparkwright.entrypoint.own_kernels import LEAVE_ROOM
from sparkwright.errors import ConfigurationError
from sparkwright.recipes import names

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


QWEN3_NEXT = {"MODEL": "UNSET", "RECIPE": "qwen3-next-80b-a3b-nvfp4"}


def test_a_recipes_backends_make_room_for_the_kernels() -> None:
    assert {"--moe-backend", "--linear-backend"} <= set(planned("serve", **QWEN3_NEXT).argv), "the premise"
    made = planned("serve", GB10_KERNELS="1", **QWEN3_NEXT)
    assert {"--moe-backend", "--linear-backend"} & set(made.argv) == set()
    told = [each for each in made.notices if "GB10_KERNELS" in each]
    assert [each.partition(" is left out")[0] for each in told] == [
        "--linear-backend marlin (the recipe)",
        "--moe-backend marlin (the recipe)",
    ]
    assert made.marlin == (), "the checkpoint is judged as its kernels will read it"


NEEDS_ITS_BACKEND = {
    "anubis-pro-105b-nvfp4": ("--linear-backend", "and it has to: the input scales were never calibrated"),
    "behemoth-x-123b-nvfp4": ("--linear-backend", "and it has to: the input scales were never calibrated"),
    "nemotron-3.5-lightning-30b-a3b-nvfp4": ("--moe-backend", "and it has to: its experts are for 16-bit activations"),
}


@pytest.mark.parametrize("recipe", sorted(NEEDS_ITS_BACKEND))
def test_a_backend_that_the_answers_need_stays(recipe: str) -> None:
    made = planned("serve", GB10_KERNELS="1", MODEL="UNSET", RECIPE=recipe)
    option, said = NEEDS_ITS_BACKEND[recipe]
    assert made.argv[made.argv.index(option) + 1] == "marlin"
    assert [each for each in made.notices if said in each]


@pytest.mark.parametrize("recipe", sorted({*names()} - {*NEEDS_ITS_BACKEND}))
def test_no_other_recipe_shuts_the_kernels_out(recipe: str) -> None:
    made = planned("serve", GB10_KERNELS="1", MODEL="UNSET", RECIPE=recipe)
    for option, (_, choices) in LEAVE_ROOM.items():
        assert option not in made.argv or made.argv[made.argv.index(option) + 1] in choices


def test_a_backend_that_the_user_names_stays_and_is_told() -> None:
    words = ("serve", "--linear-backend=marlin", "--moe-backend", "flashinfer_cutlass")
    made = planned(*words, GB10_KERNELS="1", **QWEN3_NEXT)
    assert "marlin" in made.argv
    assert "flashinfer_cutlass" in made.argv
    told = [each for each in made.notices if "GB10_KERNELS" in each]
    assert told == [
        "--linear-backend marlin (the arguments) keeps GB10_KERNELS from linear layers; leave it out to use them"
    ]
    extra = planned("serve", GB10_KERNELS="1", VLLM_EXTRA_ARGS="--moe-backend marlin")
    assert ["(VLLM_EXTRA_ARGS) keeps GB10_KERNELS from experts" in each for each in extra.notices] == [True]


def test_without_the_switch_backends_are_nobodys_business() -> None:
    made = planned("serve", "--linear-backend", "marlin", **QWEN3_NEXT)
    assert [each for each in made.notices if "GB10_KERNELS" in each] == []
