"""Runs in a process of its own: the self-test of the project's own kernels, where they are installed."""

import json
import sys


def main() -> None:
    """Run it on the GPU that torch sees, and print the results; without one they fail, as the kernels are for GPUs."""
    printed, sys.stdout = sys.stdout, sys.stderr
    from gb10_kernels import selftest  # type: ignore[import-not-found]

    results = [{"name": one.name, "passed": one.passed, "detail": one.detail} for one in selftest.run()]
    print(json.dumps(results), file=printed)


if __name__ == "__main__":
    main()
