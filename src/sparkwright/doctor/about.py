"""What an image holds: written once when it is built, read by `about`, and shown with what is true right now."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from sparkwright import __version__, paths
from sparkwright.doctor.caches import CACHES, writable
from sparkwright.doctor.installed import Installed
from sparkwright.errors import InputUnreadableError, UnavailableError
from sparkwright.files import write_json
from sparkwright.native.build_report import pins_digest
from sparkwright.native.jit_modules import built, load_modules
from sparkwright.pins import Line

SHOWN: Final = (
    "vllm",
    "torch",
    "triton",
    "flashinfer-python",
    "nvidia-cutlass-dsl",
    "nvidia-cuda-nvcc",
    "nvidia-cuda-runtime",
    "nvidia-cublas",
    "nvidia-cudnn-cu13",
    "nvidia-nccl-cu13",
    "transformers",
    "compressed-tensors",
    "ray",
    "fastsafetensors",
    "instanttensor",
    "b12x",
)
"""The packages whose releases are worth knowing; those that are not installed are left out."""

LICENCES: Final = ("NOTICE", "LICENSE", "sbom.cdx.json")
"""What is looked for beside pins/."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PatchState(_Model):
    """One patch of the series, as the receipt in its package tells it."""

    component: str
    name: str
    status: str
    reason: str


class ReadyModule(_Model):
    """One FlashInfer module that was compiled when the image was built."""

    name: str
    size: int


class LateCompilation(_Model):
    """Something that is compiled when it is first used."""

    what: str
    when: str
    kept_in: str


class About(_Model):
    """The inventory of an image."""

    sparkwright: str
    revision: str
    """Of the checkout that it was built from."""
    built: str
    line: str
    vllm_commit: str
    """As upstream's version file names it; empty where neither the package nor pins/ knows it."""
    pins: str
    """One sha256 over pins/."""
    arch_list: tuple[str, ...]
    versions: dict[str, str]
    patches: tuple[PatchState, ...]
    jit_modules: tuple[ReadyModule, ...]
    compiles_at_first_use: tuple[LateCompilation, ...]
    licences: tuple[str, ...]


def location() -> Path:
    """Where the inventory of an image lies."""
    return paths.CHECKOUT / "about.json"


def gather(line: Line, installed: Installed, *, revision: str, environment: Mapping[str, str]) -> About:
    """Take the inventory of what is installed.

    Raises:
        UnavailableError: vLLM is not installed here.
        InputUnreadableError: a patch receipt cannot be understood.
    """
    if installed.version("vllm") is None:
        raise UnavailableError(
            "vLLM is not installed for this Python, so there is no image to describe",
            remedy="run it with the image's Python",
        )
    folder = installed.aot_folder()
    ready = tuple(ReadyModule(name=one.name, size=one.size) for one in built(folder)) if folder else ()
    return About(
        sparkwright=__version__,
        revision=revision,
        built=_built(environment),
        line=line.name,
        vllm_commit=installed.vllm_commit() or line.vllm_commit,
        pins=pins_digest(),
        arch_list=line.arch_list,
        versions=installed.versions(SHOWN),
        patches=patch_states(installed),
        jit_modules=ready,
        compiles_at_first_use=late_compilations(line, {one.name for one in ready}),
        licences=tuple(str(path) for name in LICENCES if (path := paths.CHECKOUT / name).is_file()),
    )


def patch_states(installed: Installed) -> tuple[PatchState, ...]:
    """What each patch was to the installed packages, as their receipts say."""
    return tuple(
        PatchState(component=held.receipt.component, name=entry.name, status=entry.status, reason=entry.reason)
        for held in installed.receipts()
        for entry in held.receipt.patches
    )


def late_compilations(line: Line, ready: set[str]) -> tuple[LateCompilation, ...]:
    """What is left to compile at first use when these FlashInfer modules are there."""
    missing = [module.name for module in load_modules(line).modules if module.name not in ready]
    listed = f"; of the listed ones: {', '.join(missing)}" if missing else ""
    return (
        LateCompilation(
            what=f"FlashInfer modules that were not built ahead{listed}",
            when="a layer that needs one is first run",
            kept_in="FlashInfer",
        ),
        LateCompilation(what="vLLM's Triton kernels", when="each is first run", kept_in="Triton"),
        LateCompilation(
            what="the model's graph, by torch.compile",
            when="the model is loaded, unless --enforce-eager is given",
            kept_in="vLLM and torch.compile",
        ),
        LateCompilation(
            what="PTX in libraries without machine code for 12.1 (FlashAttention 2, unless the image was built with "
            "--externals compiled)",
            when="a kernel of it is first run; the driver does it",
            kept_in="CUDA driver",
        ),
        LateCompilation(what="DeepGEMM's kernels", when="a block-FP8 layer is first run", kept_in="DeepGEMM"),
    )


def write(path: Path, about: About) -> None:
    """Store the inventory."""
    write_json(path, about.model_dump(mode="json"))


def read(path: Path) -> About | None:
    """The stored inventory, None where there is none.

    Raises:
        InputUnreadableError: it cannot be understood.
    """
    try:
        return About.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise InputUnreadableError(
            f"{path} is not an inventory: {error.error_count()} of its fields are wrong",
            cause="another release of sparkwright wrote it",
            remedy="`sparkwright about --write` makes it anew",
        ) from error


def caches(environment: Mapping[str, str]) -> list[dict[str, Any]]:
    """Where each cache is now, and whether it can be written."""
    return [
        {
            "name": cache.name,
            "path": str(folder := cache.folder(environment)),
            "exists": folder.is_dir(),
            "writable": writable(folder),
            "moved_by": cache.variable,
        }
        for cache in CACHES
    ]


def _built(environment: Mapping[str, str]) -> str:
    """SOURCE_DATE_EPOCH where it is set, so that the same build writes the same file."""
    epoch = environment.get("SOURCE_DATE_EPOCH")
    moment = datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now(UTC)
    return moment.isoformat(timespec="seconds")
