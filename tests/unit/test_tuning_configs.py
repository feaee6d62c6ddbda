"""Every tuned configuration is well formed, can run on GB10, and says where it comes from."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, RootModel, ValidationError, field_validator

from sparkwright.paths import TUNING_CONFIGS

FOLDER = TUNING_CONFIGS / "fused_moe"
CONFIGS = sorted(FOLDER.glob("*.json"))
SHARED_MEMORY = 99 * 1024
"""Bytes of shared memory that one block may use on compute capability 12.1."""

NAME = re.compile(
    r"E=\d+,N=\d+,device_name=NVIDIA_GB10(,dtype=(?P<dtype>fp8_w8a8|int8_w8a8|int8_w8a16|int4_w4a16))?"
    r"(,block_shape=\[\d+,\d+\])?\.json"
)


class Blocks(BaseModel):
    """One entry, in the words of vLLM's Triton kernel."""

    model_config = ConfigDict(extra="forbid", strict=True)

    BLOCK_SIZE_M: int
    BLOCK_SIZE_N: int
    BLOCK_SIZE_K: int
    GROUP_SIZE_M: PositiveInt
    num_warps: int
    num_stages: int = Field(ge=2, le=8)

    @field_validator("BLOCK_SIZE_M", "BLOCK_SIZE_N", "BLOCK_SIZE_K")
    @classmethod
    def _tile(cls, value: int) -> int:
        if value < 16 or value & (value - 1):
            raise ValueError("a side of a tile is a power of two and at least 16")
        return value

    @field_validator("num_warps")
    @classmethod
    def _warps(cls, value: int) -> int:
        if value not in (1, 2, 4, 8, 16):
            raise ValueError("a block has 1, 2, 4, 8 or 16 warps")
        return value

    def shared_memory(self, bytes_per_value: int) -> int:
        """What Triton's pipeline allocates: a tile of both operands for each stage but the one being computed.

        test_tuning_configs_load.py compares this with the compiler's own figure.
        """
        tiles = self.BLOCK_SIZE_M * self.BLOCK_SIZE_K + self.BLOCK_SIZE_K * self.BLOCK_SIZE_N
        return (self.num_stages - 1) * tiles * bytes_per_value


class TunedConfig(RootModel[dict[PositiveInt, Blocks]]):
    """Blocks by number of tokens, without the Triton release that stands next to them."""


class Provenance(BaseModel):
    """The .toml beside a configuration."""

    model_config = ConfigDict(extra="forbid", strict=True)

    source: str = Field(min_length=1)
    licence: str = Field(min_length=1)
    stated_by_source: str
    measured_by_us: bool
    triton: str = Field(pattern=r"^\d+\.\d+\.\d+$")
    applies_to: str = Field(min_length=1)
    not_for: list[str] = Field(min_length=1)
    checked: str
    remove_when: str = Field(min_length=1)


def load(path: Path) -> tuple[str, dict[int, Blocks]]:
    """The Triton release that tuned a configuration, and its entries by number of tokens."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return content.pop("triton_version"), TunedConfig.model_validate_strings(
        {tokens: {key: str(value) for key, value in blocks.items()} for tokens, blocks in content.items()}
    ).root


def test_there_is_a_configuration() -> None:
    assert CONFIGS


def test_nothing_else_lies_in_the_folder() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == {path.stem for path in CONFIGS}
    assert {path.suffix for path in FOLDER.iterdir()} == {".json", ".toml"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_fits_the_device(path: Path) -> None:
    named = NAME.fullmatch(path.name)
    assert named
    bytes_per_value = 1 if named["dtype"] in ("fp8_w8a8", "int8_w8a8") else 2
    _, entries = load(path)
    assert list(entries) == sorted(entries)
    for tokens, blocks in entries.items():
        assert blocks.shared_memory(bytes_per_value) <= SHARED_MEMORY, f"{tokens} tokens"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_says_where_it_comes_from(path: Path) -> None:
    provenance = Provenance.model_validate(tomllib.loads(path.with_suffix(".toml").read_text(encoding="utf-8")))
    triton, _ = load(path)
    assert provenance.triton == triton


@pytest.mark.parametrize(
    "wrong",
    [
        {"BLOCK_SIZE_M": 48},
        {"BLOCK_SIZE_N": 8},
        {"GROUP_SIZE_M": 0},
        {"num_warps": 3},
        {"num_stages": 1},
        {"SPLIT": 1},
    ],
)
def test_an_entry_the_kernel_cannot_run_is_refused(wrong: dict[str, int]) -> None:
    right = {
        "BLOCK_SIZE_M": 16,
        "BLOCK_SIZE_N": 128,
        "BLOCK_SIZE_K": 64,
        "GROUP_SIZE_M": 1,
        "num_warps": 4,
        "num_stages": 4,
    }
    Blocks.model_validate(right)
    with pytest.raises(ValidationError):
        Blocks.model_validate(right | wrong)
