"""What a pins file may say: strict models, so that a typing error or a missing hash stops the load.

pins/ is the only place where versions, commits and hashes are written by hand.
"""

import re
from typing import Annotated, Any, Final, Literal, Self

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from packaging.utils import InvalidSdistFilename, InvalidWheelFilename, parse_sdist_filename, parse_wheel_filename
from packaging.version import Version
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from sparkwright.errors import ConfigurationError

FileKind = Literal["sdist", "wheel-any", "wheel-x86_64", "wheel-aarch64"]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Commit = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


def _inside(path: str) -> str:
    if {"", ".", ".."} & set(path.split("/")) or "\\" in path:
        raise ValueError("not a plain path inside a tree")
    return path


RelativePath = Annotated[str, AfterValidator(_inside)]

SUITABLE_ARCHS: Final = ("12.1a", "12.1f", "12.0f")
"""What TORCH_CUDA_ARCH_LIST may hold for GB10: 12.1a runs there alone, the family targets on all of SM12x."""


class Strict(BaseModel):
    """A part of a pins file: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PinnedFile(Strict):
    """One file of the package index, known by its name and its content."""

    project: Text
    version: Text
    kind: FileKind
    name: FileName
    size: int = Field(gt=0)
    sha256: Sha256

    @model_validator(mode="after")
    def _name_agrees(self) -> Self:
        try:
            if self.kind == "sdist":
                project, version = parse_sdist_filename(self.name)
                platforms = {"sdist"}
            else:
                project, version, _, tags = parse_wheel_filename(self.name)
                platforms = {tag.platform for tag in tags}
        except (InvalidSdistFilename, InvalidWheelFilename) as error:
            raise ValueError(str(error)) from error
        if (project, version) != (_canonical(self.project), Version(self.version)):
            raise ValueError(f"{self.name} is not a file of {self.project} {self.version}")
        if not all(platform.endswith(self.kind.removeprefix("wheel-")) for platform in platforms):
            raise ValueError(f"{self.name} is not a {self.kind}")
        return self


class Component(Strict):
    """One thing a line is made of, with the files of it that are used here.

    `project` is its name in the package index when that differs from the name it has here.
    `why` says why it is held at this version.
    """

    name: Text
    project: Text
    version: Text
    licence: str
    why: str = ""
    files: tuple[PinnedFile, ...] = Field(alias="file", min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _files_belong_to_it(cls, data: Any) -> Any:  # noqa: ANN401  pydantic hands over whatever the file holds
        if not isinstance(data, dict) or not isinstance(data.get("file"), list):
            return data
        project = data.get("project", data.get("name"))
        inherited = {"project": project, "version": data.get("version")}
        files = [inherited | entry if isinstance(entry, dict) else entry for entry in data["file"]]
        return data | {"project": project, "file": files}

    @field_validator("licence")
    @classmethod
    def _licence_is_spdx(cls, licence: str) -> str:
        try:
            return canonicalize_license_expression(licence)
        except InvalidLicenseExpression as error:
            raise ValueError(str(error)) from error

    @model_validator(mode="after")
    def _kinds_differ(self) -> Self:
        kinds = [file.kind for file in self.files]
        if len(set(kinds)) != len(kinds):
            raise ValueError(f"{self.name} has two files of one kind")
        return self

    def file(self, kind: FileKind) -> PinnedFile:
        """The file of one kind.

        Raises:
            ConfigurationError: none is pinned.
        """
        for file in self.files:
            if file.kind == kind:
                return file
        raise ConfigurationError(
            f"no {kind} of {self.name} {self.version} is pinned",
            cause=f"pinned are: {', '.join(file.kind for file in self.files)}",
            remedy="add the file with its size and sha256 to pins/",
        )


class FetchContent(Strict):
    """A source that upstream's CMake clones while configuring, at exactly one commit or tag."""

    name: Text
    repository: Annotated[str, StringConstraints(pattern=r"^[\w.-]+/[\w.-]+$")]
    commit: Commit | None = None
    tag: Text | None = None
    variable: Annotated[str, StringConstraints(pattern=r"^[A-Z0-9_]+_SRC_DIR$")]
    """The environment variable through which CMake takes a local folder instead."""
    declared_in: RelativePath
    """The file of the sdist that declares it."""

    @model_validator(mode="after")
    def _one_revision(self) -> Self:
        if (self.commit is None) == (self.tag is None):
            raise ValueError("give either the full commit or, where upstream uses one, the tag")
        return self


class Cutlass(Strict):
    """Where the CUTLASS headers of a line come from: a folder inside a pinned file."""

    component: Text
    kind: FileKind
    path: RelativePath
    version: Text
    why: Text


class Expectation(Strict):
    """What the machine code of some objects of a unit must show, whoever compiled it."""

    unit: Text
    objects: Text
    """A glob over object paths below the build folder."""
    targets: tuple[Annotated[str, StringConstraints(pattern=r"^sm_\d+[af]?$")], ...] = Field(min_length=1)
    """The SASS targets, exactly these."""
    fp4_mma: int | None = Field(default=None, ge=0)
    """The exact number of block-scaled FP4 tensor-core instructions."""
    e2m1_convert: int | None = Field(default=None, ge=0)
    """The least number of native E2M1 conversions."""
    traps: int = Field(default=0, ge=0)
    """The most traps that CUTLASS may have left for a wrong target."""


class _Collection(Strict):
    components: tuple[Component, ...] = Field(alias="component", min_length=1)


class Line(_Collection):
    """One vLLM release with everything it is built from."""

    name: Text
    arch_list: tuple[str, ...] = Field(min_length=1)
    torch: Text
    """The release that upstream builds this vLLM against."""
    vllm_commit: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{7,40})?$")] = ""
    """As vllm/_version.py of the sdist names it; a build of our own writes that file anew, without it."""
    requirements: tuple[FileName, ...]
    """Lock files of requirements/ that this line's environments are made of."""
    native_units: tuple[Text, ...] = ()
    """What can be compiled for this line; empty when only patching and checking is possible, and `why` says why."""
    why: str = ""
    cutlass: Cutlass
    fetch_content: tuple[FetchContent, ...] = ()
    expectations: tuple[Expectation, ...] = Field(default=(), alias="expectation")

    @field_validator("arch_list")
    @classmethod
    def _archs_suit_gb10(cls, archs: tuple[str, ...]) -> tuple[str, ...]:
        for arch in archs:
            if arch in SUITABLE_ARCHS:
                continue
            raise ConfigurationError(
                f"arch_list holds {arch}",
                cause="without a suffix the compiler accepts CUTLASS's FP4 and FP8 kernels and leaves them empty"
                if arch[-1:].isdigit()
                else "code for it does not run on GB10, or its FP4 kernels would be missing",
                remedy=f"use one of {', '.join(SUITABLE_ARCHS)}",
            )
        return archs

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        names = [component.name for component in self.components]
        if len(set(names)) != len(names):
            raise ValueError("two components have the same name")
        if self.component("vllm").version != self.name:
            raise ValueError(f"the line is called {self.name} but pins vllm {self.component('vllm').version}")
        self.cutlass_file()
        if not self.native_units and not self.why:
            raise ValueError("a line without native_units says why")
        return self

    def component(self, name: str) -> Component:
        """The component of this name.

        Raises:
            ConfigurationError: the line has none.
        """
        return _by_name(self.components, name, f"line {self.name}")

    def cutlass_file(self) -> PinnedFile:
        """The pinned file that carries the CUTLASS headers."""
        return self.component(self.cutlass.component).file(self.cutlass.kind)


class Toolchain(_Collection):
    """The CUDA compiler and its inspection tools, as wheels for both kinds of host."""

    @model_validator(mode="after")
    def _both_hosts(self) -> Self:
        for component in self.components:
            kinds = {file.kind for file in component.files}
            if kinds != {"wheel-x86_64", "wheel-aarch64"}:
                raise ValueError(f"{component.name} needs a wheel for x86_64 and one for aarch64")
        return self

    def component(self, name: str) -> Component:
        """The component of this name.

        Raises:
            ConfigurationError: the toolchain has none.
        """
        return _by_name(self.components, name, "the toolchain")


class Releases(_Collection):
    """Upstream releases that the patch matrix looks at; several components share a name."""

    @model_validator(mode="after")
    def _all_differ(self) -> Self:
        keys = [(component.name, component.version) for component in self.components]
        if len(set(keys)) != len(keys):
            raise ValueError("a release is listed twice")
        return self

    def of(self, name: str) -> tuple[Component, ...]:
        """The releases of one component, oldest first."""
        found = [component for component in self.components if component.name == name]
        return tuple(sorted(found, key=lambda component: Version(component.version)))

    def component(self, name: str, version: str) -> Component:
        """One release of one component.

        Raises:
            ConfigurationError: it is not listed.
        """
        for component in self.of(name):
            if component.version == version:
                return component
        raise ConfigurationError(
            f"{name} {version} is not among the pinned releases",
            cause=f"pinned are: {', '.join(component.version for component in self.of(name)) or 'none'}",
            remedy="name one of them, or add the release to pins/releases.toml",
        )


def _by_name(components: tuple[Component, ...], name: str, owner: str) -> Component:
    for component in components:
        if component.name == name:
            return component
    raise ConfigurationError(
        f"{owner} has no component {name}",
        cause=f"its components are: {', '.join(component.name for component in components)}",
    )


def _canonical(project: str) -> str:
    return re.sub(r"[-_.]+", "-", project).lower()
