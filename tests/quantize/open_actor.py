"""Do what Ray does on a node when a run begins: make an actor and open it."""

import argparse
from pathlib import Path

from sparkwright.quantize.actor import LayerActor
from sparkwright.quantize.options import Calibration, Options
from sparkwright.quantize.source import read_source


def main() -> None:
    """Open an actor; `--other` is the model of the first node."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--other", type=Path)
    parser.add_argument("--device", default="cpu")
    words = parser.parse_args()
    options = Options(
        source=words.model,
        output=Path("none"),
        calibration=Calibration(data=""),
        device=words.device,
        scratch=words.scratch,
    )
    actor = LayerActor(options, 1, "run/0", read_source(words.other or words.model).copies_digest, None)
    about = actor.open()
    print(sorted(one.name for one in Path(about.folder).iterdir()), actor.close())


if __name__ == "__main__":
    main()
