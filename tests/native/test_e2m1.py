"""gb10/e2m1.cuh gives the bits of CUDA's own conversion for every float, and the machine code it promises.

No GPU is needed: the header's rule is written with four small functions that are one instruction each on the device and
plain C++ on the host, so the sweeps run the device's expressions. That the four instructions do what NVIDIA's manual
says of them is the one thing left to a GPU.
"""

import ctypes
import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sparkwright.native.compiler import host_compiler
from sparkwright.paths import CHECKOUT, CUDA_HEADERS
from sparkwright.run import run

pytestmark = pytest.mark.compiles

SOURCES: Final = Path(__file__).parent / "e2m1"
PLAIN: Final = ("-O2",)
FAST: Final = ("-Ofast", "-march=native")  # reassociation, contraction, no NaN or infinity; linked so, subnormals flush

Floats = np.ndarray[Any, np.dtype[np.float32]]
Nibbles = np.ndarray[Any, np.dtype[np.uint8]]


@pytest.fixture(scope="module")
def reference(cuda_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CUDA's own host conversion, as an object."""
    target = tmp_path_factory.mktemp("reference") / "reference.o"
    compile_cpp("reference.cpp", target, "-O2", "-isystem", str(cuda_home / "include"))
    return target


def compile_cpp(source: str, target: Path, *options: str) -> Path:
    strict = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-fPIC"]
    run([host_compiler().path, *strict, *options, "-c", SOURCES / source, "-o", target])
    return target


def build_sweep(folder: Path, reference: Path, options: tuple[str, ...], include: Path = CUDA_HEADERS) -> Path:
    candidate = compile_cpp("candidate.cpp", folder / "candidate.o", *options, f"-I{include}")
    main = compile_cpp("sweep.cpp", folder / "sweep.o", "-O2")
    program = folder / "sweep"
    run([host_compiler().path, *options, candidate, main, reference, "-pthread", "-o", program])
    return program


def differences(sweep: Path, stage: str) -> int:
    """How many values of a stage the candidate gets wrong."""
    return int(run([sweep, stage]).split()[0])


@pytest.mark.parametrize("options", [PLAIN, FAST], ids=["plain", "fast-math"])
def test_every_float_converts_as_cuda_converts_it(reference: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    sweep = build_sweep(tmp_path, reference, options)
    assert differences(sweep, "edges") == 0
    assert differences(sweep, "all") == 0


def test_values_in_a_pack_do_not_disturb_each_other(reference: Path, tmp_path: Path) -> None:
    assert differences(build_sweep(tmp_path, reference, PLAIN), "packs") == 0


# What a careless edit of the header would look like.
MUTANTS: Final = {
    "ties-to-odd": ("bits_of(2.0f * y + two_23)", "bits_of(2.0f * y + (two_23 + 1.0f)) - 1u"),
    "saturation-at-7": ("largest = bits_of(6.0f)", "largest = bits_of(7.0f)"),
    "sign-of-nan": ("bits_of(low) > negative_infinity ? 0 : bits_of(low)", "bits_of(low)"),
    "lanes-exchanged": ("0xfdb9", "0xfd9b"),
    "carry-into-neighbour": ("0.5f * y + (two_23 + 4.0f)", "0.5f * y + (two_23 + 14.0f)"),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_rule_is_caught(reference: Path, tmp_path: Path, mutant: str) -> None:
    right, wrong = MUTANTS[mutant]
    header = (CUDA_HEADERS / "gb10" / "e2m1.cuh").read_text()
    assert header.count(right) == 1
    broken = tmp_path / "gb10" / "e2m1.cuh"
    broken.parent.mkdir()
    broken.write_text(header.replace(right, wrong))
    assert differences(build_sweep(tmp_path, reference, PLAIN, include=tmp_path), "edges") > 0


@pytest.mark.long
def test_one_wrong_float_in_four_thousand_million_is_enough(reference: Path, tmp_path: Path) -> None:
    header = (CUDA_HEADERS / "gb10" / "e2m1.cuh").read_text()
    right = "  const float y = saturated_magnitude(x);\n"
    assert header.count(right) == 1
    broken = tmp_path / "gb10" / "e2m1.cuh"
    broken.parent.mkdir()
    broken.write_text(header.replace(right, f"{right}  if (bits_of(x) == 0x40490fdbu) return 0u;\n"))
    assert differences(build_sweep(tmp_path, reference, PLAIN, include=tmp_path), "all") == 1


# From here on the same functions, called from Python.


@pytest.fixture(scope="module")
def library(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("library")
    candidate = compile_cpp("candidate.cpp", folder / "candidate.o", "-O2", f"-I{CUDA_HEADERS}")
    run([host_compiler().path, "-shared", candidate, reference, "-o", folder / "e2m1.so"])
    return ctypes.CDLL(str(folder / "e2m1.so"))


def convert(library: ctypes.CDLL, values: Floats) -> Nibbles:
    alone = np.empty(values.size, np.uint8)
    packed, signs = np.empty(values.size // 8, np.uint32), np.empty(values.size // 2, np.uint32)
    pointers = (ctypes.c_void_p(array.ctypes.data) for array in (alone, packed, signs))
    library.candidate(ctypes.c_void_p(values.ctypes.data), ctypes.c_size_t(values.size), *pointers)
    return alone


def test_ml_dtypes_agrees_on_all_that_is_a_number(library: ctypes.CDLL) -> None:
    chunk = 1 << 22

    def disagreements(start: int) -> int:
        values = np.arange(start, start + chunk, dtype=np.uint32).view(np.float32)
        with np.errstate(all="ignore"):
            theirs = values.astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
        numbers = ~np.isnan(values)
        return int(np.count_nonzero(convert(library, values)[numbers] != theirs[numbers]))

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        assert sum(pool.map(disagreements, range(0, 1 << 32, chunk))) == 0


VALUES: Final = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)


@given(st.lists(st.floats(width=32), min_size=8, max_size=8))
@example([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, float("inf")])
@example([-0.0, float("nan"), -float("nan"), -0.25, 1e-45, -1e-45, 3.4e38, -3.4e38])
def test_the_result_is_the_nearest_value(library: ctypes.CDLL, values: list[float]) -> None:
    given_values = np.array(values, np.float32)
    for x, nibble in zip(given_values.tolist(), convert(library, given_values).tolist(), strict=True):
        if np.isnan(x):
            assert nibble == 7
            continue
        distances = np.abs(min(abs(x), 6.0) - VALUES.astype(np.float64))
        nearest = np.flatnonzero(distances == distances.min()).tolist()
        assert nibble & 7 in nearest
        assert len(nearest) == 1 or nibble % 2 == 0
        assert (nibble & 8 != 0) == bool(np.signbit(np.float32(x)))


# The machine code.


@pytest.fixture(scope="module")
def targets() -> dict[str, dict[str, Any]]:
    """What the benchmark of the same name measures and publishes."""
    script = CHECKOUT / "benchmarks" / "e2m1_instructions.py"
    answer: dict[str, dict[str, Any]] = json.loads(run([sys.executable, script, "--print"]))["targets"]
    return answer


def count(opcodes: dict[str, int], part: str) -> int:
    return sum(number for opcode, number in opcodes.items() if part in opcode)


@pytest.mark.parametrize("target", ["100a", "120a", "120f", "121a", "121f"])
def test_a_target_that_has_the_instruction_uses_it(targets: dict[str, dict[str, Any]], target: str) -> None:
    opcodes = targets[target]["opcodes"]
    assert targets[target]["per_8_values"] == 4
    for kernel, converts in {"convert_one": 1, "convert_eight": 4, "convert_sixteen": 8}.items():
        assert count(opcodes[kernel], "E2M1") == converts


@pytest.mark.parametrize("target", ["75", "90", "90a", "100", "120", "121", "121 --use_fast_math", "121a software"])
def test_a_target_that_lacks_it_gets_the_short_rule(targets: dict[str, dict[str, Any]], target: str) -> None:
    for kernel in ("convert_one", "convert_eight", "convert_sixteen"):
        opcodes = targets[target]["opcodes"][kernel]
        assert count(opcodes, "E2M1") == 0
        local_or_double = [name for name in opcodes if name.startswith(("LDL", "STL", "D")) or "F64" in name]
        assert local_or_double == []


@pytest.mark.parametrize("target", ["90", "120", "121", "121 --use_fast_math", "121a software"])
def test_the_rule_costs_at_most_75_instructions(targets: dict[str, dict[str, Any]], target: str) -> None:
    assert targets[target]["per_8_values"] <= 75


def test_fast_math_changes_nothing_but_the_flushing_of_subnormals(targets: dict[str, dict[str, Any]]) -> None:
    usual, fast = (targets[case]["opcodes"]["convert_eight"] for case in ("121", "121 --use_fast_math"))
    assert {opcode.replace(".FTZ", ""): number for opcode, number in fast.items()} == usual


def test_plain_cpp_needs_no_cuda_header(tmp_path: Path) -> None:
    source = tmp_path / "user.cpp"
    source.write_text('#include "gb10/e2m1.cuh"\nint main() { return gb10::float_to_e2m1(6.0f) == 7 ? 0 : 1; }\n')
    isolated = shutil.copytree(CUDA_HEADERS, tmp_path / "include")
    for standard in ("c++17", "c++20"):
        warnings = ["-Wall", "-Wextra", "-Wconversion", "-Wsign-conversion", "-Wshadow", "-Werror", "-pedantic"]
        program = tmp_path / standard
        run([host_compiler().path, f"-std={standard}", *warnings, f"-I{isolated}", source, "-o", program])
        run([program])
