"""Sizes and speeds of real models, from files that hold headers and holes, within seconds and little memory."""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.checkpoint.holes import Tensors, bf16, nvfp4, write
from tests.unit.checkpoint.models import dense

from sparkwright.checkpoint.checkpoint import read_checkpoint
from sparkwright.checkpoint.inspection import inspect
from sparkwright.checkpoint.roofline import costs
from sparkwright.checkpoint.verify import verify_headers


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mistral Large in NVFP4: 123 billion weights in 14 shards."""
    tensors, config = dense(layers=88, hidden=12288, wide=28672, heads=96, kv_heads=8, vocabulary=32768)
    return write(tmp_path_factory.mktemp("large") / "model", tensors, config, shards=14)


def test_123_billion_weights_in_seconds_and_little_memory(large: Path) -> None:
    limit = 500_000_000

    def cap() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CPU, (10, 10))

    command = [sys.executable, "-m", "sparkwright", "checkpoint", "inspect", str(large), "--json"]
    done = subprocess.run(command, preexec_fn=cap, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["format"] == "modelopt NVFP4"
    assert found["shards"] == 14
    assert 2600 < found["tensors"] < 2700
    assert found["parameters"] == pytest.approx(122.6e9, rel=0.001)
    assert found["bytes_on_disk"] == pytest.approx(70e9, rel=0.01)
    assert found["bits_per_weight"] == pytest.approx(4.57, abs=0.02)


def test_the_memory_cap_is_one_that_can_be_hit(large: Path) -> None:
    def cap() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (500_000_000, 500_000_000))

    shard = min(large.glob("*.safetensors"))
    script = f"import mmap; file = open({str(shard)!r}, 'rb'); mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)"
    done = subprocess.run([sys.executable, "-c", script], preexec_fn=cap, capture_output=True, text=True, check=False)
    assert "Cannot allocate memory" in done.stderr


def test_the_header_check_keeps_its_budget(large: Path) -> None:
    start = time.process_time()
    assert verify_headers(large).findings == ()
    assert time.process_time() - start < 2


# Bounds worked out by hand from the models' public shapes; GB read per token, then tok/s at contexts 0, 8k, 32k, 128k.
def test_roofline_of_a_dense_model(large: Path) -> None:
    found = costs(read_checkpoint(large))
    assert found.weights() == pytest.approx(69.3e9, rel=0.001)
    assert found.cache_bytes(1, value_bytes=2) == 2 * 88 * 8 * 128 * 2
    expected = {0: (3.94, 3.94), 8192: (3.8, 3.9), 32768: (3.4, 3.6), 131072: (2.3, 2.9)}
    for context, pair in expected.items():
        for value_bytes, speed in zip((2, 1), pair, strict=True):
            assert found.tokens_per_second(context, value_bytes=value_bytes) == pytest.approx(speed, abs=0.06)
    assert found.tokens_per_second(0, sparks=2, value_bytes=2) == pytest.approx(7.88, abs=0.01)
    batch = found.tokens_per_second(0, value_bytes=2, streams=4)
    assert batch == pytest.approx(4 * 3.94, abs=0.02)


def test_what_fits(large: Path) -> None:
    fits = {
        (one["sparks"], one["kv_cache"]): one["context"] for one in inspect(read_checkpoint(large))["roofline"]["fits"]
    }
    # 0.75 * 128 - 4 = 92 GB; 70.1 GB of weights; 360 kB of BF16 cache for each token.
    assert fits[1, "bf16"] == pytest.approx((92e9 - 70.07e9) / 360448, rel=0.01)
    assert fits[1, "fp8"] == pytest.approx((92e9 - 70.07e9) / 180224, rel=0.01)
    assert fits[2, "bf16"] == 131072


def test_a_model_too_large_for_one_spark_says_so(tmp_path: Path) -> None:
    tensors, config = dense(layers=88, hidden=16384, wide=53248, heads=128, kv_heads=8, vocabulary=128256)
    found = inspect(read_checkpoint(write(tmp_path / "model", tensors, config, shards=3)))
    fits = {(one["sparks"], one["kv_cache"]): one["context"] for one in found["roofline"]["fits"]}
    assert fits[1, "bf16"] is None
    assert fits[4, "bf16"] == 131072


def test_roofline_of_32_billion(tmp_path: Path) -> None:
    tensors, config = dense(layers=64, hidden=5120, wide=25600, heads=64, kv_heads=8, vocabulary=151936)
    found = costs(read_checkpoint(write(tmp_path / "model", tensors, config, shards=2)))
    assert found.weights() == pytest.approx(19.1e9, rel=0.002)
    for context, speed in {0: 14.3, 8192: 12.8, 32768: 9.9, 131072: 5.1}.items():
        assert found.tokens_per_second(context, value_bytes=2) == pytest.approx(speed, abs=0.06)


def _hybrid_layers() -> Iterator[tuple[int, bool]]:
    for layer in range(48):
        yield layer, layer % 4 == 3


def test_roofline_of_a_hybrid_mixture(tmp_path: Path) -> None:
    """Qwen3-Next-80B-A3B with only the experts in NVFP4; experts are stacked here to keep the header small."""
    hidden, wide, experts = 2048, 512, 512
    tensors = bf16("model.embed_tokens", 151936, hidden) | bf16("lm_head", 151936, hidden)
    for layer, full in _hybrid_layers():
        prefix = f"model.layers.{layer}"
        if full:
            tensors |= bf16(f"{prefix}.self_attn.q_proj", 8192, hidden)  # with its gate
            tensors |= bf16(f"{prefix}.self_attn.k_proj", 512, hidden) | bf16(f"{prefix}.self_attn.v_proj", 512, hidden)
            tensors |= bf16(f"{prefix}.self_attn.o_proj", hidden, 4096)
        else:
            tensors |= bf16(f"{prefix}.linear_attn.in_proj_qkvz", 12288, hidden)
            tensors |= bf16(f"{prefix}.linear_attn.in_proj_ba", 64, hidden)
            tensors |= bf16(f"{prefix}.linear_attn.out_proj", hidden, 4096)
            tensors[f"{prefix}.linear_attn.A_log"] = ("BF16", (32,))
        tensors |= bf16(f"{prefix}.mlp.gate", experts, hidden)
        for name, shape in {"gate_up_proj": (2 * wide, hidden), "down_proj": (hidden, wide)}.items():
            stacked = f"{prefix}.mlp.experts.{name}"
            tensors[stacked] = ("U8", (experts, shape[0], shape[1] // 2))
            tensors[f"{stacked}_weight_scale"] = ("F8_E4M3", (experts, shape[0], shape[1] // 16))
        for name, shape in {
            "gate_proj": (wide, hidden),
            "up_proj": (wide, hidden),
            "down_proj": (hidden, wide),
        }.items():
            tensors |= nvfp4(f"{prefix}.mlp.shared_expert.{name}", *shape)
    config: dict[str, object] = {
        "num_hidden_layers": 48,
        "num_experts_per_tok": 10,
        "linear_key_head_dim": 128,
    }
    found = costs(read_checkpoint(write(tmp_path / "model", tensors, config, shards=2)))
    assert (found.experts, found.chosen) == (512, 10)
    assert found.state is not None
    assert 2 * found.state == pytest.approx(0.151e9, rel=0.01)
    assert found.weights() + 2 * found.state == pytest.approx(4.89e9, rel=0.01)
    for context, speed in {0: 55.9, 8192: 53.6, 32768: 48.0, 131072: 33.7}.items():
        assert found.tokens_per_second(context, value_bytes=2) == pytest.approx(speed, rel=0.01)
    # Three tokens at once touch 29.4 of 512 experts, and each moves the state on: 6.84 GB a pass.
    assert found.weights(3) + 3 * 2 * found.state == pytest.approx(6.84e9, rel=0.01)


def test_experts_with_tensors_of_their_own_and_tied_embeddings(tmp_path: Path) -> None:
    tensors = bf16("model.embed_tokens", 1000, 64) | bf16("model.layers.0.mlp.gate", 8, 64)
    for expert in range(8):
        tensors |= bf16(f"model.layers.0.mlp.experts.{expert}.up_proj", 32, 64)
    tensors |= bf16(
        "model.layers.1.mlp.experts.0.up_proj", 32, 64
    )  # beyond the declared layers: multi-token prediction
    config: dict[str, object] = {"num_hidden_layers": 1, "num_experts_per_tok": 2}
    found = costs(read_checkpoint(write(tmp_path / "model", tensors, config, shards=1)))
    assert (found.experts, found.chosen) == (8, 2)
    assert found.weights() == 1000 * 64 * 2 + 8 * 64 * 2 + 2 * 32 * 64 * 2


def test_sliding_windows_bound_the_cache(tmp_path: Path) -> None:
    tensors: Tensors = {}
    for layer in range(2):
        for name in ("k_proj", "v_proj"):
            tensors |= bf16(f"model.layers.{layer}.self_attn.{name}", 128, 64)
    config: dict[str, object] = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 100}
    found = costs(read_checkpoint(write(tmp_path / "model", tensors, config, shards=1)))
    assert found.cache_bytes(1000, value_bytes=1) == 256 * 100 + 256 * 1000


def test_latent_attention_caches_one_vector(tmp_path: Path) -> None:
    tensors = bf16("model.layers.0.self_attn.kv_a_proj_with_mqa", 576, 64) | bf16(
        "model.layers.0.self_attn.kv_b_proj", 4096, 512
    )
    found = costs(read_checkpoint(write(tmp_path / "model", tensors, {}, shards=1)))
    assert found.cache_bytes(1, value_bytes=2) == 1152
