"""`python -m sparkwright.native STAGE`: one step of a build, for a stage of the Dockerfile.

It is not part of the command line, because that needs every room of the package, and a change of any of them would
compile vLLM again: this needs `pins`, `sources`, `patching`, `audit` and `native` only.
"""

import argparse
import sys
from pathlib import Path

from sparkwright.errors import SparkwrightError
from sparkwright.native.stages import STAGES, Stage
from sparkwright.native.units import UNITS, unit
from sparkwright.native.wheel import Externals, choose_externals
from sparkwright.pins import default_line, load_line
from sparkwright.report import note


def main() -> int:
    """Run one stage."""
    parser = argparse.ArgumentParser(prog="python -m sparkwright.native", allow_abbrev=False)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--line", default="", help="release line; by default the newest")
    parser.add_argument("--units", default="native", choices=UNITS, help="what to compile (default: %(default)s)")
    parser.add_argument("--jobs", default="", help="compilers at once; by default as memory allows")
    parser.add_argument("--modules", default="", help="FlashInfer's modules, separated by commas; by default the list")
    parser.add_argument("--externals", default=Externals.WHEEL.value, help="wheel, or compiled (default: %(default)s)")
    parser.add_argument("--toolchain", type=Path, help="the environment to work with")
    arguments = parser.parse_args()
    try:
        stage = Stage(
            line=load_line(arguments.line or default_line()),
            unit=unit(arguments.units),
            jobs=int(arguments.jobs) if arguments.jobs else None,
            modules=tuple(name for name in arguments.modules.split(",") if name),
            toolchain=arguments.toolchain,
            externals=choose_externals(arguments.externals),
        )
        STAGES[arguments.stage](stage)
    except SparkwrightError as error:
        note(f"sparkwright: {error}")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
