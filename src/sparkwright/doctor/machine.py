"""The machine as the checks see it; tests give another root folder, environment and set of packages."""

import os
import platform
import resource
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sparkwright.doctor.installed import Installed


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where to look."""

    root: Path = Path("/")
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    installed: Installed = field(default_factory=Installed.here)
    architecture: str = field(default_factory=platform.machine)
    memlock: int = field(default_factory=lambda: resource.getrlimit(resource.RLIMIT_MEMLOCK)[0])

    def text(self, path: str) -> str:
        """A small file of the system, empty when it is missing or cannot be read."""
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def names(self, path: str) -> list[str]:
        """What lies in a folder of the system."""
        folder = self.root / path
        return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []

    def meminfo(self) -> dict[str, int]:
        """/proc/meminfo in bytes."""
        found = {}
        for line in self.text("proc/meminfo").splitlines():
            name, _, rest = line.partition(":")
            words = rest.split()
            if words and words[0].isdigit():
                found[name] = int(words[0]) * (1024 if words[1:] == ["kB"] else 1)
        return found

    def program(self, name: str) -> Path | None:
        """A program by the PATH of this environment."""
        found = shutil.which(name, path=self.environment.get("PATH", os.defpath))
        return Path(found) if found else None

    def cuda_home(self) -> Path | None:
        """The toolkit that FlashInfer would take: CUDA_HOME, CUDA_PATH, the nvcc of PATH, /usr/local/cuda."""
        for variable in ("CUDA_HOME", "CUDA_PATH"):
            if chosen := self.environment.get(variable):
                return Path(chosen)
        if nvcc := self.program("nvcc"):
            return nvcc.parent.parent
        usual = self.root / "usr/local/cuda"
        return usual if usual.is_dir() else None
