"""The audit on machine code that nvcc just made: each target, each requirement, each kind of file."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sparkwright.audit import Audit, Readiness, Requirement, audit, check
from sparkwright.cli import app
from sparkwright.errors import AuditFailedError, InputUnreadableError
from sparkwright.run import run

pytestmark = pytest.mark.compiles

KERNELS = Path(__file__).parent / "audit_kernels"
Compile = Callable[..., Path]


@pytest.fixture
def compiled(tmp_path: Path, cuda_home: Path) -> Compile:
    """Compile one of our kernels: compiled("plain", "out.o", "-arch=sm_121a")."""

    def compile_kernel(kernel: str, name: str, *options: str) -> Path:
        output = tmp_path / name
        form = ["-cubin"] if output.suffix == ".cubin" else ["-c", "-Xcompiler", "-fPIC"]
        run([cuda_home / "bin" / "nvcc", *form, *options, KERNELS / f"{kernel}.cu", "-o", output])
        return output

    return compile_kernel


def only(arch: str) -> str:
    """The option that compiles for one target and embeds no PTX."""
    return f"-gencode=arch=compute_{arch},code=sm_{arch}"


def failing(facts: Audit) -> set[str]:
    return {failure.check for failure in check(facts, Requirement)}


@pytest.mark.parametrize("form", ["cubin", "o"])
@pytest.mark.parametrize(
    ("arch", "loads"),
    [
        ("120", True),
        ("120f", True),
        ("120a", False),
        ("121", True),
        ("121f", True),
        ("121a", True),
        ("90a", False),
        ("80", False),
    ],
)
def test_each_target_is_told_from_the_others(compiled: Compile, arch: str, loads: bool, form: str) -> None:
    facts = audit(compiled("plain", f"k.{form}", only(arch)))
    (container,) = facts.containers
    assert container.sass() == {f"sm_{arch}": 1}
    assert not container.ptx()
    assert (container.readiness is Readiness.NATIVE) == loads
    assert (check(facts, [Requirement.SM121]) == []) == loads
    if loads:
        assert (facts.totals().kernels, facts.totals().spilling_kernels) == (2, 1)


def test_ptx_is_no_machine_code(compiled: Compile) -> None:
    older = audit(compiled("plain", "older.o", "-gencode=arch=compute_80,code=[sm_80,compute_80]"))
    assert older.containers[0].readiness is Readiness.JIT
    assert failing(older) == {"sm121", "fp4-mma", "e2m1-convert"}
    bare = audit(compiled("plain", "bare.o", "-gencode=arch=compute_121a,code=compute_121a"))
    assert bare.containers[0].readiness is Readiness.JIT
    assert "sm121" in failing(bare)


@pytest.mark.parametrize("arch", ["121a", "121f", "120f"])
def test_fp4_code_for_a_right_target_passes(compiled: Compile, arch: str) -> None:
    facts = audit(compiled("fp4_mma", "mma.o", only(arch)))
    assert facts.totals().fp4_mma == 1
    assert failing(facts) == {"e2m1-convert"}


@pytest.mark.parametrize("form", ["cubin", "o"])
def test_the_same_source_for_plain_121_fails(compiled: Compile, form: str) -> None:
    facts = audit(compiled("fp4_mma", f"mma.{form}", only("121")))
    assert (facts.totals().fp4_mma, facts.totals().wrong_target_traps) == (0, 1)
    said = [failure.what for failure in check(facts, [Requirement.SM121, Requirement.FP4_MMA])]
    assert len(said) == 2
    assert "no block-scaled FP4" in said[0]
    assert "1 traps" in said[1]


def test_a_good_object_does_not_excuse_a_trapped_one(compiled: Compile, tmp_path: Path) -> None:
    compiled("fp4_mma", "good.o", only("121a"))
    compiled("fp4_mma", "trapped.o", only("121"))
    assert "fp4-mma" in failing(audit(tmp_path))
    assert failing(audit(tmp_path, only=["good.o"])) == {"e2m1-convert"}


def test_code_for_120a_is_seen_and_does_not_load(compiled: Compile) -> None:
    facts = audit(compiled("fp4_mma", "mma.o", only("120a")))
    assert facts.totals().fp4_mma == 1
    assert "sm121" in failing(facts)


def test_conversions_are_found(compiled: Compile) -> None:
    facts = audit(compiled("e2m1_convert", "convert.cubin", "-arch=sm_121a"))
    assert (facts.totals().e2m1_convert, facts.totals().e2m1_decode) == (1, 1)
    assert failing(facts) == {"fp4-mma"}


def test_a_family_cubin_without_the_compilers_note_is_known_by_its_instructions(compiled: Compile) -> None:
    cubin = compiled("e2m1_convert", "convert.cubin", "-arch=sm_120f")
    cubin.write_bytes(cubin.read_bytes().replace(b"-arch sm_120f", b"-xxxx sm_120f"))
    assert audit(cubin).containers[0].sass() == {"sm_120f": 1}


def test_a_library_a_wheel_and_a_package_say_the_same(compiled: Compile, tmp_path: Path, cuda_home: Path) -> None:
    objects = [
        compiled("fp4_mma", "mma.o", only("121a")),
        compiled("e2m1_convert", "convert.o", only("120f")),
        compiled("plain", "plain.o", only("80"), only("90a")),
    ]
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    library = package / "_C.abi3.so"
    run([cuda_home / "bin" / "nvcc", "-shared", "-cudart=none", *objects, "-o", library])
    wheel = tmp_path / "package-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(library, "package/_C.abi3.so")
    for path in (library, package, wheel):
        facts = audit(path)
        (container,) = facts.containers
        assert container.sass() == {"sm_121a": 1, "sm_120f": 1, "sm_80": 1, "sm_90a": 1}
        assert [container.translation_units()[one] for one in Readiness] == [2, 0, 1]
        assert failing(facts) == set()


def test_a_cubin_cut_anywhere_is_unreadable(compiled: Compile) -> None:
    cubin = compiled("plain", "k.cubin", "-arch=sm_121a")
    whole = cubin.read_bytes()
    for length in (10, 100, len(whole) // 2, len(whole) - 1):
        cubin.write_bytes(whole[:length])
        with pytest.raises(InputUnreadableError):
            audit(cubin)


def test_damaged_code_inside_a_whole_file_is_unreadable(compiled: Compile) -> None:
    module = compiled("plain", "k.o", only("121a"))
    whole = module.read_bytes()
    at = whole.index(b"\x7fELF", whole.index(bytes.fromhex("50ed55ba")))
    module.write_bytes(whole[:at] + bytes(64) + whole[at + 64 :])
    with pytest.raises(InputUnreadableError):
        audit(module)


def test_the_command_says_it_in_exit_codes(compiled: Compile, tmp_path: Path) -> None:
    def command(*arguments: str | Path) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["audit", *map(str, arguments)])
        if isinstance(result.exception, AuditFailedError | InputUnreadableError):
            return result.exception.exit_code, result.stdout
        return result.exit_code, result.stdout

    good = compiled("fp4_mma", "good.o", only("121a"))
    plain = compiled("fp4_mma", "plain.o", only("121"))
    (tmp_path / "empty").mkdir()
    assert command(plain) == (0, command(plain)[1])
    assert command(good, "--require", "sm121", "--require", "fp4-mma")[0] == 0
    assert command(good, plain, "--require", "fp4-mma")[0] == 4
    assert command(good, "--require", "e2m1-convert")[0] == 4
    for unreadable in (tmp_path / "missing.o", KERNELS / "plain.cu", tmp_path / "empty"):
        assert command(unreadable, "--require", "sm121")[0] == 66
    status, output = command(plain, "--require", "fp4-mma", "--json")
    assert status == 4
    report = json.loads(output)
    assert report["ok"] is False
    assert report["audits"][0]["containers"][0]["wrong_target_traps"] == 1
    assert {failure["check"] for failure in report["failures"]} == {"fp4-mma"}
