"""The image that the Dockerfile starts from: pins/base.toml, and the copy of it in the Dockerfile."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

from pydantic import StringConstraints

from sparkwright import paths
from sparkwright.pins.load import default_line, read
from sparkwright.pins.model import Strict, Text

BEGIN: Final = "# Made from pins/ by `sparkwright pins dockerfile`; edit those, not these lines.\n"
END: Final = "# End of what is made from pins/.\n"


class Base(Strict):
    """What pins/base.toml says."""

    image: Text
    digest: Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
    apt_snapshot: Annotated[str, StringConstraints(pattern=r"^\d{8}T\d{6}Z$")]
    why: Text


def load_base() -> Base:
    """The base image. Raises as `read`."""
    return read(paths.PINS / "base.toml", Base)


def dockerfile() -> Path:
    """The Dockerfile of this checkout."""
    return paths.PINS.with_name("Dockerfile")


def argument_block() -> str:
    """The lines of the Dockerfile that repeat something of pins/."""
    base, line = load_base(), default_line()
    arguments = {
        "BASE_IMAGE": f"{base.image}@{base.digest}",
        "APT_SNAPSHOT": base.apt_snapshot,
        "LINE": line,
        "REQUIREMENTS": f"image-{line}.txt",
    }
    return BEGIN + "".join(f"ARG {name}={value}\n" for name, value in arguments.items()) + END


def with_argument_block(text: str) -> str:
    """The Dockerfile's text with the block made anew; unchanged where it has none."""
    return re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: argument_block(), text, count=1, flags=re.DOTALL)


def differences() -> Iterator[str]:
    """Where the Dockerfile and pins/ disagree: one sentence per difference."""
    text = dockerfile().read_text(encoding="utf-8")
    if argument_block() not in text:
        yield "its ARG block is not what pins/ says; run `sparkwright pins dockerfile`"
    if re.search(r"@sha256:|\b\d+\.\d+\.\d+\b", text.replace(argument_block(), "")):
        yield "names a digest or a release outside the block that is made from pins/"
