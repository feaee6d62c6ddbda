"""What the Dockerfile repeats of pins/ and patches/: its ARG block, and the build arguments that stand for it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from packaging.specifiers import SpecifierSet

from sparkwright import paths
from sparkwright.image.inventory import lock_name
from sparkwright.native.build_report import pins_digest
from sparkwright.patching.model import Patch
from sparkwright.patching.series import COMPONENTS, load_series
from sparkwright.pins import Line, base, default_line, load_line

BEGIN: Final = "# Made from pins/ and patches/ by `sparkwright pins dockerfile`; edit those, not these lines.\n"
END: Final = "# End of what is made from pins/ and patches/.\n"
_BLOCK: Final = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)


def dockerfile() -> Path:
    """The Dockerfile of this checkout."""
    return paths.PINS.with_name("Dockerfile")


def line_arguments(line: Line, extra: str = "") -> dict[str, str]:
    """The build arguments that say which vLLM an image holds; `extra` is the option that it is built with."""
    return {
        "LINE": line.name,
        "REQUIREMENTS": lock_name(line.name, extra),
        "VLLM_COMMIT": line.vllm_commit,
        "PINS_SHA256": pins_digest(),
        "PATCHES": " ".join(series_of(line)),
    }


def series_of(line: Line) -> tuple[str, ...]:
    """The patches that are meant for the releases of a line; `about` says what each was to this one."""
    return tuple(
        f"{named.component}/{named.name}"
        for component in COMPONENTS
        for named in load_series(component)
        if isinstance(named.patch, Patch)
        and named.patch.variants
        and SpecifierSet(named.patch.releases).contains(_version(line, component))
    )


def _version(line: Line, component: str) -> str:
    return next(one.version for one in line.components if one.project.partition("-")[0] == component)


def argument_block() -> str:
    """The lines of the Dockerfile that repeat something: what it builds when it is given no arguments."""
    pinned = base.load_base()
    arguments = {"BASE_IMAGE": f"{pinned.image}@{pinned.digest}", "APT_SNAPSHOT": pinned.apt_snapshot}
    arguments |= line_arguments(load_line(default_line()))
    return BEGIN + "".join(f"ARG {name}={_spelled(value)}\n" for name, value in arguments.items()) + END


def _spelled(value: str) -> str:
    """A list stands in quotes, one entry to a line."""
    return '"' + " \\\n".join(value.split()) + '"' if " " in value else value


def with_argument_block(text: str) -> str:
    """The Dockerfile's text with the block made anew; unchanged where it has none."""
    return _BLOCK.sub(lambda _: argument_block(), text, count=1)


def differences() -> Iterator[str]:
    """Where the Dockerfile disagrees with pins/ and patches/: one sentence per difference."""
    text = dockerfile().read_text(encoding="utf-8")
    if argument_block() not in text:
        yield "its ARG block is not what pins/ and patches/ say; run `sparkwright pins dockerfile`"
    if re.search(r"@sha256:|\b\d+\.\d+\.\d+\b", _BLOCK.sub("", text)):
        yield "names a digest or a release outside the block that is made from pins/"
