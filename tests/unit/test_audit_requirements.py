"""What is required of machine code, and what pins/ expects of it: each rule seen holding and failing."""

from pathlib import Path
from typing import Any

import pytest

from sparkwright.audit import (
    Audit,
    Container,
    FatBinary,
    MachineCode,
    Readiness,
    Requirement,
    check,
    check_expectations,
    raise_on,
)
from sparkwright.errors import AuditFailedError
from sparkwright.pins import Expectation


def unit(*sass: str, ptx: tuple[str, ...] = (), **counts: int) -> FatBinary:
    zero = dict.fromkeys(set(MachineCode.model_fields) - {"target"}, 0)
    code = MachineCode.model_validate({"target": sass[-1], **zero, **counts}) if sass else None
    return FatBinary(sass=sass, ptx=ptx, code=code)


def container(*units: FatBinary, path: str = "lib.so") -> Container:
    return Container(path=path, fat_binaries=units)


def audit(*containers: Container) -> Audit:
    return Audit(path=Path("pkg"), containers=containers, without_device_code=())


def failing(facts: Audit, *requirements: Requirement) -> list[tuple[str, str]]:
    return [(failure.check, failure.path) for failure in check(facts, requirements)]


@pytest.mark.parametrize(
    ("one", "readiness"),
    [
        (unit("sm_121a"), Readiness.NATIVE),
        (unit("sm_90a", "sm_120f"), Readiness.NATIVE),
        (unit("sm_80", ptx=("sm_80",)), Readiness.JIT),
        (unit(ptx=("sm_120a",)), Readiness.NONE),
        (unit("sm_120a"), Readiness.NONE),
        (unit(), Readiness.NONE),
    ],
)
def test_how_a_translation_unit_gets_to_run(one: FatBinary, readiness: Readiness) -> None:
    assert one.readiness is readiness


def test_a_library_is_as_ready_as_its_best_translation_unit() -> None:
    many = container(unit("sm_90a"), unit("sm_80", ptx=("sm_80",)), unit("sm_120"))
    assert many.readiness is Readiness.NATIVE
    assert [many.translation_units()[one] for one in Readiness] == [1, 1, 1]
    assert container(unit("sm_90a"), unit("sm_80", ptx=("sm_80",))).readiness is Readiness.JIT


def test_sm121_holds_only_when_every_container_has_code_that_loads() -> None:
    good = container(unit("sm_121a"))
    assert failing(audit(good, container(unit("sm_120f"))), Requirement.SM121) == []
    for bad in (unit("sm_120a"), unit("sm_80", ptx=("sm_80",)), unit(ptx=("sm_121",))):
        facts = audit(good, container(bad, path="bad.so"))
        assert failing(facts, Requirement.SM121) == [("sm121", "bad.so")]


def test_fp4_mma_needs_an_instruction_and_no_trap() -> None:
    assert failing(audit(container(unit("sm_121a", fp4_mma=1))), Requirement.FP4_MMA) == []
    assert failing(audit(container(unit("sm_121a"))), Requirement.FP4_MMA) == [("fp4-mma", "pkg")]
    trapped = audit(container(unit("sm_121a", fp4_mma=1), unit("sm_121", wrong_target_traps=4)))
    (failure,) = check(trapped, [Requirement.FP4_MMA])
    assert "4 traps" in failure.what


def test_e2m1_convert_needs_a_conversion_not_a_decode() -> None:
    assert failing(audit(container(unit("sm_121a", e2m1_convert=1))), Requirement.E2M1_CONVERT) == []
    assert failing(audit(container(unit("sm_121a", e2m1_decode=9))), Requirement.E2M1_CONVERT) != []


@pytest.mark.parametrize("requirement", Requirement)
def test_a_path_without_device_code_satisfies_nothing(requirement: Requirement) -> None:
    assert failing(audit(), requirement) == [(requirement.value, "pkg")]


def test_without_a_requirement_nothing_fails() -> None:
    assert check(audit(container(unit("sm_80"))), []) == []


def test_failures_become_one_error_that_names_them_all() -> None:
    raise_on([])
    failures = check(audit(container(unit("sm_80"))), Requirement)
    with pytest.raises(AuditFailedError, match="OMMA") as caught:
        raise_on(failures)
    assert caught.value.exit_code == 4
    assert all(failure.what in str(caught.value) for failure in failures)


def expectation(**changes: Any) -> Expectation:  # noqa: ANN401  fields of several types
    return Expectation.model_validate(
        {"unit": "nvfp4", "objects": "*/fp4/gemm.cu.o", "targets": ["sm_121a"], "fp4_mma": 384} | changes
    )


GEMM = "dir/csrc/fp4/gemm.cu.o"


def test_an_expectation_that_is_met() -> None:
    objects = [
        container(unit("sm_121a", fp4_mma=384, e2m1_convert=48), path=GEMM),
        container(unit("sm_80"), path="dir/csrc/other.cu.o"),
    ]
    assert check_expectations(objects, [expectation(e2m1_convert=48)]) == []


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (unit("sm_121", fp4_mma=384), "code for sm_121, not sm_121a"),
        (unit("sm_120f", "sm_121a", fp4_mma=384), "code for sm_120f, sm_121a, not sm_121a"),
        (unit("sm_121a", fp4_mma=383), "383 FP4"),
        (unit("sm_121a", fp4_mma=384, wrong_target_traps=1), "1 traps"),
        (unit(), "no target"),
    ],
)
def test_an_expectation_that_is_not_met(one: FatBinary, said: str) -> None:
    failures = check_expectations([container(one, path=GEMM)], [expectation()])
    assert any(said in failure.what for failure in failures)
    assert all(failure.path == GEMM and failure.cause and failure.remedy for failure in failures)


def test_too_few_conversions_fail() -> None:
    facts = [container(unit("sm_121a", e2m1_convert=47), path=GEMM)]
    assert check_expectations(facts, [expectation(fp4_mma=None, e2m1_convert=47)]) == []
    assert len(check_expectations(facts, [expectation(fp4_mma=None, e2m1_convert=48)])) == 1


def test_an_expectation_without_an_object_fails() -> None:
    (failure,) = check_expectations([container(unit("sm_121a"), path="other.o")], [expectation()])
    assert failure.path == "*/fp4/gemm.cu.o"
