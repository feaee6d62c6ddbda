"""The schema of recipes/*.yaml. Every key is checked: an unknown one is an error, not a silent no-op."""

import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Value = str | int | float | bool | list[str] | dict[str, object]
Text = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
OptionName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]*$")]
Flags = dict[OptionName, Value]
Environment = dict[Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Za-z0-9_]*$")], str]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Backend(_Part):
    """Which kernels do the quantized products, and who says that this choice is the right one here.

    `required` says why other kernels would give worse answers, where it is not speed alone that decides.
    """

    moe: str = "auto"
    linear: str = "auto"
    required: Text | None = None
    why: Text
    source: Text


class Figure(_Part):
    """A speed or another figure that someone else measured. Never ours."""

    claim: Text
    source: Text


class Memory(_Part):
    """What the weights take, in GB of 10^9 bytes, and where that is from."""

    weights_gb: Annotated[float, Field(gt=0)]
    source: Text


class Line(_Part):
    """What only one release line needs, on top of the common part."""

    flags: Flags = {}
    env: Environment = {}


class Recipe(_Part):
    """One served model."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
    description: Text
    model: Text
    revision: str | None = None
    nodes: Literal["solo"] | Annotated[int, Field(ge=2)] = "solo"
    memory: Memory
    backend: Backend
    flags: Flags
    env: Environment = {}
    lines: Annotated[dict[Annotated[str, StringConstraints(pattern=r"^\d+\.\d+\.\d+$")], Line], Field(min_length=1)]
    notes: list[Text] = []
    figures: list[Figure] = []
    sources: Annotated[list[Text], Field(min_length=1)]

    @model_validator(mode="after")
    def _backend_is_what_the_flags_say(self) -> "Recipe":
        for line in self.lines.values():
            flags = {**self.flags, **line.flags}
            for option, stated in (("moe-backend", self.backend.moe), ("linear-backend", self.backend.linear)):
                if option in flags and flags[option] != stated:
                    raise ValueError(f"{option} is {flags[option]!r} in the flags, and {stated!r} under backend")
        return self

    @property
    def node_count(self) -> int:
        """How many nodes it needs."""
        return 1 if self.nodes == "solo" else self.nodes

    def words(self, line: str) -> tuple[str, ...]:
        """The options for a release line, as words of `vllm serve`."""
        flags = {**self.flags, **self.lines[line].flags}
        revision = ("--revision", self.revision) if self.revision else ()
        return (*revision, *(word for name, value in flags.items() for word in option_words(name, value)))

    def environment(self, line: str) -> dict[str, str]:
        """The environment for a release line."""
        return {**self.env, **self.lines[line].env}


def option_words(name: str, value: Value) -> tuple[str, ...]:
    """One option: true is the switch, false its opposite, a mapping becomes JSON."""
    if isinstance(value, bool):
        return (f"--{name}" if value else f"--no-{name}",)
    if isinstance(value, dict):
        return (f"--{name}", json.dumps(value, separators=(",", ":")))
    if isinstance(value, list):
        return (f"--{name}", *value)
    return (f"--{name}", str(value))
