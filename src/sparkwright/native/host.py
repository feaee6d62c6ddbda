"""`sparkwright build --host`: from pins to audited machine code, without Docker and without a GPU."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from sparkwright.audit import Failure, audit, raise_on
from sparkwright.files import exclusive_lock, write_json
from sparkwright.native import build_report
from sparkwright.native.build_report import BuildReport
from sparkwright.native.compile import compile_unit
from sparkwright.native.compiler import HostCompiler
from sparkwright.native.configure import Configuration, configuration, configure, find_ccache
from sparkwright.native.environment import (
    BuildEnvironment,
    build_environment,
    is_complete,
    location,
    requirements_of,
)
from sparkwright.native.inspect_objects import driver_failures, failures_of
from sparkwright.native.layout import Layout, layout
from sparkwright.native.preflight import (
    BUILD_BYTES,
    ENVIRONMENT_BYTES,
    check_compiler,
    check_space,
    report_ignored_options,
)
from sparkwright.native.source import cutlass_headers, patch, verify
from sparkwright.native.toolchain import toolchain
from sparkwright.native.units import Unit
from sparkwright.native.wheel import Externals, make_wheel
from sparkwright.patching.engine import Examination, examine, require_no_drift
from sparkwright.paths import cache
from sparkwright.pins import Line, host_wheel_kind, load_toolchain
from sparkwright.report import note
from sparkwright.sources import fetch, unpack


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The patched trees of a line."""

    vllm: Path
    examinations: dict[str, Examination]
    files_verified: int


@dataclass(frozen=True, kw_only=True)
class Stopwatch:
    """How long each step took."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Announce a step and time it."""
        note(f"== {name}")
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 1)


def prepare_sources(line: Line, folders: Layout, watch: Stopwatch) -> Sources:
    """Toolchain, fetch, unpack, patch and verify: all that needs no compiler.

    Raises:
        UnavailableError: a file is neither cached nor reachable.
        PatchDriftError: the series does not fit the sources.
    """
    with watch.step("toolchain"):
        cuda_home = toolchain()
    trees: dict[str, tuple[Path, Path, str]] = {}
    with watch.step("fetch and unpack"):
        vllm = fetch(line.component("vllm").file("sdist"))
        flashinfer = fetch(line.component("flashinfer-python").file("wheel-any"))
        trees["vllm"] = (unpack(vllm, folders.vllm, reuse=True), vllm, line.component("vllm").version)
        trees["flashinfer"] = (
            unpack(flashinfer, folders.flashinfer, reuse=True),
            flashinfer,
            line.component("flashinfer-python").version,
        )
    with watch.step("patch and verify"):
        examinations = {name: patch(tree, name, version) for name, (tree, _, version) in trees.items()}
        verified = sum(verify(tree, archive, name, version) for name, (tree, archive, version) in trees.items())
        examinations["cuda"] = check_toolkit(cuda_home)
    return Sources(vllm=trees["vllm"][0], examinations=examinations, files_verified=verified)


def check_toolkit(cuda_home: Path) -> Examination:
    """Judge a CUDA toolkit by the cuda series, which repairs nothing.

    Raises:
        PatchDriftError: the toolkit would not compile GB10 code as meant.
    """
    examination = examine(cuda_home, "cuda", load_toolchain().component("nvidia-cuda-nvcc").version)
    require_no_drift(examination)
    return examination


def plan(
    line: Line, unit: Unit | None, *, jobs: int, wheel: bool, externals: Externals = Externals.WHEEL
) -> list[tuple[str, str]]:
    """What a build would do, step by step; without a unit, what a check would do."""
    folders = layout(line.name)
    vllm, flashinfer = line.component("vllm"), line.component("flashinfer-python")
    steps = [
        ("toolchain", f"compose CUDA's compiler from {len(load_toolchain().components)} wheels in {cache()}"),
        ("fetch and unpack", f"vLLM {vllm.version} and FlashInfer {flashinfer.version} in {folders.root}"),
        ("patch and verify", "apply the series of patches/ and compare every file with its archive"),
    ]
    if unit is None:
        return steps
    environment = location(requirements_of(line))
    state = "use" if is_complete(environment) else "make (3 GB to fetch, 6 GB on disk)"
    steps += [
        ("build environment", f"{state} {environment}"),
        ("configure", f"vLLM's own CMake in {folders.native} for {', '.join(line.arch_list)}, VLLM_LEAN=ON"),
        ("compile", f"{', '.join(unit.objects)} at most {jobs} at once" + (" and link" if unit.libraries else "")),
        ("audit", "read the machine code and compare it with pins/"),
    ]
    if wheel:
        ahead = " and compile FlashAttention 2's PTX" if externals is Externals.COMPILED else ""
        steps.append(("wheel", f"make it through vLLM's setup.py in {folders.wheels}{ahead}"))
    return [*steps, ("report", str(folders.report))]


def check(line: Line) -> Sources:
    """`--check`: stop when the sources are patched and verified."""
    folders = layout(line.name)
    check_space(folders.root, BUILD_BYTES)
    with exclusive_lock(folders.lock, doing="building"):
        return prepare_sources(line, folders, Stopwatch())


def build(
    line: Line, unit: Unit, *, jobs: int, wheel: bool = False, externals: Externals = Externals.WHEEL
) -> BuildReport:
    """Everything up to the audit, and the wheel when it is asked for; the report is written also when the audit fails.

    Raises:
        ConfigurationError: the line cannot be compiled.
        AuditFailedError: the machine code is not what pins/ says; no wheel was made.
    """
    unit.require_of(line)
    folders, watch = layout(line.name), Stopwatch()
    compiler = check_compiler()
    report_ignored_options()
    if find_ccache() is None:
        note("ccache is not installed: whatever is compiled again is compiled in full (install the package ccache)")
    check_space(folders.root, BUILD_BYTES)
    check_space(cache(), 0 if is_complete(location(requirements_of(line))) else ENVIRONMENT_BYTES)
    with exclusive_lock(folders.lock, doing="building"):
        sources = prepare_sources(line, folders, watch)
        with watch.step("build environment"):
            environment = build_environment(line, compiler, folders.log("environment"))
            sources.examinations["cuda"] = check_toolkit(environment.cuda_home)
            cutlass = cutlass_headers(line)
            official = line.component("vllm").file(host_wheel_kind())
            official_wheel = fetch(official) if wheel else None
        how, report, failures = compile_and_audit(
            line,
            unit,
            source=sources.vllm,
            cutlass=cutlass,
            environment=environment,
            compiler=compiler,
            folders=folders,
            jobs=jobs,
            watch=watch,
        )
        patches = {name: build_report.patch_summary(found) for name, found in sources.examinations.items()}
        report = replace(report, patches=patches)
        if official_wheel and not failures:
            with watch.step("wheel"):
                made = make_wheel(
                    line,
                    how,
                    environment,
                    folders,
                    official=(official, official_wheel),
                    jobs=jobs,
                    externals=externals,
                )
            report = replace(report, wheel=made)
        write_json(folders.report, report.to_json())
    raise_on(failures)
    return report


def compile_and_audit(
    line: Line,
    unit: Unit,
    *,
    source: Path,
    cutlass: Path,
    environment: BuildEnvironment,
    compiler: HostCompiler,
    folders: Layout,
    jobs: int,
    watch: Stopwatch,
) -> tuple[Configuration, BuildReport, list[Failure]]:
    """Configure and compile a unit of a patched tree, and audit what came out.

    Raises:
        BuildFailedError: CMake or a compiler failed.
    """
    ccache = find_ccache()
    with watch.step("configure"):
        how = configuration(
            line=line, source=source, cutlass=cutlass, environment=environment, folders=folders, ccache=ccache
        )
        configure(how, environment, folders.log("configure"))
    with watch.step("compile"):
        compilation = compile_unit(
            how,
            environment,
            unit,
            jobs=jobs,
            measurements=folders.measurements,
            history=cache() / "compile-times" / f"{line.name}.json",
            log=folders.log("compile"),
        )
    with watch.step("audit"):
        facts = audit(folders.native, only=compilation.objects)
        libraries = sorted(path.name for path in folders.native.glob("*.so")) if unit.libraries else []
        failures = [*failures_of(facts, unit, line), *driver_failures(folders.native, libraries)]
        library_facts = audit(folders.native, only=libraries) if libraries else None
    report = BuildReport(
        line=line.name,
        unit=unit.name,
        arch_list=line.arch_list,
        jobs=jobs,
        machine=build_report.machine(),
        versions=build_report.versions(environment, compiler, line, ccache),
        pins=build_report.pins_digest(),
        patches={},
        seconds=watch.seconds,
        objects=build_report.rows(facts, compilation),
        libraries=build_report.library_rows(library_facts) if library_facts else (),
        failures=build_report.failure_texts(failures),
    )
    return how, report, failures
