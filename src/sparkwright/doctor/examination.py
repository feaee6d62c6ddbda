"""All checks of a machine, in order, with whatever GPU there is."""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Final, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from sparkwright.doctor import about, backend_probe, device_checks, device_program, driver, kernels_probe, nvfp4_probe
from sparkwright.doctor.driver import Driver, NoGpuError
from sparkwright.doctor.host_checks import HOST_CHECKS, clock
from sparkwright.doctor.machine import Machine
from sparkwright.doctor.model import Report, Result, failed, passed, shorten, skipped
from sparkwright.doctor.software_checks import SOFTWARE_CHECKS, with_driver
from sparkwright.errors import CommandFailedError, SparkwrightError
from sparkwright.pins import Line
from sparkwright.run import run

_Answer = TypeVar("_Answer", bound=BaseModel)
_SECONDS: Final = "600"
_SPELLED: Final = {"rdma": "RDMA", "flashinfer_modules": "FlashInfer modules"}
ON_A_GPU: Final = ("driver", "GPU", "GPU memory", "E2M1 conversion", "bandwidth", "NVFP4 product", "own kernels")
"""The checks that need one, in order."""


def examine(
    machine: Machine,
    line: Line,
    *,
    ask: Callable[[], Driver] = driver.query,
    doing: Callable[[str], object] = lambda _: None,
) -> Report:
    """Run every check; each one ends in a result, whatever goes wrong in it."""
    return Report(results=tuple(_results(machine, line, ask=ask, doing=doing)))


def _results(
    machine: Machine, line: Line, *, ask: Callable[[], Driver], doing: Callable[[str], object]
) -> Iterator[Result]:
    for host_check in HOST_CHECKS:
        yield _safely(_name(host_check), partial(host_check, machine))
    stored = about.read(about.location())
    yield clock({"built": stored.built} if stored else {})
    for check in SOFTWARE_CHECKS:
        doing(_name(check))
        yield _safely(_name(check), partial(check, machine, line))
    try:
        found = ask()
    except NoGpuError as error:
        doing("NVFP4 backend")
        yield _safely("NVFP4 backend", lambda: _backend(machine, real=False))
        yield from (skipped(name, reason=str(error)) for name in ON_A_GPU)
        return
    doing("GPU")
    yield from _on_gpu(machine, found)


def _on_gpu(machine: Machine, found: Driver) -> Iterator[Result]:
    gpu = found.gpus[0]
    yield device_checks.driver(found, kernel_module(machine))
    yield device_checks.gpu(gpu)
    yield device_checks.gpu_memory(gpu, machine.meminfo().get("MemTotal"))
    home = machine.cuda_home()
    if home is None:
        yield from (skipped(name, reason="there is no nvcc to compile for it") for name in ON_A_GPU[3:5])
    else:
        try:
            with tempfile.TemporaryDirectory() as scratch:
                program = device_program.compile_program(home, gpu.target, Path(scratch), machine.environment)
                result = device_program.run_program(program)
        except SparkwrightError as error:
            why = error.what.strip().splitlines()[-1]
            yield failed("E2M1 conversion", f"the program for {gpu.target} did not finish", reason=why)
            yield skipped("bandwidth", reason="the program that measures it did not finish")
        else:
            yield device_checks.e2m1(result, gpu)
            yield device_checks.bandwidth(result, gpu)
    if gpu.capability[0] != 12:
        yield skipped("NVFP4 product", reason="vLLM's operator and this image's code are for compute capability 12.x")
    else:
        yield _safely("NVFP4 product", lambda: _product(machine))
    yield _safely("NVFP4 backend", lambda: _backend(machine, real=True))
    yield _safely("own kernels", lambda: _own_kernels(machine))


def kernel_module(machine: Machine) -> str:
    """The release of the driver's kernel module."""
    words = machine.text("proc/driver/nvidia/version").split()
    return next((word for word in words if word[0].isdigit() and word.count(".") >= 1), "")


def _product(machine: Machine) -> Result:
    if machine.installed.package("vllm") is None:
        return skipped("NVFP4 product", reason="vLLM is not installed for this Python")
    return device_checks.product(_probe(machine, nvfp4_probe, device_checks.Product))


def _backend(machine: Machine, *, real: bool) -> Result:
    name = "NVFP4 backend"
    if machine.installed.package("vllm") is None:
        return skipped(name, reason="vLLM is not installed for this Python")
    found = _probe(machine, backend_probe, device_checks.Choice, *([] if real else ["--as-gb10"]))
    return device_checks.choice(found, really=real)


def _own_kernels(machine: Machine) -> Result:
    name = "own kernels"
    if machine.installed.package("gb10_kernels") is None:
        return skipped(name, reason="gb10_kernels is not installed: vLLM's own kernels are used")
    results = json.loads(_last_line(machine, kernels_probe))
    wrong = [one for one in results if not one["passed"]]
    if wrong:
        return failed(
            name,
            f"{len(wrong)} of {len(results)} fail: {shorten([one['name'] for one in wrong])}",
            reason=str(wrong[0]["detail"]),
            remedy="do not enable them; report it with the output of --json",
        )
    return passed(name, f"{len(results)} agree with their references")


def _probe(machine: Machine, module: ModuleType, answer: type[_Answer], *words: str) -> _Answer:
    return TypeAdapter(answer).validate_json(_last_line(machine, module, *words))


def _last_line(machine: Machine, module: ModuleType, *words: str) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        environment, _ = with_driver(machine, Path(scratch))
        script = Path(module.__file__ or "")
        return run(["timeout", _SECONDS, sys.executable, script, *words], env=environment).strip().splitlines()[-1]


def _name(check: Callable[..., Result]) -> str:
    return _SPELLED.get(check.__name__, check.__name__.replace("_", " "))


def _safely(name: str, check: Callable[[], Result]) -> Result:
    """A check that could not be carried out is a failed one, and does not end the others."""
    try:
        return check()
    except CommandFailedError as error:
        why = _complaint(error.what)
    except SparkwrightError as error:
        why = error.what
    except (OSError, ValueError, ValidationError) as error:
        why = f"{type(error).__name__}: {error}"
    return failed(name, "the check could not be carried out", reason=why.splitlines()[0])


def _complaint(output: str) -> str:
    """The last line of a failed program's output that is no part of a traceback."""
    lines: Sequence[str] = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
