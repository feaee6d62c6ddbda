"""Which vLLM is installed, and what this package knows about its options and variables."""

import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sparkwright.errors import ConfigurationError, UnavailableError

_DATA: Final = Path(__file__).parent / "data"
_RELEASE = re.compile(r"v?(\d+)\.(\d+)(?:\.(\d+))?")

Release = tuple[int, int, int]


def parse_release(text: str) -> Release:
    """`0.33.0+gb10` and `0.16.0rc2.dev236` as the three numbers that the tables are keyed by."""
    match = _RELEASE.match(text.strip())
    if match is None:
        raise ConfigurationError(
            f"{text!r} is not a vLLM version", remedy="SPARKWRIGHT_VLLM_VERSION has the form 0.33.0"
        )
    return int(match[1]), int(match[2]), int(match[3] or 0)


def installed(environment: Mapping[str, str]) -> str:
    """The version of the installed vLLM, found by its metadata's folder name: importing it would take seconds.

    Raises:
        UnavailableError: no vLLM is installed for this Python, and no version was given instead.
    """
    if given := environment.get("SPARKWRIGHT_VLLM_VERSION"):
        parse_release(given)
        return given
    for folder in sys.path:
        if Path(folder).is_dir():
            for entry in os.scandir(folder):
                if entry.name.startswith("vllm-") and entry.name.endswith(".dist-info"):
                    return entry.name.removeprefix("vllm-").removesuffix(".dist-info")
    raise UnavailableError(
        "vLLM is not installed here",
        cause="this is not the image, or its Python is not the one that runs the entrypoint",
        remedy="run it in the image, or set SPARKWRIGHT_VLLM_VERSION=0.33.0 together with --dry-run",
    )


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option of `vllm serve`: all its spellings, the number of words it takes, and what they are limited to."""

    names: tuple[str, ...]
    takes: str
    choices: tuple[str, ...] = ()
    repeats: bool = False

    @property
    def name(self) -> str:
        """The spelling that is written: the first long one."""
        return next((name for name in self.names if name.startswith("--")), self.names[0])


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a release, by every spelling. `exact` is false when the table is of another release."""

    release: str
    exact: bool
    by_name: Mapping[str, Option]


def known_options() -> tuple[str, ...]:
    """The releases whose parser this package has a table of, newest first."""
    names = [path.stem.removeprefix("options-") for path in _DATA.glob("options-*.json")]
    return tuple(sorted(names, key=parse_release, reverse=True))


def options(version: str) -> Options:
    """The table of a version's parser: its own, else the nearest older one, else the oldest."""
    wanted, known = parse_release(version), known_options()
    chosen = next((name for name in known if parse_release(name) <= wanted), known[-1])
    table = json.loads((_DATA / f"options-{chosen}.json").read_text(encoding="utf-8"))
    by_name: dict[str, Option] = {}
    for entry in table["options"]:
        option = Option(
            names=tuple(entry["names"]),
            takes=entry["takes"],
            choices=tuple(entry.get("choices", ())),
            repeats=entry.get("repeats", False),
        )
        by_name.update(dict.fromkeys(option.names, option))
    return Options(release=chosen, exact=parse_release(chosen) == wanted, by_name=by_name)


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """Which VLLM_* variables which release reads."""

    spans: Mapping[str, list[list[str | None]]]

    def knows(self, name: str, release: Release) -> bool:
        """Whether this release reads the variable."""
        return any(
            parse_release(str(first)) <= release and (gone is None or release < parse_release(gone))
            for first, gone in self.spans.get(name, ())
        )

    def names(self, release: Release) -> tuple[str, ...]:
        """All variables that this release reads."""
        return tuple(name for name in self.spans if self.knows(name, release))

    def removed_in(self, name: str, release: Release) -> str | None:
        """The release that stopped reading the variable, when it is not younger than `release`."""
        gone = [span[1] for span in self.spans.get(name, ()) if span[1] and parse_release(span[1]) <= release]
        return gone[-1] if gone else None


def variables() -> Knowledge:
    """The table of VLLM_* variables, read from the releases' own vllm/envs.py."""
    return Knowledge(spans=json.loads((_DATA / "variables.json").read_text(encoding="utf-8"))["variables"])
