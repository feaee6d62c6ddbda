"""Compile FlashInfer's modules through ninja files of its own making, audit them, and put them where it looks first."""

import json
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from sparkwright.audit import Audit, audit, check, raise_on
from sparkwright.errors import CommandFailedError, ConfigurationError, PatchDriftError
from sparkwright.files import exclusive_lock, explain_write_errors, sha256_bytes, sha256_file, write_atomic, write_json
from sparkwright.native import flashinfer_specs, measure
from sparkwright.native.compile import Measurement, compile_progress, read_measurements, run_ninja
from sparkwright.native.compiler import host_compiler
from sparkwright.native.configure import STRIP
from sparkwright.native.cuda_home import add_driver_stub, compose
from sparkwright.native.environment import BuildEnvironment, site_packages
from sparkwright.native.jit_modules import REPORT, JitModule
from sparkwright.native.jobs import default_jobs
from sparkwright.native.preflight import check_space
from sparkwright.native.toolchain import digest
from sparkwright.patching.engine import examine, require_no_drift
from sparkwright.patching.model import Status
from sparkwright.paths import cache
from sparkwright.pins import Line, load_toolchain
from sparkwright.report import note
from sparkwright.run import run

SMALL_MB: Final = 2000
"""Modules whose compilers stay below this are compiled together, as many at once as the cores allow."""
_OF_ONE_RUN: Final = {"objects", "cpu_seconds", "peak_mb", "compiled"}
_ROOM: Final = 2_000_000_000
_OUTPUT: Final = re.compile(r" -o (\S+)")


class ModuleReport(BaseModel):
    """One module: what it cost and what it holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    made_from: str
    """Digest of everything that decides its content: FlashInfer with its patches, the compiler, the architecture."""
    sha256: str
    size: int
    objects: int = 0
    """How many were compiled by this run; what it cost and how many there were is not stored beside a module."""
    cpu_seconds: float = 0.0
    peak_mb: int = 0
    compiled: bool = False
    targets: tuple[str, ...]
    fp4_mma: int
    e2m1_convert: int


class JitReport(BaseModel):
    """What lies ready after a run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    line: str
    flashinfer: str
    arch_list: tuple[str, ...]
    folder: str
    modules: tuple[ModuleReport, ...]


@dataclass(frozen=True, kw_only=True)
class Described:
    """What FlashInfer says of one module."""

    name: str
    ninja: Path
    library: Path


@dataclass(frozen=True, kw_only=True)
class Description:
    """What FlashInfer says of all of them."""

    flashinfer: str
    folder: Path
    modules: tuple[Described, ...]


def build(
    line: Line, modules: Sequence[JitModule], *, python: Path, jobs: int | None = None, work: Path | None = None
) -> JitReport:
    """Compile, audit and install the modules for the FlashInfer of one Python; what is up to date is kept.

    An interrupted run goes on at the object where it stopped. A module is installed in one step, and only when its
    machine code is what it must be.

    Raises:
        ConfigurationError: FlashInfer or CUDA's compiler is not there, or FlashInfer is not the pinned release.
        PatchDriftError: FlashInfer is not patched.
        BuildFailedError: compiling failed.
        AuditFailedError: a module's machine code does not run on 12.1; the others were installed.
    """
    environment = _environment(python)
    made_from = _check_flashinfer(line, environment)
    place = work or cache() / "flashinfer-modules" / made_from
    check_space(place, _ROOM)
    with exclusive_lock(place / ".lock", doing="compiling FlashInfer modules"):
        variables = environment.variables(_variables(line, place))
        described = describe(environment, modules, variables)
        kept = _kept(described.folder, modules, made_from)
        measured = _compile(
            [module for module in modules if module.name not in kept],
            described,
            environment,
            variables,
            place=place,
            jobs=jobs,
        )
        reports, failures = [], []
        for module in modules:
            if old := kept.get(module.name):
                reports.append(old)
                continue
            (one,) = (one for one in described.modules if one.name == module.name)
            facts = audit(one.library)
            found = check(facts, module.require)
            failures += found
            if not found:
                _install(one.library, described.folder / module.name / one.library.name)
                reports.append(_report(module, one.library, facts, measured, made_from))
        report = JitReport(
            line=line.name,
            flashinfer=described.flashinfer,
            arch_list=line.arch_list,
            folder=str(described.folder),
            modules=tuple(reports),
        )
        _write_report(described.folder, report)
    raise_on(failures)
    return report


def describe(environment: BuildEnvironment, modules: Sequence[JitModule], variables: Mapping[str, str]) -> Description:
    """Let FlashInfer write the ninja files of these modules.

    Raises:
        ConfigurationError: a generator is not there, or makes a module of another name.
    """
    wanted = [module.model_dump(mode="json", include={"name", "generator", "arguments"}) for module in modules]
    script = Path(flashinfer_specs.__file__)
    try:
        answer = json.loads(run([environment.python, script], env=variables, stdin=json.dumps(wanted)))
    except CommandFailedError as error:
        raise ConfigurationError(
            f"FlashInfer did not describe its modules:\n{error.what}",
            cause="the release is not the one that the list was written for, or one of its dependencies is missing",
        ) from error
    described = tuple(
        Described(name=one["name"], ninja=Path(one["ninja"]), library=Path(one["library"])) for one in answer["modules"]
    )
    for module, one in zip(modules, described, strict=True):
        if module.name != one.name:
            raise ConfigurationError(
                f"{module.generator} makes {one.name}, not {module.name}",
                cause="FlashInfer names its modules by what they are made for; the arguments of the list differ",
                remedy=f"correct {module.name} in the list of the line",
            )
    return Description(flashinfer=answer["flashinfer"], folder=Path(answer["aot"]), modules=described)


def waves(modules: Sequence[JitModule]) -> list[list[JitModule]]:
    """The modules in the order in which they are compiled: the small ones together, then the large ones together."""
    small = [module for module in modules if module.peak_mb <= SMALL_MB]
    large = [module for module in modules if module.peak_mb > SMALL_MB]
    return [wave for wave in (small, large) if wave]


def _environment(python: Path) -> BuildEnvironment:
    environment = BuildEnvironment(prefix=python.absolute().parent.parent, lock="")
    if not environment.python.exists() or not site_packages(environment.prefix).is_dir():
        raise ConfigurationError(
            f"{python} is not the Python of an environment of this Python's version",
            remedy="name the one that FlashInfer is installed for: --python /opt/venv/bin/python",
        )
    add_driver_stub(compose(environment.cuda_home), host_compiler())
    return environment


def _check_flashinfer(line: Line, environment: BuildEnvironment) -> str:
    """Make sure that it is the pinned release with the series applied; the digest of what decides the modules."""
    version = line.component("flashinfer-python").version
    examination = examine(site_packages(environment.prefix), "flashinfer", version)
    require_no_drift(examination)
    needed = [finding.patch.name for finding in examination.findings if finding.status is Status.NEEDED]
    if needed:
        raise PatchDriftError(
            f"FlashInfer is not patched: {', '.join(needed)} is missing",
            remedy=f"sparkwright patch apply --component flashinfer --version {version} "
            f"--tree {site_packages(environment.prefix)}",
        )
    receipt = examination.receipt.model_dump_json() if examination.receipt else ""
    parts = (version, *line.arch_list, digest(load_toolchain()), receipt)
    return sha256_bytes("\n".join(parts).encode())[:16]


def _variables(line: Line, place: Path) -> dict[str, str]:
    launcher = [sys.executable, "-I", "-S", str(Path(measure.__file__)), str(place / "measurements.jsonl")]
    return {
        "FLASHINFER_WORKSPACE_BASE": str(place),
        "FLASHINFER_CUDA_ARCH_LIST": " ".join(line.arch_list),
        "FLASHINFER_NVCC_LAUNCHER": shlex.join(launcher),
        "FLASHINFER_EXTRA_LDFLAGS": f"-Xlinker {STRIP}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _compile(
    modules: Sequence[JitModule],
    described: Description,
    environment: BuildEnvironment,
    variables: Mapping[str, str],
    *,
    place: Path,
    jobs: int | None,
) -> dict[str, Measurement]:
    measurements, log = place / "measurements.jsonl", place / "compile.log"
    measurements.unlink(missing_ok=True)
    ninja_of = {one.name: one.ninja for one in described.modules}
    for number, wave in enumerate(waves(modules)):
        file = place / f"wave-{number}.ninja"
        lines = ["ninja_required_version = 1.3", *(f"subninja {ninja_of[module.name]}" for module in wave), ""]
        write_atomic(file, "\n".join(lines))
        at_once = jobs or default_jobs(peak=max(module.peak_mb for module in wave) * 1_000_000)
        command: list[str | Path] = [environment.tool("ninja"), "-C", place, "-f", file, f"-j{at_once}"]
        waiting = [one for line in run([*command, "-n"], env=variables).splitlines() if (one := _step(line))]
        if not waiting:
            continue
        note(f"compiling {', '.join(module.name for module in wave)}: {len(waiting)} steps, {at_once} at once")
        with compile_progress(waiting, _usual_costs(wave, waiting)) as show:
            run_ninja([], command, variables, log, _telling(show))
    return read_measurements(measurements)


def _telling(show: Callable[[str], None]) -> Callable[[str], None]:
    """Hand over the step that a line is about, where the progress looks for it: after the last space."""
    return lambda line: show(f" {_step(line)}")


def _step(line: str) -> str:
    """What a line of ninja's is about, as `module/object`; nothing where it is no step."""
    found = _OUTPUT.search(line)
    return "/".join(Path(found[1]).parts[-2:]) if found else ""


def _usual_costs(wave: Sequence[JitModule], waiting: Sequence[str]) -> dict[str, float]:
    """About what each step costs: it follows the memory that the compiler takes."""
    peaks = {module.name: module.peak_mb for module in wave}
    usual = median(peaks.values())
    return {step: peaks.get(step.partition("/")[0], usual) / 100 for step in waiting}


def _kept(folder: Path, modules: Sequence[JitModule], made_from: str) -> dict[str, ModuleReport]:
    """The modules that lie there already, made from the same things."""
    earlier = read_report(folder)
    wanted = {module.name for module in modules}
    return {
        one.name: one
        for one in (earlier.modules if earlier else ())
        if one.name in wanted
        and one.made_from == made_from
        and (library := folder / one.name / f"{one.name}.so").is_file()
        and sha256_file(library) == one.sha256
    }


def read_report(folder: Path) -> JitReport | None:
    """The report in FlashInfer's folder for modules built ahead, None where there is none of ours."""
    try:
        return JitReport.model_validate_json((folder / REPORT).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _write_report(folder: Path, report: JitReport) -> None:
    """Store the report together with what earlier runs installed and still lies there."""
    new = {one.name for one in report.modules}
    earlier = read_report(folder)
    others = [
        one
        for one in (earlier.modules if earlier else ())
        if one.name not in new and (folder / one.name / f"{one.name}.so").is_file()
    ]
    if report.modules or others:
        everything = report.model_copy(update={"modules": (*others, *report.modules)})
        # The same modules give the same file, so that an image can be compared with another build of it.
        write_json(folder / REPORT, everything.model_dump(mode="json", exclude={"modules": {"__all__": _OF_ONE_RUN}}))


def _install(library: Path, target: Path) -> None:
    with explain_write_errors(target):
        write_atomic(target, library.read_bytes(), mode=0o755)


def _report(
    module: JitModule, library: Path, facts: Audit, measured: Mapping[str, Measurement], made_from: str
) -> ModuleReport:
    mine = [one for path, one in measured.items() if Path(path).parent.name == module.name]
    total = facts.totals()
    return ModuleReport(
        name=module.name,
        made_from=made_from,
        sha256=sha256_file(library),
        size=library.stat().st_size,
        objects=len(mine),
        cpu_seconds=round(sum(one.cpu_seconds for one in mine), 1),
        peak_mb=max((one.peak_mb for one in mine), default=0),
        compiled=True,
        targets=tuple(sorted({target for container in facts.containers for target in container.sass()})),
        fp4_mma=total.fp4_mma,
        e2m1_convert=total.e2m1_convert,
    )
