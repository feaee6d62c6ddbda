"""`./build.sh --host`: CMake compiles the nvfp4 unit, its code is right, and only what changed is rebuilt."""

import json
import shlex
from pathlib import Path

import pytest

from sparkwright.audit import audit
from sparkwright.errors import BuildFailedError, LockedError
from sparkwright.files import exclusive_lock
from sparkwright.native import host
from sparkwright.native.build_report import BuildReport
from sparkwright.native.compile import compile_unit
from sparkwright.native.compiler import host_compiler
from sparkwright.native.configure import Configuration, compiler_cache
from sparkwright.native.environment import BuildEnvironment, build_environment
from sparkwright.native.inspect_objects import driver_failures, failures_of
from sparkwright.native.jobs import default_jobs
from sparkwright.native.layout import layout
from sparkwright.native.units import Unit, unit
from sparkwright.patching.engine import apply_series, revert_series
from sparkwright.patching.series import load_series
from sparkwright.pins import load_line
from sparkwright.run import run

pytestmark = pytest.mark.compiles

LINE = load_line("0.33.0")
FOLDERS = layout(LINE.name)
NVFP4 = unit("nvfp4")
FP4_GEMM = "CMakeFiles/_C_stable_libtorch.dir/csrc/quantization/fp4/nvfp4_scaled_mm_sm120_kernels.cu.o"
QUANTISER = "CMakeFiles/_C_stable_libtorch.dir/csrc/quantization/fp4/nvfp4_quant_kernels.cu.o"


def vllm_tree() -> Path:
    return next(path for path in FOLDERS.vllm.iterdir() if (path / "setup.py").is_file())


@pytest.fixture(scope="module")
def report() -> BuildReport:
    return host.build(LINE, NVFP4, jobs=default_jobs())


@pytest.fixture(scope="module")
def environment(report: BuildReport) -> BuildEnvironment:
    assert report.objects
    return build_environment(LINE, host_compiler(), FOLDERS.log("environment"))


def test_every_object_of_the_unit_holds_code_for_gb10_alone(report: BuildReport) -> None:
    assert len(report.objects) == 24
    device = {row.path: row.targets for row in report.objects if row.targets}
    assert set(device.values()) == {"sm_121a"}


def test_the_fp4_gemm_is_full_of_tensor_core_instructions(report: BuildReport) -> None:
    rows = {row.path: row for row in report.objects}
    assert rows[FP4_GEMM].fp4_mma == 384
    assert rows[QUANTISER].e2m1_convert > 0


def test_the_report_says_what_was_built_from_what(report: BuildReport) -> None:
    stored = json.loads(FOLDERS.report.read_text())
    assert stored["line"] == LINE.name
    assert stored["versions"]["nvcc"] == "13.0.88"
    assert stored["patches"]["vllm"]["patches"]["native-sm121a-code"] == "applied"
    assert stored["failures"] == []
    assert len(stored["objects"]) == len(report.objects)


def test_a_second_build_compiles_nothing(report: BuildReport) -> None:
    again = host.build(LINE, NVFP4, jobs=1)
    assert again.totals()["compiled"] == 0
    assert again.totals()["fp4_mma"] == report.totals()["fp4_mma"]


def test_a_python_patch_that_comes_or_goes_compiles_nothing(report: BuildReport) -> None:
    assert report.objects
    native = [named for named in load_series("vllm") if named.patch.kind == "native"]
    apply_series(vllm_tree(), "vllm", LINE.name, series=native)
    assert host.build(LINE, NVFP4, jobs=1).totals()["compiled"] == 0


def test_two_builds_at_once_in_one_folder_are_refused(report: BuildReport) -> None:
    assert report.objects
    with exclusive_lock(FOLDERS.lock, doing="building"), pytest.raises(LockedError):
        host.build(LINE, NVFP4, jobs=1)


def test_the_fp4_gemm_compiled_for_the_plain_target_fails_the_audit(
    environment: BuildEnvironment, tmp_path: Path
) -> None:
    ninja: list[str | Path] = [environment.tool("ninja"), "-C", FOLDERS.native, "-t", "commands", FP4_GEMM]
    command = run(ninja).splitlines()[-1]
    assert "arch=compute_121a,code=sm_121a" in command
    plain = command.replace("arch=compute_121a,code=sm_121a", "arch=compute_121,code=sm_121")
    elsewhere = plain.replace(str(FOLDERS.measurements), str(tmp_path / "measurements")).replace(
        f" {FP4_GEMM}", f" {tmp_path / FP4_GEMM}"
    )
    (tmp_path / FP4_GEMM).parent.mkdir(parents=True)
    # As ninja starts it. The compiler is satisfied: only the machine code shows that the kernels are empty.
    run(shlex.split(elsewhere), cwd=FOLDERS.native, env=environment.variables(compiler_cache()))
    failures = "\n".join(map(str, failures_of(audit(tmp_path, only=[FP4_GEMM]), NVFP4, LINE)))
    assert "0 FP4 tensor-core instructions, not 384" in failures
    assert "sm_121, not sm_121a" in failures


@pytest.fixture
def small_project(environment: BuildEnvironment, tmp_path: Path) -> Configuration:
    """A build folder of ninja alone, whose compiler is a shell script."""
    build = tmp_path / "native"
    build.mkdir()
    (build / "build.ninja").write_text(
        "rule CUDA_COMPILER\n  command = sh $in && touch $out\n  description = Building CUDA object $out\n"
        "build a.o: CUDA_COMPILER a.cu\nbuild b.o: CUDA_COMPILER b.cu\n"
        "build build.ninja: phony\nbuild all: phony a.o b.o\n"
    )
    (build / "a.cu").write_text("true\n")
    (build / "b.cu").write_text("echo the compiler explains >&2; false\n")
    return Configuration(
        source=tmp_path,
        build=build,
        initial_cache=tmp_path / "cache.cmake",
        arguments=(),
        variables=environment.variables(),
    )


def compile_small(project: Configuration, environment: BuildEnvironment) -> None:
    compile_unit(
        project,
        environment,
        Unit(name="all", objects=("*.o",), libraries=False),
        jobs=1,
        measurements=project.build / "measurements",
        history=project.build / "history",
        log=project.build / "log",
    )


def test_a_failing_compiler_call_is_told_and_finished_objects_are_kept(
    small_project: Configuration, environment: BuildEnvironment
) -> None:
    with pytest.raises(BuildFailedError, match="the compiler explains"):
        compile_small(small_project, environment)
    finished = (small_project.build / "a.o").stat().st_mtime_ns
    (small_project.build / "b.cu").write_text("true\n")
    compile_small(small_project, environment)
    assert (small_project.build / "b.o").exists()
    assert (small_project.build / "a.o").stat().st_mtime_ns == finished


def test_running_out_of_memory_is_named(small_project: Configuration, environment: BuildEnvironment) -> None:
    (small_project.build / "b.cu").write_text("kill -9 $$\n")
    with pytest.raises(BuildFailedError) as caught:
        compile_small(small_project, environment)
    assert "memory" in caught.value.cause
    assert "--jobs" in caught.value.remedy


def test_a_library_that_calls_the_driver_without_needing_it_is_found(tmp_path: Path) -> None:
    compiler = host_compiler()
    source = tmp_path / "module.c"
    source.write_text("int cuMemCreate(void); int f(void) { return cuMemCreate(); }\n")
    run([compiler.path, "-x", "c", "-shared", "-fPIC", "-o", tmp_path / "module.so", source])
    assert "cuMemCreate" in str(driver_failures(tmp_path, ["module.so"])[0])


def test_sources_reverted_and_patched_again_come_from_the_compiler_cache(report: BuildReport) -> None:
    assert report.objects
    revert_series(vllm_tree(), "vllm", LINE.name)
    again = host.build(LINE, NVFP4, jobs=default_jobs()).totals()
    assert again["cache_hits"] == again["compiled"]
