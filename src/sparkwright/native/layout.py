"""Where a host build of one release line keeps its things."""

from dataclasses import dataclass
from pathlib import Path

from sparkwright.paths import BUILD


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The folders and files below `build/<line>`."""

    root: Path

    @property
    def lock(self) -> Path:
        """Held while a build works here."""
        return self.root / ".lock"

    @property
    def vllm(self) -> Path:
        """The source of vLLM is unpacked and patched here."""
        return self.root / "vllm"

    @property
    def flashinfer(self) -> Path:
        """FlashInfer's wheel is unpacked and patched here."""
        return self.root / "flashinfer"

    @property
    def native(self) -> Path:
        """CMake's and ninja's build tree."""
        return self.root / "native"

    @property
    def initial_cache(self) -> Path:
        """CMake's file of initial values."""
        return self.root / "initial-cache.cmake"

    @property
    def fetched(self) -> Path:
        """What CMake would clone goes here; a lean build leaves it empty."""
        return self.root / "fetchcontent"

    @property
    def measurements(self) -> Path:
        """One JSON line per compiler call of the latest run."""
        return self.root / "measurements.jsonl"

    @property
    def wheels(self) -> Path:
        """Finished wheels."""
        return self.root / "wheels"

    @property
    def report(self) -> Path:
        """The report for scripts."""
        return self.root / "report.json"

    def log(self, step: str) -> Path:
        """The whole output of the programs of one step."""
        return self.root / "logs" / f"{step}.log"


def layout(line: str) -> Layout:
    """The layout of one line in this checkout."""
    return Layout(root=BUILD / line)
