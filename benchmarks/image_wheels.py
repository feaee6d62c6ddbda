"""How large the image's locked aarch64 wheels are once slimmed, and compressed as image layers are.

`.venv/bin/python benchmarks/image_wheels.py STRIP RESULT` fetches every wheel of the default line's image, one by one
(4 GB in all), takes out what requirements/image-<line>.toml lists, and compresses the rest with zstd at two levels.
STRIP is a `strip` for aarch64 (Debian: binutils-aarch64-linux-gnu).
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from sparkwright.files import write_json
from sparkwright.image.contents import Contents, load_contents
from sparkwright.image.inventory import lock_name
from sparkwright.image.locked import Locked, read_lock
from sparkwright.image.target import SPARK
from sparkwright.image.wheels import Found, find_wheels
from sparkwright.paths import REQUIREMENTS
from sparkwright.pins import default_line, load_line
from sparkwright.report import note
from sparkwright.sources.index import Index

LEVELS = (3, 11)


def measure(found: Found, contents: Contents, strip: Path) -> dict[str, Any]:
    """One wheel: bytes as wheel, slimmed, and compressed."""
    with tempfile.TemporaryDirectory() as scratch, Index() as index:
        wheel, tree = Path(scratch, found.name), Path(scratch, "tree")
        with index.open(found.address) as pieces, wheel.open("wb") as stream:
            for piece in pieces:
                stream.write(piece)
        row: dict[str, Any] = {"project": found.release.project, "wheel": wheel.stat().st_size}
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(tree)
            names = [name for name in archive.namelist() if not name.endswith("/")]
        for one in (*contents.removed, *contents.unbuilt):
            if one.project == found.release.project:
                for name in one.pick(names):
                    (tree / name).unlink()
        for one in contents.stripped:
            if one.project == found.release.project:
                for name in one.pick(names):
                    subprocess.run([strip, "--strip-debug", tree / name], check=True)
        row["kept"] = sum(path.stat().st_size for path in tree.rglob("*") if path.is_file())
        for level in LEVELS:
            packing = f"tar -C '{tree}' -cf - . | zstd -{level} -q -c | wc -c"
            row[f"zstd_{level}"] = int(subprocess.run(["bash", "-c", packing], check=True, capture_output=True).stdout)
        return row


def main(strip: Path, result: Path) -> int:
    """Measure all wheels, ours as the official one."""
    line = default_line()
    official = load_line(line).component("vllm").file("wheel-aarch64")
    vllm = Locked(project="vllm", version=line, sha256=frozenset({official.sha256}))  # type: ignore[arg-type]
    rows = []
    for found in find_wheels((*read_lock(REQUIREMENTS / lock_name(line), SPARK), vllm), SPARK):
        rows.append(measure(found, load_contents(line), strip))
        note(f"{rows[-1]}")
    totals = {key: sum(row[key] for row in rows) for key in rows[0] if key != "project"}
    write_json(result, {"line": line, "totals": totals, "wheels": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
