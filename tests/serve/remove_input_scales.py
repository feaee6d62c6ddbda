"""Copy a checkpoint without its input scales, as a calibration that never ran leaves it; run by the serving Python."""

import shutil
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file


def main() -> None:
    """Copy from the first folder to the second."""
    source, target = map(Path, sys.argv[1:])
    shutil.copytree(source, target)
    tensors = load_file(source / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(".input_scale")}
    assert len(kept) < len(tensors)
    save_file(kept, target / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
