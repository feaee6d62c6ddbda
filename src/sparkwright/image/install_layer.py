"""Install one layer of the image's packages, then take out of them what the image does not need.

`python3 install_layer.py LAYER ENVIRONMENT`, where LAYER is a folder that `layers.py` wrote. This file uses nothing but
the standard library and imports nothing of the package: a layer is installed again only when its own folder changes.
"""

import json
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path


def main(layer: Path, environment: Path) -> int:
    """Install, remove, strip; 0 when every pattern met a file."""
    python = environment / "bin" / "python"
    pip: list[str | Path] = [
        python,
        "-m",
        "pip",
        "install",
        "--no-input",
        "--no-compile",
        "--disable-pip-version-check",
        "--quiet",
    ]
    done = subprocess.run([*pip, "--no-deps", "--require-hashes", "-r", layer / "requirements.txt"], check=False)
    if done.returncode:
        print(f"sparkwright: the layer {layer.name} could not be installed (see above).", file=sys.stderr)
        print("What to do: if a hash differs, compare the package index with requirements/.", file=sys.stderr)
        return done.returncode
    (packages,) = environment.glob("lib/python3.*/site-packages")
    files = {path.relative_to(packages).as_posix() for path in packages.rglob("*") if path.is_file()}
    lists = json.loads((layer / "slim.json").read_text(encoding="utf-8"))
    picked: dict[str, set[str]] = {}
    for what in ("removed", "stripped"):
        picked[what] = set()
        for pattern in lists[what]:
            matched = {name for name in files if fnmatchcase(name, pattern)}
            if not matched:
                print(f"sparkwright: the installed packages have no file {pattern} ({what}).", file=sys.stderr)
                print("What to do: correct requirements/image-<line>.toml.", file=sys.stderr)
                return 78
            picked[what] |= matched
    for name in sorted(picked["stripped"]):
        subprocess.run(["strip", "--strip-debug", packages / name], check=True)  # noqa: S607
    for name in picked["removed"]:
        (packages / name).unlink()
    print(f"{layer.name}: {len(files)} files in the environment, {len(picked['removed'])} taken out")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
