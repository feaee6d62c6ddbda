"""Compile targets of NVIDIA device code, and which of them run on GB10."""

import re
from dataclasses import dataclass
from typing import Final, Self

_PATTERN: Final = re.compile(r"sm_(?P<major>\d+)(?P<minor>\d)(?P<suffix>[af]?)")


@dataclass(frozen=True, kw_only=True, order=True)
class Target:
    """One target such as `sm_121a`: a compute capability and how far its code may travel.

    Suffix "" is code for the base instruction set, "f" for a family (same major, this minor or later),
    "a" for exactly this capability.
    """

    major: int
    minor: int
    suffix: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the tools' spelling, `sm_121a`.

        Raises:
            ValueError: it is not a target.
        """
        found = _PATTERN.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r} is not a target")
        return cls(major=int(found["major"]), minor=int(found["minor"]), suffix=found["suffix"])

    def __str__(self) -> str:
        return f"sm_{self.major}{self.minor}{self.suffix}"

    @property
    def loads_on_gb10(self) -> bool:
        """Whether machine code (SASS) for it loads on compute capability 12.1."""
        if self.suffix == "a":
            return (self.major, self.minor) == (12, 1)
        return self.major == 12 and self.minor <= 1

    @property
    def compiles_on_gb10(self) -> bool:
        """Whether the driver can compile PTX for it on compute capability 12.1."""
        if self.suffix:
            return self.loads_on_gb10
        return (self.major, self.minor) <= (12, 1)
