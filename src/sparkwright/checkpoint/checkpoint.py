"""A checkpoint folder as vLLM would read it, from headers and JSON alone."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from sparkwright.checkpoint.findings import Finding, finding
from sparkwright.checkpoint.headers import HeaderError, Shard, Tensor, read_shard
from sparkwright.checkpoint.modules import Module, group
from sparkwright.checkpoint.settings import (
    QuantSettings,
    as_object,
    number,
    quant_settings,
    read_object,
    text_config,
)
from sparkwright.errors import InputUnreadableError

INDEX: Final = "model.safetensors.index.json"
CONFIG: Final = "config.json"
MISTRAL_CONFIG: Final = "params.json"
MISTRAL_FILES: Final = "consolidated*.safetensors"
"""Where there is one, vLLM reads nothing but these, unless it is told another load format."""
STATE: Final = ".sparkwright"
JOURNAL: Final = f"{STATE}/repair.pending.json"
"""There while a repair that passed its commit point has not come to its end."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a folder holds; `tensors` are those in the names of transformers where there are any.

    `consolidated` are files of Mistral's own format.
    """

    root: Path
    config: Mapping[str, Any]
    quant: QuantSettings | None
    shards: tuple[Shard, ...]
    index: Mapping[str, str] | None
    tensors: Mapping[str, Tensor]
    consolidated: tuple[str, ...]
    file_findings: tuple[Finding, ...]

    @cached_property
    def modules(self) -> dict[str, Module]:
        """The modules the tensors make up, by name."""
        groups = as_object((self.quant.raw if self.quant else {}).get("config_groups")).values()
        bits = {number(as_object(as_object(one).get("weights")), "num_bits") for one in groups}
        return group(self.tensors.values(), packed_bits=bits.pop() if len(bits) == 1 else None)

    @cached_property
    def text(self) -> dict[str, Any]:
        """The settings of the language model."""
        return text_config(self.config)

    @property
    def is_mistral_only(self) -> bool:
        """Whether all there is is in Mistral's own format, which has other names and another config."""
        read = {shard.path.name for shard in self.shards}
        return (self.root / MISTRAL_CONFIG).is_file() and read <= set(self.consolidated) and bool(self.consolidated)

    @property
    def size(self) -> int:
        """Bytes on disk of the files that vLLM would read."""
        return sum(shard.size for shard in self.shards)

    @property
    def lacks_headers(self) -> bool:
        """Whether a file's header is unknown, so that the absence of a tensor says nothing more."""
        return self._has("shard-missing", "shard-unreadable", "weights-missing")

    @property
    def has_broken_shard(self) -> bool:
        """Whether a file is missing, unreadable or cut off."""
        return self.lacks_headers or self._has("shard-truncated")

    def _has(self, *codes: str) -> bool:
        return any(one.rule.code in codes for one in self.file_findings)


def read_checkpoint(root: Path) -> Checkpoint:
    """Read every header of a folder.

    Raises:
        InputUnreadableError: there is no such folder.
    """
    if not root.is_dir():
        raise InputUnreadableError(
            f"{root} is not a folder",
            cause="a checkpoint is a folder with config.json and .safetensors files",
            remedy="download the model first and name its folder",
        )
    config = read_object(root / CONFIG)
    index, findings = _read_index(root)
    present = {path.name: path for path in weight_files(root)}
    consolidated = tuple(path.name for path in sorted(root.glob(MISTRAL_FILES)) if path.is_file())
    wanted = dict(present) if index is None else {name: root / name for name in sorted(set(index.values()))}
    shards: list[Shard] = []
    for name, path in wanted.items():
        if not path.is_file():
            findings.append(finding("shard-missing", [name]))
            continue
        try:
            shard = read_shard(path)
        except HeaderError as error:
            findings.append(finding("shard-unreadable", [name], str(error)))
            continue
        shards.append(shard)
        if shard.size != shard.expected_size:
            subjects = [tensor.name for tensor in shard.cut_off] or [name]
            detail = f"{name} has {shard.size} bytes, its header says {shard.expected_size}"
            findings.append(finding("shard-truncated", subjects, detail))
    if not wanted:
        findings.append(finding("weights-missing"))
    if config is None and not (consolidated and (root / MISTRAL_CONFIG).is_file()):
        findings.append(finding("config-unreadable", [CONFIG]))
    if (root / JOURNAL).exists():
        findings.append(finding("repair-interrupted"))
    findings += _compare_index(index, shards, stray=[name for name in present if name not in wanted])
    return Checkpoint(
        root=root,
        config=config or {},
        quant=quant_settings(root, config or {}),
        shards=tuple(shards),
        index=index,
        tensors={tensor.name: tensor for shard in shards for tensor in shard.tensors},
        consolidated=consolidated,
        file_findings=tuple(findings),
    )


def weight_files(root: Path) -> list[Path]:
    """The safetensors files of a folder, Mistral's own second copy left out."""
    present = [path for path in sorted(root.glob("*.safetensors")) if path.is_file()]
    return [path for path in present if not path.match(MISTRAL_FILES)] or present


def _read_index(root: Path) -> tuple[dict[str, str] | None, list[Finding]]:
    """The file of each tensor by the index; None when there is no usable one."""
    path = root / INDEX
    if not path.exists():
        return None, []
    places = (read_object(path) or {}).get("weight_map")
    if not isinstance(places, dict) or not places:
        return None, [finding("index-unreadable", [INDEX], "it has no weight_map")]
    files = [*places.values()] if {*map(type, places.values())} - {str} else {*places.values()}
    if strange := sorted({repr(name) for name in files if not _plain_name(name)}):
        return None, [finding("index-unreadable", [INDEX], f"not names of files in this folder: {', '.join(strange)}")]
    return places, []


def _plain_name(name: object) -> bool:
    return isinstance(name, str) and name.isprintable() and name not in ("", ".", "..") and "/" not in name


def _compare_index(index: Mapping[str, str] | None, shards: list[Shard], stray: list[str]) -> Iterator[Finding]:
    names = {shard.path.name: {tensor.name for tensor in shard.tensors} for shard in shards}
    holder = {name: file for file, held in names.items() for name in held}
    twice: dict[str, set[str]] = {}
    if len(holder) < sum(map(len, names.values())):
        count = Counter(name for held in names.values() for name in held)
        twice = {
            name: {file for file, held in names.items() if name in held} for name, files in count.items() if files > 1
        }
    if twice:
        yield finding("tensor-duplicate", sorted(twice), f"for instance in {' and '.join(sorted(twice[min(twice)]))}")
    if index is None:
        if len(shards) > 1:
            yield finding("index-missing", [shard.path.name for shard in shards])
        return
    if stray:
        yield finding("shard-not-in-index", stray)
    misplaced = index.items() - holder.items()
    if absent := sorted(name for name, file in misplaced if file in names and file not in twice.get(name, ())):
        elsewhere = sum(name in holder for name in absent)
        yield finding("index-names-absent", absent, f"{elsewhere} of {len(absent)} are in another file")
    if omitted := sorted(holder.keys() - index.keys()):
        yield finding("index-omits", omitted)
