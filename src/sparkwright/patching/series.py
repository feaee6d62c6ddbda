"""The patches of a component, in the order in which they are applied: by name, `after` first."""

import functools
import graphlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from sparkwright.errors import ConfigurationError, UsageError
from sparkwright.files import sha256_bytes
from sparkwright.patching.model import AddFile, Edit, Patch
from sparkwright.patching.shell import ShellPatch
from sparkwright.paths import PATCHES

COMPONENTS: Final = ("vllm", "flashinfer", "cuda")


@dataclass(frozen=True, kw_only=True)
class NamedPatch:
    """A patch with its name, the file that defines it, and the sha256 of all that it is made of."""

    name: str
    component: str
    source: Path
    definition: str
    patch: Patch | ShellPatch

    def paths(self) -> frozenset[str]:
        """Every path of the tree that this patch reads or writes."""
        if isinstance(self.patch, ShellPatch):
            return frozenset(self.patch.files)
        return frozenset(_paths_of(self.patch))

    @property
    def explanation(self) -> str:
        """The docstring of a patch module, or the header comment of a shell patch."""
        if isinstance(self.patch, ShellPatch):
            return self.patch.explanation
        return (_load_module(self.source).__doc__ or "").strip()


def _paths_of(patch: Patch) -> Iterator[str]:
    for variant in patch.variants:
        for edit in variant.edits:
            yield edit.path
        for sign in variant.requires:
            yield sign.path
    for state in (*patch.upstream, *patch.not_applicable, *patch.fault):
        for sign in state.signs:
            yield sign.path


@functools.cache
def _load_module(source: Path) -> object:
    spec = importlib.util.spec_from_file_location(f"sparkwright_patches.{source.parent.name}.{source.stem}", source)
    if spec is None or spec.loader is None:
        raise ConfigurationError(f"{source} is not a Python module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _compiled(edit: Edit) -> bool:
    path = PurePosixPath(edit.path)
    return path.suffix != ".py" or path.name == "setup.py"


def _check(name: str, patch: Patch) -> None:
    if patch.kind == "python":
        for variant in patch.variants:
            for edit in variant.edits:
                if _compiled(edit):
                    raise ConfigurationError(f"patch {name} is marked python, but {edit.path} is a compile input")


def _definition(source: Path, patch: Patch | ShellPatch) -> str:
    """The sha256 of the patch file and of the files that it adds to the tree, which may lie elsewhere."""
    added = [
        edit.text
        for variant in (patch.variants if isinstance(patch, Patch) else ())
        for edit in variant.edits
        if isinstance(edit, AddFile)
    ]
    return sha256_bytes(b"\0".join([source.read_bytes(), *(text.encode() for text in added)]))


def load_patch(source: Path, component: str) -> NamedPatch:
    """Load one patch file.

    Raises:
        ConfigurationError: the file defines no patch, or contradicts itself.
    """
    name = source.stem.replace("_", "-")
    patch: Patch | ShellPatch
    if source.suffix == ".sh":
        patch = ShellPatch.read(source)
    else:
        found = getattr(_load_module(source), "PATCH", None)
        if not isinstance(found, Patch):
            raise ConfigurationError(f"{source} defines no PATCH")
        _check(name, found)
        patch = found
    return NamedPatch(name=name, component=component, source=source, definition=_definition(source, patch), patch=patch)


@functools.cache
def load_series(component: str, folder: Path = PATCHES) -> tuple[NamedPatch, ...]:
    """All patches of a component, ordered.

    Raises:
        UsageError: there is no such component.
        ConfigurationError: a patch file is wrong, or `after` names no patch or makes a circle.
    """
    if component not in COMPONENTS:
        raise UsageError(f"{component!r} is not a component; there are {', '.join(COMPONENTS)}")
    sources = sorted(path for path in (folder / component).iterdir() if path.suffix in (".py", ".sh"))
    patches = {patch.name: patch for patch in (load_patch(source, component) for source in sources)}
    order = graphlib.TopologicalSorter[str]()
    for name, named in sorted(patches.items()):
        after = named.patch.after if isinstance(named.patch, Patch) else ()
        if unknown := set(after) - set(patches):
            raise ConfigurationError(f"patch {name} comes after {', '.join(sorted(unknown))}, which does not exist")
        order.add(name, *after)
    try:
        order.prepare()
    except graphlib.CycleError as error:
        raise ConfigurationError(
            f"patches of {component} come after each other in a circle: {error.args[1]}"
        ) from error
    ordered: list[NamedPatch] = []
    while order.is_active():
        ready = sorted(order.get_ready())
        ordered += [patches[name] for name in ready]
        order.done(*ready)
    return tuple(ordered)


def select(series: tuple[NamedPatch, ...], names: tuple[str, ...]) -> tuple[NamedPatch, ...]:
    """The named patches in series order; all of them when no name is given.

    Raises:
        UsageError: a name is not in the series.
    """
    if unknown := set(names) - {named.name for named in series}:
        known = ", ".join(named.name for named in series)
        raise UsageError(f"no patch is called {', '.join(sorted(unknown))}", remedy=f"choose from {known}")
    return tuple(named for named in series if not names or named.name in names)
