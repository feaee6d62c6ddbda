"""Judgements about a GPU, on what its probes print."""

from dataclasses import replace

import numpy as np
import pytest

from sparkwright.doctor import device_checks, device_program, nvfp4_probe
from sparkwright.doctor.device_checks import EXPECTED_LINEAR, Choice, Product
from sparkwright.doctor.device_program import SelfTest
from sparkwright.doctor.driver import Driver, Gpu
from sparkwright.doctor.model import Verdict
from sparkwright.doctor.nvfp4_probe import Matrix
from sparkwright.errors import InputUnreadableError

GB10 = Gpu(name="NVIDIA GB10", capability=(12, 1), memory=128 * 10**9, multiprocessors=48, integrated=True)
H200 = Gpu(name="NVIDIA H200", capability=(9, 0), memory=150 * 10**9, multiprocessors=132, integrated=False)
PRINTED = (
    '{"where": "device", "hardware_convert": true, '
    '"bfloat16": {"values": 65536, "mismatches": 0, "first": "0x00000000"}, '
    '"floats": {"values": 1048624, "mismatches": 0, "first": "0x00000000"}, "copied_per_second": 221000000000}\n'
)
GOOD = device_program.parse(PRINTED)


def software(found: SelfTest) -> SelfTest:
    return found.model_copy(update={"hardware_convert": False})


def test_the_target_keeps_the_suffix_that_fp4_needs() -> None:
    assert GB10.target == "sm_121a"
    assert H200.target == "sm_90a"
    assert replace(H200, capability=(8, 9)).target == "sm_89"


@pytest.mark.parametrize(
    ("cuda", "verdict"), [((13, 0), Verdict.PASS), ((13, 2), Verdict.PASS), ((12, 9), Verdict.FAIL)]
)
def test_the_driver_must_run_cuda_13(cuda: tuple[int, int], verdict: Verdict) -> None:
    assert device_checks.driver(Driver(cuda=cuda, gpus=(GB10,)), "580.95.05").verdict is verdict


def test_another_gpu_than_gb10_is_told() -> None:
    assert device_checks.gpu(GB10).verdict is Verdict.PASS
    assert device_checks.gpu(H200).verdict is Verdict.WARN


def test_a_gb10_shows_the_memory_of_the_machine() -> None:
    assert device_checks.gpu_memory(GB10, 128 * 10**9).verdict is Verdict.PASS
    assert device_checks.gpu_memory(GB10, 256 * 10**9).verdict is Verdict.WARN
    assert device_checks.gpu_memory(H200, 10**12).verdict is Verdict.PASS


def test_a_right_conversion_passes() -> None:
    result = device_checks.e2m1(GOOD, GB10)
    assert (result.verdict, result.found) == (
        Verdict.PASS,
        "65,536 bfloat16 and 1,048,624 floats by the instruction, all right",
    )
    assert device_checks.e2m1(software(GOOD), H200).verdict is Verdict.PASS


@pytest.mark.parametrize("sweep", ["bfloat16", "floats"])
def test_one_wrong_value_is_enough(sweep: str) -> None:
    wrong = GOOD.bfloat16.model_copy(update={"mismatches": 1, "first": "0x40200000"})
    result = device_checks.e2m1(GOOD.model_copy(update={sweep: wrong}), GB10)
    assert result.verdict is Verdict.FAIL
    assert "0x40200000" in result.found


def test_a_gb10_that_does_not_use_its_instruction_was_compiled_for_a_plain_target() -> None:
    result = device_checks.e2m1(software(GOOD), GB10)
    assert result.verdict is Verdict.FAIL
    assert "without suffix" in result.reason


@pytest.mark.parametrize(
    ("rate", "gpu", "verdict"),
    [
        (221e9, GB10, Verdict.PASS),
        (100e9, GB10, Verdict.WARN),
        (0, GB10, Verdict.WARN),
        (100e9, H200, Verdict.PASS),
    ],
)
def test_bandwidth_is_judged_on_a_gb10_only(rate: float, gpu: Gpu, verdict: Verdict) -> None:
    assert device_checks.bandwidth(GOOD.model_copy(update={"copied_per_second": rate}), gpu).verdict is verdict


@pytest.mark.parametrize("printed", ["", "{}", PRINTED[:-3], '{"where": "device", "error": "running the kernel: x"}'])
def test_what_is_no_result_is_refused(printed: str) -> None:
    with pytest.raises(InputUnreadableError):
        device_program.parse(printed)


def bfloat16(values: Matrix) -> Matrix:
    """Round to nearest, ties to even, as the operator's output is."""
    bits = values.astype(np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return np.asarray(rounded.astype(np.uint32).view(np.float32).astype(np.float64))


def quantized(side: Matrix) -> Matrix:
    """NVFP4 as vLLM's operator makes it with a global scale of 1: block scales in E4M3, values in E2M1."""
    import ml_dtypes

    blocks = side.reshape(-1, nvfp4_probe.BLOCK)
    scales = (np.abs(blocks).max(axis=1) / 6).astype(ml_dtypes.float8_e4m3fn).astype(np.float64)[:, None]
    codes = (blocks / scales).astype(np.float32).astype(ml_dtypes.float4_e2m1fn).astype(np.float64)
    return np.asarray((codes * scales).reshape(side.shape))


def test_the_operands_lose_nothing_when_they_are_quantized() -> None:
    side = nvfp4_probe.operand(nvfp4_probe.ROWS, nvfp4_probe.DEPTH, 1)
    assert np.array_equal(quantized(side), side)
    assert len(np.unique(np.abs(side))) > 10


def judge(product: nvfp4_probe.Product) -> tuple[Verdict, str]:
    result = device_checks.product(Product(**nvfp4_probe.compare(product)))
    return result.verdict, result.reason


def test_a_product_that_only_rounds_passes() -> None:
    assert judge(lambda left, right: bfloat16(quantized(left) @ quantized(right).T))[0] is Verdict.PASS


def test_an_empty_kernel_is_recognised() -> None:
    verdict, reason = judge(lambda left, right: np.zeros((len(left), len(right))))
    assert verdict is Verdict.FAIL
    assert "empty" in reason


def test_values_that_are_no_numbers_are_recognised() -> None:
    verdict, reason = judge(lambda left, right: np.full((len(left), len(right)), np.nan))
    assert verdict is Verdict.FAIL
    assert "no numbers" in reason


def test_scales_in_the_wrong_place_are_recognised() -> None:
    def swapped(left: Matrix, right: Matrix) -> Matrix:
        shifted = np.roll(left.reshape(len(left), -1, nvfp4_probe.BLOCK), 1, axis=1).reshape(left.shape)
        return bfloat16(shifted @ right.T)

    assert judge(swapped)[0] is Verdict.FAIL


def test_the_backend_that_vllm_takes_by_itself() -> None:
    own = Choice(flashinfer=True, chosen=EXPECTED_LINEAR, refused={})
    fallen_back = Choice(
        flashinfer=False, chosen="MarlinNvFp4LinearKernel", refused={EXPECTED_LINEAR: "FlashInfer is not usable"}
    )
    assert device_checks.choice(own, really=True).verdict is Verdict.PASS
    assert "as it would on a GB10" in device_checks.choice(own, really=False).found
    result = device_checks.choice(fallen_back, really=True)
    assert result.verdict is Verdict.WARN
    assert "FlashInfer is not usable" in result.reason
