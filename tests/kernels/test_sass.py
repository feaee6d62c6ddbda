"""The machine code of the kernels: what must be in it, what must not, and what a weight costs."""

import json
from pathlib import Path

import pytest
from tests.kernels.instructions import ALL, GEMV, GEMV_2OF4, MOE_DECODE, Compiled, Streaming, compile_all, measured
from tests.kernels.sass import KERNELS, Code, count, functions, streaming_loop

pytestmark = pytest.mark.compiles

INSTANCES = {GEMV.name: 48, MOE_DECODE.name: 16, GEMV_2OF4.name: 16}


@pytest.fixture(scope="module")
def streaming(cuda_home: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Compiled]:
    """The kernels that stream weights, for GB10, for Hopper and for the oldest GPU that they are meant for."""
    return compile_all(cuda_home, tmp_path_factory.mktemp("streaming"), ("121a", "90", "80"))


@pytest.fixture(scope="module")
def gemv(streaming: dict[str, Compiled]) -> Compiled:
    return streaming[GEMV.name]


@pytest.fixture(scope="module")
def moe_decode(streaming: dict[str, Compiled]) -> Compiled:
    return streaming[MOE_DECODE.name]


@pytest.fixture(scope="module")
def gemv_2of4(streaming: dict[str, Compiled]) -> Compiled:
    return streaming[GEMV_2OF4.name]


@pytest.fixture(scope="module")
def quantize(cuda_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    source, scratch = KERNELS / "nvfp4_quantize" / "nvfp4_quantize.cu", tmp_path_factory.mktemp("quantize")
    return {target: functions(cuda_home, source, target, scratch) for target in ("121a", "121", "90", "80")}


def wide_loops(kernel: Streaming, kernels: dict[str, Code]) -> dict[str, Code]:
    """The streaming loops of the variants with loads of 16 bytes."""
    return {name: streaming_loop(code) for name, code in kernels.items() if kernel.is_wide(name)}


@pytest.mark.parametrize("target", ["121a", "90", "80"])
@pytest.mark.parametrize("kernel", [*INSTANCES, "nvfp4_quantize"])
def test_nothing_is_in_local_memory_or_in_double_precision(
    streaming: dict[str, Compiled], quantize: Compiled, kernel: str, target: str
) -> None:
    kernels = (streaming | {"nvfp4_quantize": quantize})[kernel][target]
    assert len(kernels) == INSTANCES.get(kernel, 2)
    for name, code in kernels.items():
        assert count(code, r"LDL|STL") == 0, name
        # Before 8.9 CUDA's own header rounds to E4M3 by way of doubles.
        if (kernel, target) != ("nvfp4_quantize", "80"):
            assert count(code, r"DADD|DMUL|DFMA|F2F\.F64") == 0, name


@pytest.mark.parametrize("target", ["121a", "90"])
def test_weights_of_the_gemv_stream_in_loads_of_16_bytes(gemv: Compiled, target: str) -> None:
    for name, code in gemv[target].items():
        loop = streaming_loop(code)
        width = r"LDG\.E\.NA\.128" if GEMV.is_wide(name) else r"LDG\.E\.NA\.64"
        assert count(loop, width) == 4, name
        assert count(loop, r"LDG\.E\.NA") == 4, name
        # x comes in loads of 16 bytes from shared memory, and the scales of four tiled rows with one.
        assert count(loop, r"LDS") == count(loop, r"LDS\.128") > 0, name
        assert count(loop, r"STG|ATOM|RED") == 0, name
        # Where a warp has one chunk of what lies in shared memory, the loop is the one that fetches x.
        fetches_x = "two warps" in name and name.split(", ")[1] in {"4 rows of x", "8 rows of x"}
        assert (count(loop, r"BAR") > 0) == fetches_x, name
        assert fetches_x or count(loop, r"LDG") == 4 + (1 if "tiled" in name else 4), name


@pytest.mark.parametrize("target", ["121a", "90"])
def test_weights_of_experts_stream_in_loads_of_16_bytes(moe_decode: Compiled, target: str) -> None:
    for name, code in moe_decode[target].items():
        loop = streaming_loop(code)
        wide = MOE_DECODE.is_wide(name)
        assert count(loop, r"LDG\.E\.NA\.128" if wide else r"LDG\.E\.NA\.64") == 4, name
        assert count(loop, r"LDG\.E\.NA") == 4, name
        # The two scales of a load come with one, and x or the activated states in 16 bytes.
        assert count(loop, r"LDG\.E\.U16" if wide else r"LDG\.E\.U8") == 4, name
        inputs = (32 if wide else 16) * (4 if "down" in name else 2) // 16
        assert count(loop, r"LDG\.E\.128") == inputs, name
        # For the down projection also whose expert, its two factors, and the map.
        chosen = count(loop, r"LDG\.E(\.64)?(\.CONSTANT)?$")
        assert count(loop, r"LDG") == 4 + 4 + inputs + chosen, name
        assert chosen == (5 if "down" in name else 0), name
        assert count(loop, r"STG|ATOM|RED|BAR|STS|LDS") == 0, name


@pytest.mark.parametrize("target", ["121a", "90"])
def test_kept_weights_stream_in_loads_of_16_bytes(gemv_2of4: Compiled, target: str) -> None:
    for name, loop in wide_loops(GEMV_2OF4, gemv_2of4[target]).items():
        tokens = int(name.split(", ")[1].split()[0])
        # Codes, positions and scales of two rows, and 64 places of each row of x.
        assert count(loop, r"LDG\.E\.NA\.128") == 2, name
        assert count(loop, r"LDG\.E\.NA\.64") == 2, name
        assert count(loop, r"LDG\.E\.CONSTANT") == 2, name
        assert count(loop, r"LDG\.E\.128") == 8 * tokens, name
        assert count(loop, r"LDG") == 6 + 8 * tokens, name
        assert count(loop, r"STG|ATOM|RED|BAR|STS|LDS") == 0, name


@pytest.mark.parametrize("target", ["121a", "90"])
@pytest.mark.parametrize("kernel", ALL, ids=lambda kernel: kernel.name)
def test_all_loads_of_weights_start_before_the_first_product(
    streaming: dict[str, Compiled], kernel: Streaming, target: str
) -> None:
    """A load behind a product waits for the memory that the product waits for."""
    late = {}
    for name, code in streaming[kernel.name][target].items():
        if count(code, r"LDG\.E\.NA"):  # all but the 2:4 kernel's variants for odd widths
            loop = streaming_loop(code)
            products = [at for at, instruction in enumerate(loop) if instruction.opcode.startswith("FFMA")]
            late[name] = count(loop[products[0] :], r"LDG\.E\.NA")
    assert set(late.values()) == {0}, late


def converts(kernel: Streaming, name: str) -> tuple[int, int]:
    """The codes and scales of a turn of the loop, in instructions of two each where they come in pairs."""
    weights = kernel.weights(name)
    scales = weights // 16
    if kernel is MOE_DECODE:
        return weights // 2, kernel.rows
    return weights // (4 if kernel is GEMV_2OF4 else 2), scales


@pytest.mark.parametrize("kernel", ALL, ids=lambda kernel: kernel.name)
def test_the_targets_own_converts_are_used(streaming: dict[str, Compiled], kernel: Streaming) -> None:
    compiled = streaming[kernel.name]
    for name, loop in wide_loops(kernel, compiled["121a"]).items():
        codes, scales = converts(kernel, name)
        assert count(loop, r"F2FP\.F16\.E2M1") == codes, name
        assert count(loop, r"F2FP\.F16\.E4M3") == scales, name
    for name, loop in wide_loops(kernel, compiled["90"]).items():
        codes, scales = converts(kernel, name)
        assert count(loop, r"F2FP\.F16\.E4M3") == codes + scales, name
    for name, code in compiled["80"].items():
        assert count(code, r"F2FP\.F16\.E") == 0, name


def test_each_product_is_one_fused_multiply_add(streaming: dict[str, Compiled]) -> None:
    for kernel in ALL:
        for target, kernels in streaming[kernel.name].items():
            for name, loop in wide_loops(kernel, kernels).items():
                rows = 1 if kernel is MOE_DECODE else int(name.split(", ")[1].split()[0])
                weights = kernel.weights(name)
                # Down weights the sum of each expert, too.
                choices = kernel.rows if name.startswith("down") else 0
                assert count(loop, r"FFMA") == rows * (weights + weights // 16) + choices, f"{target}: {name}"


@pytest.mark.parametrize("kernel", ALL, ids=lambda kernel: kernel.name)
def test_what_a_weight_costs_is_on_record(streaming: dict[str, Compiled], kernel: Streaming) -> None:
    recorded = json.loads(kernel.record.read_text(encoding="utf-8"))
    del recorded["units"]
    assert measured(kernel, streaming[kernel.name]) == recorded, (
        "the compiler's output differs from the record; if that is meant, run python -m tests.kernels.instructions"
    )


def test_the_quantiser_converts_by_instruction_where_there_is_one(quantize: Compiled) -> None:
    for code in quantize["121a"].values():
        assert count(code, r"F2FP\.SATFINITE\.E2M1") > 0
        assert count(code, r"F2FP\.SATFINITE\.E4M3") > 0
    for target in ("121", "90", "80"):
        for code in quantize[target].values():
            assert count(code, r"F2FP\.SATFINITE\.E2M1") == 0
            assert (count(code, r"F2FP\.SATFINITE\.E4M3") > 0) == (target != "80")
    for kernels in quantize.values():
        for code in kernels.values():
            assert count(code, r"MUFU\.RCP") > 0
            assert count(code, r"LDG\.E(\.\w+)*\.128") > 0
            assert count(code, r"STG\.E\.64") > 0
            assert count(code, r"LDL|STL") == 0
