"""The machine that the image is for, in the terms of Python packaging."""

from dataclasses import dataclass
from typing import Final

from packaging.tags import Tag, compatible_tags, cpython_tags


@dataclass(frozen=True, kw_only=True)
class Target:
    """An interpreter on a machine."""

    machine: str
    python: tuple[int, int]
    glibc: tuple[int, int]

    @property
    def markers(self) -> dict[str, str]:
        """What the conditions in requirement files are decided with."""
        version = ".".join(map(str, self.python))
        return {
            "implementation_name": "cpython",
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_system": "Linux",
            "python_full_version": f"{version}.99",  # some patch release of it; no requirement asks for one
            "python_version": version,
            "sys_platform": "linux",
        }

    def tags(self) -> tuple[Tag, ...]:
        """The wheel tags that it accepts, best first."""
        major, newest = self.glibc
        platforms = [f"manylinux_{major}_{minor}_{self.machine}" for minor in range(newest, 4, -1)]
        platforms += [f"{name}_{self.machine}" for name in ("manylinux2014", "manylinux2010", "manylinux1", "linux")]
        interpreter = f"cp{''.join(map(str, self.python))}"
        return (
            *cpython_tags(self.python, platforms=platforms),
            *compatible_tags(self.python, interpreter=interpreter, platforms=platforms),
        )


SPARK: Final = Target(machine="aarch64", python=(3, 12), glibc=(2, 39))
"""The image on a DGX Spark: the interpreter and C library of Ubuntu 24.04 for arm64."""
