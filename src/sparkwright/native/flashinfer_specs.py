"""Runs in the Python that has FlashInfer: write the ninja files of some modules, and say where everything lies.

Reads a JSON list of modules (name, generator, arguments) from stdin and writes one JSON object to stdout. FlashInfer's
own generators describe the modules; nothing is compiled here. Only the standard library is imported beside FlashInfer
and torch, because nothing of this project is installed there.
"""

import importlib
import json
import sys


def main() -> None:
    """Describe the modules of stdin."""
    wanted = json.load(sys.stdin)
    printed, sys.stdout = sys.stdout, sys.stderr  # importing FlashInfer may print
    from flashinfer.jit import env  # type: ignore[import-not-found]
    from flashinfer.version import __version__  # type: ignore[import-not-found]

    modules = []
    for one in wanted:
        module, _, function = one["generator"].partition(":")
        generate = getattr(importlib.import_module(module), function)
        spec = generate(**{name: _value(value) for name, value in one["arguments"].items()})
        spec.write_ninja()
        modules.append({"name": spec.name, "ninja": str(spec.ninja_path), "library": str(spec.jit_library_path)})
    answer = {"flashinfer": __version__, "aot": str(env.FLASHINFER_AOT_DIR), "modules": modules}
    print(json.dumps(answer), file=printed)


def _value(value: object) -> object:
    """`torch.bfloat16` as torch's own; anything else as it is."""
    if isinstance(value, str) and value.startswith("torch."):
        return getattr(importlib.import_module("torch"), value.removeprefix("torch."))
    return value


if __name__ == "__main__":
    main()
