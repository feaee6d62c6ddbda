"""`python -m sparkwright.image.prepare ENVIRONMENT`: make installed packages what GB10 needs of them.

The CUDA wheels become a CUDA_HOME that FlashInfer, Triton and DeepGEMM can compile with, and FlashInfer is patched.
"""

import sys
from pathlib import Path

from sparkwright.errors import SparkwrightError
from sparkwright.native.compiler import host_compiler
from sparkwright.native.cuda_home import add_driver_stub, compose
from sparkwright.native.environment import site_packages
from sparkwright.native.host import check_toolkit
from sparkwright.native.source import patch
from sparkwright.native.toolchain import WHEEL_PREFIX
from sparkwright.pins import default_line, load_line
from sparkwright.report import note


def prepare(environment: Path, line_name: str) -> str:
    """Compose, check and patch; what was done, in a line.

    Raises:
        PatchDriftError: the toolkit or FlashInfer is not the one that the series was written for.
    """
    line = load_line(line_name)
    packages = site_packages(environment)
    cuda_home = compose(packages / WHEEL_PREFIX)
    add_driver_stub(cuda_home, host_compiler())
    check_toolkit(cuda_home)
    examination = patch(packages, "flashinfer", line.component("flashinfer-python").version)
    states = {finding.patch.name: str(finding.status) for finding in examination.findings}
    return f"{cuda_home}; FlashInfer: {', '.join(f'{name} {state}' for name, state in states.items())}"


def main(environment: Path, line_name: str) -> int:
    """Prepare an environment."""
    try:
        print(prepare(environment, line_name or default_line()))
    except SparkwrightError as error:
        note(f"sparkwright: {error}")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""))
