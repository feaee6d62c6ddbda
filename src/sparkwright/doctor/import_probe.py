"""Runs in a process of its own: import the modules that are named, and print as JSON why some cannot be."""

import importlib
import json
import sys


def main() -> None:
    """Import `sys.argv[1:]` in order."""
    printed, sys.stdout = sys.stdout, sys.stderr  # importing vLLM logs
    faults = {}
    for name in sys.argv[1:]:
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001  whatever a package raises is the answer
            faults[name] = f"{name}: {type(error).__name__}: {error}".splitlines()[0]
    print(json.dumps(faults), file=printed)


if __name__ == "__main__":
    main()
