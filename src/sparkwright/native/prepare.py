"""Make the packages that were installed for serving what GB10 needs of them."""

from pathlib import Path

from sparkwright.native.compiler import host_compiler
from sparkwright.native.cuda_home import add_driver_stub, compose
from sparkwright.native.environment import site_packages
from sparkwright.native.host import check_toolkit
from sparkwright.native.source import patch
from sparkwright.native.toolchain import WHEEL_PREFIX
from sparkwright.pins import Line


def prepare(environment: Path, line: Line) -> str:
    """Make the CUDA wheels a CUDA_HOME to compile with while serving, and patch FlashInfer; what was done, in a line.

    Raises:
        PatchDriftError: the toolkit or FlashInfer is not the one that the series was written for.
    """
    packages = site_packages(environment)
    cuda_home = compose(packages / WHEEL_PREFIX)
    add_driver_stub(cuda_home, host_compiler())
    check_toolkit(cuda_home)
    examination = patch(packages, "flashinfer", line.component("flashinfer-python").version)
    states = {finding.patch.name: str(finding.status) for finding in examination.findings}
    return f"{cuda_home}; FlashInfer: {', '.join(f'{name} {state}' for name, state in states.items())}"
