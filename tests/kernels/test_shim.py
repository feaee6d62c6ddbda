"""The shim runs kernels as CUDA defines them, and says where one is wrong."""

import ctypes
import re
from pathlib import Path

import numpy as np
import pytest
from tests.kernels.launchers import Array, environment

pytestmark = pytest.mark.compiles


class Cases:
    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))

    def run(self, name: str, size: int = 4096) -> tuple[Array, str]:
        out, message = np.zeros(size, np.float32), ctypes.create_string_buffer(4096)
        self._library.run_case(name.encode(), ctypes.c_void_p(out.ctypes.data), message, ctypes.c_size_t(4096))
        return out, message.value.decode()


@pytest.fixture(scope="module")
def cases(shim_cases: Path) -> Cases:
    return Cases(shim_cases)


def result(cases: Cases, name: str, size: int) -> list[float]:
    out, message = cases.run(name)
    assert message == ""
    assert not out[size:].any()
    values: list[float] = out[:size].tolist()
    return values


def test_every_thread_of_every_block_runs_with_its_index(cases: Cases) -> None:
    assert result(cases, "indices", 12 * 24) == [1000 * block + thread for block in range(12) for thread in range(24)]


def test_a_barrier_lets_threads_exchange_shared_memory(cases: Cases) -> None:
    assert result(cases, "reverse", 96) == list(range(95, -1, -1))
    assert result(cases, "static_shared", 192) == [64 * block + 63 - i for block in range(3) for i in range(64)]


@pytest.mark.parametrize("order", ["ascending", "descending", "random:1", "random:2"])
def test_the_order_of_turns_decides_only_where_a_barrier_is_missing(cases: Cases, order: str) -> None:
    with environment("SIMT_ORDER", order):
        assert result(cases, "reverse", 96) == list(range(95, -1, -1))
        wrong, _ = cases.run("reverse_without_barrier")
    assert np.isnan(wrong[:96]).any()


def test_warp_exchanges_are_those_of_cuda(cases: Cases) -> None:
    rows = np.array(result(cases, "shuffles", 8 * 32)).reshape(8, 32).tolist()
    lanes = range(32)
    assert rows[0] == [496] * 32
    assert rows[1] == [lane + 3 if lane + 3 < 32 else lane for lane in lanes]
    assert rows[2] == [lane - 3 if lane >= 3 else lane for lane in lanes]
    assert rows[3] == [lane // 8 * 8 + 5 for lane in lanes]
    assert rows[4] == [lane ^ 4 if (lane ^ 4) < lane // 4 * 4 + 4 else lane for lane in lanes]
    assert rows[5] == [31] * 32
    assert rows[6] == [1 + 0 + 4] * 32
    assert rows[7] == [lane ^ (1 if lane < 16 else 2) for lane in lanes]


def test_atomics_count_every_thread(cases: Cases) -> None:
    assert result(cases, "counts", 1) == [5 * 7 * 33]


def test_shared_memory_holds_nan_when_a_block_starts(cases: Cases) -> None:
    out, message = cases.run("fresh_shared")
    assert message == ""
    assert np.isnan(out[:32]).all()


@pytest.mark.parametrize(
    ("case", "complaint"),
    [
        ("barrier_for_some", "wait for each other.*threads 0 to 31: __syncthreads at line .*32 to 63: returned"),
        ("two_barriers", "wait at different barriers"),
        ("returned_before", "threads 7 to 7: returned"),
        ("shuffle_for_some", "threads 0 to 30: __shfl_xor_sync at line .* with mask 0xffffffff"),
        ("mask_without_caller", "mask that leaves it out"),
        ("reads_absent_lane", "lane 20 is read and takes no part"),
        ("block_too_large", "a block of 1025 threads"),
        ("no_blocks", "a grid of no blocks"),
        ("grid_y_too_large", "a grid of 1 x 65536 x 1 blocks"),
        ("shared_too_large", "101377 bytes of shared memory"),
    ],
)
def test_misuse_ends_with_an_error_that_says_where(cases: Cases, case: str, complaint: str) -> None:
    _, message = cases.run(case)
    assert message.startswith("k: ")
    assert re.search(complaint, message), message


def test_after_an_error_the_next_kernel_runs(cases: Cases) -> None:
    cases.run("barrier_for_some")
    assert result(cases, "reverse", 96) == list(range(95, -1, -1))


def test_a_sample_of_blocks_reaches_the_far_end_of_a_grid(cases: Cases) -> None:
    with environment("SIMT_SAMPLE", "9"):
        assert result(cases, "far_blocks", 1) == [9]
    with environment("SIMT_SAMPLE", "1"):
        assert "SIMT_SAMPLE" in cases.run("far_blocks")[1]
    with environment("SIMT_ORDER", "sideways"):
        assert "SIMT_ORDER" in cases.run("counts")[1]
