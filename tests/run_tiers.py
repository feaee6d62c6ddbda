"""Run the checks of a tier one after another, all of them, and end with one summary."""

import argparse
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
BIN = CHECKOUT / ".venv" / "bin"
SHELL_FILES = (
    "build.sh",
    "test.sh",
    ".ci/run",
    "requirements/ensure-venv.sh",
    "tests/image/enter_engine.sh",
    "tests/image/small-entrypoint.sh",
)

TIERS = {
    "fast": "not sources and not compiles and not quantizes and not serves and not image and not long",
    "full": "not long",
    "all": "",
}


def lint() -> dict[str, list[str]]:
    """The static checks, by name."""
    shell = [*SHELL_FILES, *(str(path.relative_to(CHECKOUT)) for path in sorted(CHECKOUT.glob("patches/cuda/*.sh")))]
    shell += [name for name in ("push.sh", "entrypoint.sh") if (CHECKOUT / name).exists()]
    checks = {
        "ruff": ["ruff", "check", "."],
        "format": ["ruff", "format", "--check", "."],
        "types": ["mypy"],
        "imports": ["lint-imports"],
        "shellcheck": ["shellcheck", "--external-sources", *shell],
        "shfmt": ["shfmt", "--diff", *shell],
        "pins": ["sparkwright", "pins", "check"],
    }
    if (CHECKOUT / "Dockerfile").exists():
        checks["hadolint"] = ["hadolint", "Dockerfile"]
    return checks


def run(command: list[str]) -> bool:
    """Run one check with its output shown; whether it passed."""
    print(f"\n+ {shlex.join(command)}", flush=True)
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    return subprocess.run([BIN / command[0], *command[1:]], cwd=CHECKOUT, env=environment, check=False).returncode == 0


def main() -> int:
    """Run the tier that the arguments name; 0 when every check passed."""
    parser = argparse.ArgumentParser(prog="./test.sh", description=__doc__, allow_abbrev=False)
    tier = parser.add_mutually_exclusive_group()
    tier.add_argument("--fast", dest="tier", action="store_const", const="fast", help="about two minutes, no network")
    tier.add_argument("--all", dest="tier", action="store_const", const="all", help="also what takes hours")
    parser.set_defaults(tier="full")
    arguments, pytest_arguments = parser.parse_known_args()
    checks = lint()
    checks["tests"] = ["pytest", "-m", TIERS[arguments.tier], "--durations=10", *pytest_arguments]
    results: list[tuple[str, bool, float]] = []
    for name, command in checks.items():
        start = time.monotonic()
        passed = run(command)
        results.append((name, passed, time.monotonic() - start))
    print(f"\n{'check':<12}{'result':<10}{'seconds':>8}")
    for name, passed, seconds in results:
        print(f"{name:<12}{'passed' if passed else 'FAILED':<10}{seconds:>8.1f}")
    failed = sum(not passed for _, passed, _ in results)
    print(f"\nchecks: {len(results) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
