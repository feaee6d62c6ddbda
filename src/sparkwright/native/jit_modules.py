"""FlashInfer's kernel modules, compiled ahead: which ones, why, and the folder from which FlashInfer loads them.

FlashInfer compiles a module when it is first asked for one, on a Spark with its 9 GB compilers beside the model. A
module that lies in its own folder for modules built ahead is loaded instead, whatever it was compiled for: nothing
there asks for the architecture, so each one passes the audit before it is put there.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import Field

from sparkwright.audit import Requirement
from sparkwright.errors import ConfigurationError, UsageError
from sparkwright.pins import Line
from sparkwright.pins.load import read
from sparkwright.pins.model import Strict, Text

AOT_FOLDER: Final = Path("data") / "aot"
"""Below FlashInfer's package folder: NAME/NAME.so for each module."""
REPORT: Final = "sparkwright.json"
"""In that folder: what was built, when, and what it cost."""
DATA: Final = Path(__file__).parent / "data"


class JitModule(Strict):
    """One module, and why a recipe's model needs it."""

    name: Text
    """As FlashInfer calls it: the name of the folder and of the library."""
    generator: Text
    """The function of FlashInfer that describes it, as `module:function`."""
    arguments: dict[str, str | int | bool] = Field(default={})
    """What the generator is called with; `torch.bfloat16` and the like stand for torch's own."""
    why: Text
    asked_by: Text
    """Where vLLM asks for it on compute capability 12.1: file and line of the release."""
    require: tuple[Requirement, ...] = (Requirement.SM121,)
    """What its machine code must show before it may be loaded."""
    peak_mb: int = Field(gt=0)
    """Memory of the largest compiler process."""


class JitModules(Strict):
    """The modules that are built ahead for one release line."""

    flashinfer: Text
    """The release whose names these are."""
    modules: tuple[JitModule, ...] = Field(alias="module", min_length=1)


@dataclass(frozen=True, kw_only=True)
class BuiltModule:
    """One module that lies ready."""

    name: str
    path: Path
    size: int


def load_modules(line: Line) -> JitModules:
    """The modules of a line.

    Raises:
        ConfigurationError: the line has none, or they are another release's.
    """
    path = DATA / f"jit-modules-{line.name}.toml"
    if not path.is_file():
        raise ConfigurationError(
            f"no FlashInfer modules are listed for line {line.name}",
            remedy=f"add {path}, or leave them to be compiled at first use",
        )
    found = read(path, JitModules)
    pinned = line.component("flashinfer-python").version
    if found.flashinfer != pinned:
        raise ConfigurationError(
            f"{path} names the modules of FlashInfer {found.flashinfer}; the line pins {pinned}",
            cause="the pin was raised and the list was not read through",
            remedy="check the names against the new release and correct its number",
        )
    return found


def choose(modules: JitModules, names: tuple[str, ...]) -> tuple[JitModule, ...]:
    """The named modules, all of them when none is named.

    Raises:
        UsageError: a name is not listed.
    """
    known = {module.name: module for module in modules.modules}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(f"not listed: {', '.join(unknown)}", remedy="`sparkwright jit-cache list` shows the names")
    return tuple(known[name] for name in names) if names else modules.modules


def built(folder: Path) -> tuple[BuiltModule, ...]:
    """The modules that lie in FlashInfer's folder for modules built ahead."""
    found = [path for path in sorted(folder.glob("*/*.so")) if path.stem == path.parent.name]
    return tuple(BuiltModule(name=path.stem, path=path, size=path.stat().st_size) for path in found)
