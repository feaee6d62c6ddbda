"""`python -m sparkwright.image.layers LOCK FOLDER`: part a lock into the layers of the image, least changing first.

Each layer becomes a folder that holds all that its installation depends on, so that BuildKit installs a layer again
only when something in that folder has changed.
"""

import json
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from packaging.utils import canonicalize_name

from sparkwright.errors import ConfigurationError, SparkwrightError
from sparkwright.image import install_layer
from sparkwright.image.contents import Contents, load_contents
from sparkwright.image.size import layer_of
from sparkwright.paths import REQUIREMENTS
from sparkwright.pins import default_line
from sparkwright.report import note

FOLDERS: Final[Mapping[str, str]] = {
    "CUDA libraries and compiler": "cuda",
    "torch and Triton": "torch",
    "other packages": "other",
    "vLLM and FlashInfer": "flashinfer",
}
"""The layers of the size report, and the folder of each."""
_PROJECT: Final = re.compile(r"^([A-Za-z0-9._-]+)==", re.MULTILINE)


def write_layers(lock: Path, contents: Contents, into: Path) -> dict[str, int]:
    """Write the folders; how many releases each has.

    Raises:
        ConfigurationError: the list of files to take out names a project that is not in the lock.
    """
    entries: dict[str, list[str]] = {name: [] for name in FOLDERS}
    layers: dict[str, str] = {}
    for entry in re.split(r"\n(?=[A-Za-z0-9])", lock.read_text(encoding="utf-8")):
        if found := _PROJECT.match(entry):
            project = canonicalize_name(found[1])
            layers[project] = layer_of(project)
            entries[layers[project]].append(re.sub(r"\n\s*#.*", "", entry.rstrip()))
    for one in (*contents.removed, *contents.stripped):
        if one.project not in layers:
            raise ConfigurationError(
                f"{one.project} is to lose files, but {lock.name} does not have it",
                remedy="remove the entry from requirements/image-<line>.toml",
            )
    for layer, name in FOLDERS.items():
        folder = into / name
        folder.mkdir(parents=True)
        (folder / "requirements.txt").write_text("\n".join(entries[layer]) + "\n", encoding="utf-8")
        lists = {
            what: [pattern for one in chosen if layers[one.project] == layer for pattern in one.files]
            for what, chosen in (("removed", contents.removed), ("stripped", contents.stripped))
        }
        (folder / "slim.json").write_text(json.dumps(lists, indent=1), encoding="utf-8")
        shutil.copyfile(install_layer.__file__, folder / "install_layer.py")
    return {name: len(entries[layer]) for layer, name in FOLDERS.items()}


def main(lock_name: str, into: Path) -> int:
    """Write the layers of a lock of requirements/."""
    try:
        counted = write_layers(REQUIREMENTS / lock_name, load_contents(default_line()), into)
    except SparkwrightError as error:
        note(f"sparkwright: {error}")
        return error.exit_code
    print(", ".join(f"{name}: {count} packages" for name, count in counted.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
