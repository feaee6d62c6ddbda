"""The steps of a host build one by one, as the Dockerfile's stages run them: each leaves in the layout what it made.

The compiler's stage gets only what compiling reads, so that a change of vLLM's Python compiles nothing again.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sparkwright.audit import Requirement, audit, check, raise_on
from sparkwright.errors import (
    BuildFailedError,
    CommandFailedError,
    InputUnreadableError,
    UsageError,
)
from sparkwright.files import sha256_file, write_json
from sparkwright.native import build_report, jit_build
from sparkwright.native.compiler import HostCompiler
from sparkwright.native.configure import compiler_cache, configuration, find_ccache
from sparkwright.native.cuda_home import add_driver_stub, compose
from sparkwright.native.environment import BuildEnvironment, build_environment, requirements_of, site_packages
from sparkwright.native.host import Stopwatch, check_toolkit, compile_and_audit
from sparkwright.native.jit_modules import choose, load_modules
from sparkwright.native.jobs import default_jobs
from sparkwright.native.layout import Layout, layout
from sparkwright.native.preflight import check_compiler
from sparkwright.native.prepare import prepare
from sparkwright.native.source import cutlass_headers, patch, verify
from sparkwright.native.units import Unit
from sparkwright.native.wheel import Externals, make_wheel, take_wheel
from sparkwright.paths import CHECKOUT
from sparkwright.pins import Line, host_wheel_kind
from sparkwright.report import note
from sparkwright.run import run
from sparkwright.sources import fetch, unpack

COMPILE_INPUTS: Final = ("CMakeLists.txt", "cmake", "csrc")
"""What CMake and the compilers read of vLLM's tree."""
KERNEL_PEAK: Final = 2_000_000_000
"""Bytes that a compiler of kernels/ takes at most."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What a stage works on."""

    line: Line
    unit: Unit
    jobs: int | None
    """Compilers at once; as memory allows when it is None."""
    modules: tuple[str, ...] = ()
    """FlashInfer's modules to compile; all of the list when none is named."""
    externals: Externals = Externals.WHEEL
    """What becomes of the PTX of projects that are not compiled here."""
    toolchain: Path | None = None
    """An environment with the locked packages; without one it is made in the cache, as on a host."""

    @property
    def folders(self) -> Layout:
        """Where everything lies."""
        return layout(self.line.name)

    @property
    def cutlass(self) -> Path:
        """CUTLASS's headers by themselves."""
        return self.folders.root / "cutlass"

    @property
    def vllm(self) -> Path:
        """VLLM's tree, or the part of it that this stage was given."""
        found = list(self.folders.vllm.glob("*/CMakeLists.txt"))
        if len(found) != 1:
            raise InputUnreadableError(
                f"{self.folders.vllm} holds no source of vLLM", remedy="run the stage `sources` first"
            )
        return found[0].parent


def fetch_sources(stage: Stage) -> None:
    """VLLM's source and CUTLASS's headers; proof: every file had the pinned sha256."""
    tree = unpack(fetch(stage.line.component("vllm").file("sdist")), stage.folders.vllm, reuse=True)
    headers = cutlass_headers(stage.line)
    for folder in ("include", "tools/util/include"):
        shutil.copytree(headers / folder, stage.cutlass / folder, dirs_exist_ok=True)
    print(f"{tree.name}, CUTLASS {stage.line.cutlass.version}")


def patch_sources(stage: Stage) -> None:
    """Patch and verify vLLM's tree, then part it: what compiling reads, and the rest."""
    component = stage.line.component("vllm")
    examination = patch(stage.vllm, "vllm", component.version)
    verified = verify(stage.vllm, fetch(component.file("sdist")), "vllm", component.version)
    compile_inputs, rest = parts(stage)
    for path in sorted(stage.vllm.iterdir()):
        target = compile_inputs if path.name in COMPILE_INPUTS else rest
        target.mkdir(parents=True, exist_ok=True)
        shutil.move(path, target / path.name)  # not rename: that does not work between the layers of an image
    states = [str(finding.status) for finding in examination.findings]
    counted = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
    print(f"{verified} files verified; patches: {counted}")


def parts(stage: Stage) -> tuple[Path, Path]:
    """Where `patch_sources` leaves the compile inputs, and where the rest; both keep the tree's own name."""
    tree = f"vllm-{stage.line.component('vllm').version}"
    return stage.folders.root / "compile-inputs" / tree, stage.folders.root / "rest" / tree


def compile_native(stage: Stage) -> None:
    """Compile the unit and audit it; the report is written also when the audit fails."""
    stage.unit.require_of(stage.line)
    environment, compiler = _environment(stage)
    _, report, failures = compile_and_audit(
        stage.line,
        stage.unit,
        source=stage.vllm,
        cutlass=stage.cutlass,
        environment=environment,
        compiler=compiler,
        folders=stage.folders,
        jobs=stage.jobs or default_jobs(),
        watch=Stopwatch(),
    )
    write_json(stage.folders.report, report.to_json())
    build_report.show(report)
    raise_on(failures)


def make_wheel_of(stage: Stage) -> None:
    """The wheel; of a unit that links no libraries they are the official wheel's, and no GB10 code is in it."""
    environment, _ = _environment(stage)
    file = stage.line.component("vllm").file(host_wheel_kind())
    official, jobs = (file, fetch(file)), stage.jobs or default_jobs()
    if stage.unit.libraries:
        how = configuration(
            line=stage.line,
            source=stage.vllm,
            cutlass=stage.cutlass,
            environment=environment,
            folders=stage.folders,
            ccache=find_ccache(),
        )
        made = make_wheel(
            stage.line,
            how,
            environment,
            stage.folders,
            official=official,
            jobs=jobs,
            externals=stage.externals,
        )
    else:
        note(f"unit {stage.unit.name} links no library: all of them are the official wheel's. NOT FOR USE on a Spark")
        made = take_wheel(
            stage.line,
            stage.vllm,
            environment,
            stage.folders,
            official=official,
            jobs=jobs,
            externals=stage.externals,
        )
    print(f"{made.path} {made.size} sha256:{made.sha256}")


def compile_kernels(stage: Stage) -> None:
    """The wheel of kernels/, audited."""
    environment, _ = _environment(stage)
    packages, ccache = site_packages(environment.prefix), find_ccache()
    launchers = [f"-DCMAKE_{language}_COMPILER_LAUNCHER={ccache}" for language in ("CUDA", "CXX") if ccache]
    variables = environment.variables(
        {
            "CMAKE_ARGS": " ".join([f"-DTORCH_ROOT={packages / 'torch'}", *launchers]),
            "CUDACXX": str(environment.cuda_home / "bin" / "nvcc"),
            "MAX_JOBS": str(stage.jobs or default_jobs(peak=KERNEL_PEAK)),
        }
        | compiler_cache()
    )
    log = stage.folders.log("kernels")
    try:
        run(
            [*environment.pip_wheel, "--wheel-dir", stage.folders.wheels, CHECKOUT / "kernels" / "python"],
            env=variables,
            log=log,
        )
    except CommandFailedError as error:
        raise BuildFailedError(
            f"kernels/ could not be compiled:\n{error.what}", remedy=f"the whole output is in {log}"
        ) from error
    for wheel in stage.folders.wheels.glob("gb10_kernels-*.whl"):
        facts = audit(wheel)
        raise_on(check(facts, [Requirement.SM121]))
        print(wheel.name, *sorted({target for container in facts.containers for target in container.sass()}))


def prepare_packages(stage: Stage) -> None:
    """A CUDA_HOME and a patched FlashInfer in the environment that serves."""
    print(prepare(_given(stage), stage.line))


def compile_modules(stage: Stage) -> None:
    """FlashInfer's modules, compiled ahead for the environment that serves."""
    chosen = choose(load_modules(stage.line), stage.modules)
    report = jit_build.build(stage.line, chosen, python=_given(stage) / "bin" / "python", jobs=stage.jobs)
    print(", ".join(f"{one.name} ({', '.join(one.targets)})" for one in report.modules))


def _given(stage: Stage) -> Path:
    if stage.toolchain is None:
        raise UsageError("this stage works on an environment", remedy="name it: --toolchain FOLDER")
    return stage.toolchain


def _environment(stage: Stage) -> tuple[BuildEnvironment, HostCompiler]:
    compiler = check_compiler()
    if stage.toolchain is None:
        environment = build_environment(stage.line, compiler, stage.folders.log("environment"))
    else:
        environment = BuildEnvironment(prefix=stage.toolchain, lock=sha256_file(requirements_of(stage.line)))
        add_driver_stub(compose(environment.cuda_home), compiler)
    check_toolkit(environment.cuda_home)
    return environment, compiler


STAGES: Final[dict[str, Callable[[Stage], None]]] = {
    "sources": fetch_sources,
    "patched": patch_sources,
    "native": compile_native,
    "wheel": make_wheel_of,
    "kernels": compile_kernels,
    "packages": prepare_packages,
    "jit-cache": compile_modules,
}
"""By the names that the Dockerfile gives its stages."""
