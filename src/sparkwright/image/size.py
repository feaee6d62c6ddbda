"""How large the image for a DGX Spark is, by layer and by package, and whether it has grown beyond what was agreed."""

from dataclasses import asdict, dataclass
from typing import Any, Final

from sparkwright.errors import BuildFailedError, ConfigurationError
from sparkwright.image.contents import Contents, load_contents
from sparkwright.image.inventory import Entry, Inventory, inventory_path, load_inventory

ALLOWED_GROWTH: Final = 1.10
"""How much larger than recorded an image may be before it is refused."""
ZSTD_OF_DEFLATE: Final = 0.93
"""Size of the packages compressed as layers are (zstd, level 3) over their size in the wheels."""
SYSTEM: Final = "system"


@dataclass(frozen=True, kw_only=True)
class LayerSize:
    """A group of packages that changes at the same rate; bytes."""

    name: str
    packages: int
    size: int
    zstd: int


@dataclass(frozen=True, kw_only=True)
class SizeReport:
    """The computed size of the image of one line."""

    line: str
    layers: tuple[LayerSize, ...]
    packages: tuple[Entry, ...]
    recorded: int
    recorded_zstd: int

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(layer.size for layer in self.layers)

    @property
    def zstd(self) -> int:
        """Bytes to transfer."""
        return sum(layer.zstd for layer in self.layers)

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "line": self.line,
            "size": self.size,
            "zstd": self.zstd,
            "recorded": self.recorded,
            "recorded_zstd": self.recorded_zstd,
            "layers": [asdict(layer) for layer in self.layers],
            "packages": [
                {"project": one.project, "version": one.version, "size": one.kept, "removed": one.removed}
                for one in self.packages
            ],
        }

    def require_recorded(self) -> None:
        """Refuse an image that has grown by more than a tenth.

        Raises:
            BuildFailedError: it has.
        """
        for what, now, then in (("unpacked", self.size, self.recorded), ("compressed", self.zstd, self.recorded_zstd)):
            require_size(what, now, then, line=self.line)


def require_size(what: str, now: int, recorded: int, *, line: str) -> None:
    """Refuse a size more than a tenth above the recorded one.

    Raises:
        BuildFailedError: it is.
    """
    if now > recorded * ALLOWED_GROWTH:
        raise BuildFailedError(
            f"the image of {line} would be {now / 1e9:.2f} GB {what}; recorded are {recorded / 1e9:.2f} GB",
            cause="a package has grown, or one came in that the image does not need",
            remedy=f"`sparkwright image size --line {line}` names the largest; leave one out, or record the new size in"
            f" requirements/image-{line}.toml",
        )


def layer_of(project: str) -> str:
    """The layer that a package belongs to: what changes least comes first."""
    if project.startswith("nvidia-") and not project.startswith(("nvidia-cutlass", "nvidia-ml", "nvidia-modelopt")):
        return "CUDA libraries and compiler"
    if project in ("torch", "torchvision", "triton"):
        return "torch and Triton"
    # b12x after FlashInfer: both bring b12x/__init__.py, and that of b12x must be the one that stays.
    return "vLLM and FlashInfer" if project in ("vllm", "flashinfer-python", "b12x") else "other packages"


def size_report(line: str) -> SizeReport:
    """The report from the stored inventory; needs neither Docker nor network.

    Raises:
        ConfigurationError: the inventory was made from another lock.
        InputUnreadableError: there is none.
    """
    inventory = load_inventory(line)
    if stale := inventory.differences():
        raise ConfigurationError(f"requirements/{inventory_path(line).name} {stale[0]}")
    return report_of(inventory, load_contents(line))


def report_of(inventory: Inventory, contents: Contents) -> SizeReport:
    """The report of an inventory."""
    recorded = contents.size
    order = ("CUDA libraries and compiler", "torch and Triton", "other packages", "vLLM and FlashInfer")
    groups = {name: [one for one in inventory.entries if layer_of(one.project) == name] for name in order}
    layers = [LayerSize(name=SYSTEM, packages=0, size=recorded.system, zstd=recorded.system_zstd)]
    for name, entries in groups.items():
        ours = any(one.project == "vllm" for one in entries)
        layers.append(
            LayerSize(
                name=name,
                packages=len(entries),
                size=sum(one.kept for one in entries) - (recorded.vllm_smaller if ours else 0),
                zstd=round(sum(one.kept_packed for one in entries) * ZSTD_OF_DEFLATE)
                - (recorded.vllm_smaller_zstd if ours else 0),
            )
        )
    return SizeReport(
        line=inventory.line,
        layers=tuple(layers),
        packages=tuple(sorted(inventory.entries, key=lambda one: -one.kept)),
        recorded=recorded.packages + recorded.system,
        recorded_zstd=recorded.packages_zstd + recorded.system_zstd,
    )
