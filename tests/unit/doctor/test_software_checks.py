"""Judgements about what is installed, on a small image made of real metadata and receipts."""

import os
from pathlib import Path

import pytest
from tests.unit.doctor.conftest import MakeMachine, add_package, receipt

from sparkwright import paths
from sparkwright.audit import Readiness
from sparkwright.doctor import code_targets, software_checks
from sparkwright.doctor.installed import Installed
from sparkwright.doctor.machine import Machine
from sparkwright.doctor.model import Verdict
from sparkwright.files import sha256_file, write_json
from sparkwright.native.jit_build import JitReport, ModuleReport
from sparkwright.native.jit_modules import load_modules
from sparkwright.pins import load_line

LINE = load_line("0.33.0")
LISTINGS = Path(__file__).parent / "listings"


@pytest.fixture(autouse=True)
def no_lock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A requirements folder of the test's own."""
    monkeypatch.setattr(paths, "REQUIREMENTS", tmp_path / "requirements")
    (tmp_path / "requirements").mkdir()
    return tmp_path / "requirements"


def test_without_vllm_everything_about_it_is_skipped(machine: MakeMachine) -> None:
    bare = machine(installed=Installed(()))
    for check in (software_checks.releases, software_checks.patches, software_checks.libraries):
        assert check(bare, LINE).verdict is Verdict.SKIPPED
    assert software_checks.machine_code(bare, LINE).verdict is Verdict.SKIPPED
    assert software_checks.flashinfer_modules(bare, LINE).verdict is Verdict.SKIPPED


def test_releases_are_the_pinned_ones(machine: MakeMachine) -> None:
    result = software_checks.releases(machine(), LINE)
    assert (result.verdict, result.found) == (Verdict.PASS, "vLLM 0.33.0+gb10, 3 packages compared")


def test_a_package_that_was_installed_over_the_lock_is_named(machine: MakeMachine, site: Path, no_lock: Path) -> None:
    add_package(site, "transformers", "5.0.0", "transformers")
    add_package(site, "rich", "14.0.0", "rich")
    (no_lock / "image-0.33.0.txt").write_text(
        "transformers==5.20.2 \\\n    --hash=sha256:00\n    # via vllm\n"
        "rich==14.0.0 ; python_version >= '3.8' \\\n    --hash=sha256:00\n"
        "colorama==0.4.6 ; sys_platform == 'win32' \\\n    --hash=sha256:00\n"
    )
    result = software_checks.releases(machine(), LINE)
    assert result.verdict is Verdict.FAIL
    assert result.found == "transformers 5.0.0 instead of 5.20.2"


def test_the_locked_releases_of_the_image_can_be_read() -> None:
    found = software_checks.locked(paths.CHECKOUT / "requirements" / "run-0.33.0.txt")
    assert found["flashinfer-python"] == "0.7.2.post1"
    assert len(found) > 150


def test_patched_files_are_as_their_receipts_say(machine: MakeMachine) -> None:
    result = software_checks.patches(machine(), LINE)
    assert (result.verdict, result.found) == (Verdict.PASS, "2 applied; 2 files are as their receipts say")


@pytest.mark.parametrize("file", ["vllm/worker.py", "flashinfer/jit/moe.py"])
def test_a_file_that_was_changed_afterwards_is_named(machine: MakeMachine, site: Path, file: str) -> None:
    (site / file).write_text("changed by hand\n")
    result = software_checks.patches(machine(), LINE)
    assert result.verdict is Verdict.FAIL
    assert file in result.found


def test_a_patched_file_that_is_gone_is_named(machine: MakeMachine, site: Path) -> None:
    (site / "vllm" / "worker.py").unlink()
    assert software_checks.patches(machine(), LINE).verdict is Verdict.FAIL


def test_an_unpatched_package_is_no_part_of_the_image(machine: MakeMachine, site: Path) -> None:
    (site / "vllm-0.33.0+gb10.dist-info" / "sparkwright" / "patches.json").unlink()
    result = software_checks.patches(machine(), LINE)
    assert (result.verdict, result.found) == (Verdict.FAIL, "no receipt for vllm")


def test_a_patch_that_was_not_needed_is_not_counted(machine: MakeMachine, site: Path) -> None:
    (site / ".sparkwright" / "patches.json").write_text(receipt("flashinfer", {}, status="upstream"))
    assert software_checks.patches(machine(), LINE).found.startswith("1 applied")


@pytest.mark.parametrize(
    ("library", "readiness"),
    [
        ("_moe_C_stable_libtorch", Readiness.NATIVE),
        ("_vllm_fa2_C", Readiness.JIT),
        ("norm", Readiness.NATIVE),
        ("_flashmla_C", Readiness.NONE),
    ],
)
def test_a_listing_of_cuobjdump_tells_whether_gb10_can_run_a_library(library: str, readiness: Readiness) -> None:
    """The listings are those of the official wheel of vLLM 0.33.0, and of a FlashInfer module made for 12.1a."""
    assert code_targets.parse((LISTINGS / f"{library}.txt").read_text()).readiness is readiness


def test_an_architecture_for_nvcc_in_a_variable_is_a_fault(machine: MakeMachine) -> None:
    assert software_checks.nvcc_variables(machine(), LINE).verdict is Verdict.PASS
    wrong = machine(environment={"HOME": "/", "NVCC_PREPEND_FLAGS": "-arch=sm_121a"})
    assert software_checks.nvcc_variables(wrong, LINE).verdict is Verdict.FAIL


def test_without_nvcc_the_silent_change_of_kernels_is_told(machine: MakeMachine) -> None:
    result = software_checks.compiler(machine(), LINE)
    assert result.verdict is Verdict.WARN
    assert "FlashInfer" in result.reason


def ready_modules(site: Path, names: list[str]) -> Path:
    """These modules and our report about them, as `jit-cache build` leaves them."""
    folder = site / "flashinfer" / "data" / "aot"
    reports = []
    for name in names:
        library = folder / name / f"{name}.so"
        library.parent.mkdir(parents=True)
        library.write_bytes(name.encode())
        reports.append(
            ModuleReport(
                name=name,
                made_from="x",
                sha256=sha256_file(library),
                size=1,
                objects=1,
                cpu_seconds=1,
                peak_mb=1,
                compiled=True,
                targets=("sm_121a",),
                fp4_mma=0,
                e2m1_convert=0,
            )
        )
    report = JitReport(
        line=LINE.name, flashinfer="0.7.2.post1", arch_list=("12.1a",), folder=str(folder), modules=tuple(reports)
    )
    write_json(folder / "sparkwright.json", report.model_dump(mode="json"))
    return folder


def test_modules_built_ahead_are_complete(machine: MakeMachine, site: Path) -> None:
    ready_modules(site, [module.name for module in load_modules(LINE).modules])
    assert software_checks.flashinfer_modules(machine(), LINE).verdict is Verdict.PASS


def test_missing_modules_are_named_the_largest_first(machine: MakeMachine, site: Path) -> None:
    ready_modules(site, ["norm"])
    result = software_checks.flashinfer_modules(machine(), LINE)
    assert result.verdict is Verdict.WARN
    assert "fused_moe_120, fp4_gemm_cutlass_sm120" in result.found


@pytest.mark.parametrize("how", ["changed", "added"])
def test_a_module_that_was_not_audited_is_refused(machine: MakeMachine, site: Path, how: str) -> None:
    folder = ready_modules(site, ["norm"])
    name = "norm" if how == "changed" else "sampling"
    (folder / name).mkdir(exist_ok=True)
    (folder / name / f"{name}.so").write_bytes(b"of unknown origin")
    result = software_checks.flashinfer_modules(machine(), LINE)
    assert result.verdict is Verdict.FAIL
    assert name in result.found


@pytest.fixture
def without_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software_checks, "has_driver", lambda: False)


@pytest.fixture
def with_stub(machine: MakeMachine, tmp_path: Path) -> Machine:
    """A machine whose toolkit has the linker's stub, and whose packages are those of the small image."""
    stub = tmp_path / "cuda" / "lib" / "stubs" / "libcuda.so"
    stub.parent.mkdir(parents=True)
    stub.write_bytes(b"")
    usual = machine()
    paths_of_python = os.pathsep.join(map(str, usual.installed.folders))
    environment = {"HOME": "/", "PATH": os.defpath, "CUDA_HOME": str(tmp_path / "cuda"), "PYTHONPATH": paths_of_python}
    return machine(environment=environment)


@pytest.mark.usefixtures("without_driver")
def test_libraries_cannot_be_judged_without_driver_and_stub(machine: MakeMachine) -> None:
    result = software_checks.libraries(machine(), LINE)
    assert result.verdict is Verdict.SKIPPED
    assert "libcuda.so.1" in result.reason


@pytest.mark.usefixtures("without_driver")
def test_a_library_that_does_not_load_is_told_with_its_reason(
    with_stub: Machine, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(software_checks, "PROBED", ("torch", "vllm.worker", "absent"))
    (site / "vllm" / "worker.py").write_text("import os\nassert os.environ['LD_LIBRARY_PATH']\n")
    good = software_checks.libraries(with_stub, LINE)
    assert (good.verdict, good.found) == (Verdict.WARN, "2 import, with the linker's stub in place of the driver")
    (site / "vllm" / "worker.py").write_text("raise ImportError('undefined symbol: _ZN3c106detail')\n")
    bad = software_checks.libraries(with_stub, LINE)
    assert (bad.verdict, bad.reason) == (Verdict.FAIL, "vllm.worker: ImportError: undefined symbol: _ZN3c106detail")


@pytest.mark.usefixtures("without_driver")
def test_a_library_that_kills_its_process_ends_only_the_probe(
    with_stub: Machine, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(software_checks, "PROBED", ("vllm.worker",))
    (site / "vllm" / "worker.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    result = software_checks.libraries(with_stub, LINE)
    assert result.verdict is Verdict.FAIL
    assert "brought the process down" in result.reason
