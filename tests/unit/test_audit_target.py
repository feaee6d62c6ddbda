"""Which targets run on GB10: the rule that every verdict of the audit rests on."""

import pytest

from sparkwright.audit.target import Target


@pytest.mark.parametrize("name", ["sm_120", "sm_121", "sm_120f", "sm_121f", "sm_121a"])
def test_machine_code_that_loads_on_gb10(name: str) -> None:
    assert Target.parse(name).loads_on_gb10


@pytest.mark.parametrize("name", ["sm_120a", "sm_122", "sm_100f", "sm_110", "sm_90a", "sm_89", "sm_80"])
def test_machine_code_that_does_not_load_on_gb10(name: str) -> None:
    assert not Target.parse(name).loads_on_gb10


@pytest.mark.parametrize("name", ["sm_80", "sm_90", "sm_100", "sm_120", "sm_121", "sm_120f", "sm_121a"])
def test_ptx_that_the_driver_can_compile_on_gb10(name: str) -> None:
    assert Target.parse(name).compiles_on_gb10


@pytest.mark.parametrize("name", ["sm_90a", "sm_100f", "sm_120a", "sm_130"])
def test_ptx_that_the_driver_cannot_compile_on_gb10(name: str) -> None:
    assert not Target.parse(name).compiles_on_gb10


def test_targets_are_written_as_they_are_read() -> None:
    assert str(Target.parse("sm_121a")) == "sm_121a"
    assert Target.parse("sm_90") < Target.parse("sm_120")


@pytest.mark.parametrize("name", ["", "sm_", "sm_9", "sm_121b", "compute_121", "12.1a"])
def test_what_is_not_a_target_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not a target"):
        Target.parse(name)
