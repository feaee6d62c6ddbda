"""Runs in a process of its own: the self-test of the project's own kernels, where they are installed."""

import json
import sys


def main() -> None:
    """Run it on the first GPU, and print the results."""
    printed, sys.stdout = sys.stdout, sys.stderr
    from gb10_kernels import selftest  # type: ignore[import-not-found]

    results = [{"name": one.name, "passed": one.passed, "detail": one.detail} for one in selftest.run("cuda")]
    print(json.dumps(results), file=printed)


if __name__ == "__main__":
    main()
