"""The layers that decode.py measures, and the bytes of their weights."""

from dataclasses import dataclass

BYTES_A_WEIGHT = 4.5 / 8


@dataclass(frozen=True, kw_only=True)
class Dense:
    """A linear layer."""

    name: str
    rows: int
    width: int

    def distinct(self, tokens: int) -> float:
        """Everything is read, whatever the number of tokens."""
        del tokens
        return 1

    def bytes_read(self, distinct: float) -> float:
        """Weights and scales, once."""
        return distinct * self.rows * self.width * BYTES_A_WEIGHT


@dataclass(frozen=True, kw_only=True)
class Experts:
    """The routed experts of a layer."""

    name: str
    hidden: int
    inner: int
    experts: int
    choices: int

    def distinct(self, tokens: int) -> float:
        """The experts that tokens hit on average, when each chooses at random."""
        return self.experts * (1 - (1 - self.choices / self.experts) ** tokens)

    def bytes_read(self, distinct: float) -> float:
        """Weights and scales of the experts that are hit, each once."""
        return distinct * 3 * self.hidden * self.inner * BYTES_A_WEIGHT


# From the models' public configurations; one tensor-parallel rank.
LAYERS: tuple[Dense | Experts, ...] = (
    Experts(name="Qwen3-Next-80B-A3B experts", hidden=2048, inner=512, experts=512, choices=10),
    Dense(name="Qwen3-Next-80B-A3B attention qkv", rows=9216, width=2048),
    Dense(name="Qwen3-Next-80B-A3B attention o", rows=2048, width=4096),
    Dense(name="Qwen3-Next-80B-A3B shared expert gate_up", rows=1024, width=2048),
    Dense(name="Qwen3-32B qkv", rows=10240, width=5120),
    Dense(name="Qwen3-32B o", rows=5120, width=8192),
    Dense(name="Qwen3-32B gate_up", rows=51200, width=5120),
    Dense(name="Qwen3-32B down", rows=5120, width=25600),
    Dense(name="123B qkv", rows=14336, width=12288),
    Dense(name="123B o", rows=12288, width=12288),
    Dense(name="123B gate_up", rows=57344, width=12288),
    Dense(name="123B down", rows=12288, width=28672),
)
TINY: tuple[Dense | Experts, ...] = (
    Experts(name="tiny experts", hidden=32, inner=16, experts=4, choices=2),
    Dense(name="tiny linear", rows=32, width=64),
)
