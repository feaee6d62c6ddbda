"""The machine code of the GEMV and the quantiser: what must be in it, what must not, and what a weight costs."""

import json
from pathlib import Path

import pytest
from tests.kernels.gemv_instructions import RECORD, TARGETS, compile_all, measured
from tests.kernels.sass import KERNELS, Code, count, functions, streaming_loop

pytestmark = pytest.mark.compiles

Compiled = dict[str, dict[str, Code]]


@pytest.fixture(scope="module")
def gemv(cuda_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    return compile_all(cuda_home, tmp_path_factory.mktemp("gemv"), (*TARGETS, "80"))


@pytest.fixture(scope="module")
def quantize(cuda_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    source, scratch = KERNELS / "nvfp4_quantize" / "nvfp4_quantize.cu", tmp_path_factory.mktemp("quantize")
    return {target: functions(cuda_home, source, target, scratch) for target in ("121a", "121", "90", "80")}


@pytest.mark.parametrize("target", ["121a", "90"])
def test_nothing_spills_and_nothing_is_in_double_precision(gemv: Compiled, quantize: Compiled, target: str) -> None:
    kernels = gemv[target] | quantize[target]
    assert len(gemv[target]) == 48
    assert len(quantize[target]) == 2
    for name, code in kernels.items():
        assert count(code, r"LDL|STL") == 0, name
        assert count(code, r"DADD|DMUL|DFMA|F2F\.F64") == 0, name


@pytest.mark.parametrize("target", ["121a", "90"])
def test_weights_stream_in_loads_of_16_bytes(gemv: Compiled, target: str) -> None:
    for name, code in gemv[target].items():
        loop = streaming_loop(code)
        width = r"LDG\.E\.NA\.128" if "32 weights" in name else r"LDG\.E\.NA\.64"
        assert count(loop, width) == 4, name
        assert count(loop, r"LDG\.E\.NA") == 4, name
        # x comes in loads of 16 bytes from shared memory, and the scales of four tiled rows with one.
        assert count(loop, r"LDS") == count(loop, r"LDS\.128") > 0, name
        assert count(loop, r"STG|ATOM|RED") == 0, name
        # Where a warp has one chunk of what lies in shared memory, the loop is the one that fetches x.
        fetches_x = "two warps" in name and name.split(", ")[1] in {"4 rows of x", "8 rows of x"}
        assert (count(loop, r"BAR") > 0) == fetches_x, name
        assert fetches_x or count(loop, r"LDG") == 4 + (1 if "tiled" in name else 4), name


def test_the_targets_own_converts_are_used(gemv: Compiled) -> None:
    for name, code in gemv["121a"].items():
        loop = streaming_loop(code)
        weights = 4 * (32 if "32 weights" in name else 16)
        assert count(loop, r"F2FP\.F16\.E2M1") == weights // 2, name
        assert count(loop, r"F2FP\.F16\.E4M3") == weights // 16, name
    for name, code in gemv["90"].items():
        loop = streaming_loop(code)
        weights = 4 * (32 if "32 weights" in name else 16)
        assert count(loop, r"F2FP\.F16\.E4M3") == weights // 2 + weights // 16, name


def test_each_product_is_one_fused_multiply_add(gemv: Compiled) -> None:
    for target, kernels in gemv.items():
        for name, code in kernels.items():
            rows, weights = int(name.split(", ")[1].split()[0]), 4 * (32 if "32 weights" in name else 16)
            assert count(streaming_loop(code), r"FFMA") == rows * (weights + weights // 16), f"{target}: {name}"


def test_what_a_weight_costs_is_on_record(gemv: Compiled) -> None:
    recorded = json.loads(RECORD.read_text(encoding="utf-8"))
    del recorded["units"]
    assert measured({target: gemv[target] for target in TARGETS}) == recorded, (
        "the compiler's output differs from the record; if that is meant, run python -m tests.kernels.gemv_instructions"
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


def test_the_oldest_gpu_that_the_gemv_is_meant_for_has_no_converts(gemv: Compiled) -> None:
    assert len(gemv["80"]) == 48
    for code in gemv["80"].values():
        assert count(code, r"F2FP\.F16\.E") == 0
        assert count(streaming_loop(code), r"LDG\.E\.NA") == 4
