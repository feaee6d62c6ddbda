"""What the audit reads out of the disassembler's text, on stored output about our own kernels."""

from pathlib import Path

import pytest

from sparkwright.audit.inspection import choose, parse_disassembly, parse_entries
from sparkwright.audit.model import MachineCode
from sparkwright.audit.target import Target

DATA = Path(__file__).parent / "data" / "audit"
COMPLAINT = b"\0ERROR : Arch conditional MMA instruction used without targeting appropriate compute capability.\0"


def counted(sample: str, *, cubin: bytes = b"", labelled: str = "sm_121a") -> MachineCode:
    text = (DATA / f"{sample}.sass").read_text(encoding="utf-8")
    return parse_disassembly(text, cubin=cubin, labelled=Target.parse(labelled), max_registers=40)


def test_block_scaled_fp4_is_counted() -> None:
    facts = counted("fp4_mma.sm_121a")
    assert (facts.kernels, facts.fp4_mma, facts.fp8_mma, facts.wrong_target_traps) == (1, 1, 0, 0)
    assert facts.max_registers == 40


def test_conversions_to_and_from_e2m1_are_told_apart() -> None:
    facts = counted("e2m1_convert.sm_121a")
    assert (facts.kernels, facts.e2m1_convert, facts.e2m1_decode, facts.fp4_mma) == (2, 1, 1, 0)


def test_a_kernel_that_stores_to_local_memory_is_counted_once() -> None:
    facts = counted("plain.sm_121a")
    assert (facts.kernels, facts.spilling_kernels) == (2, 1)


def test_a_trap_counts_only_beside_a_complaint_about_the_target() -> None:
    assert counted("fp4_mma.sm_121", cubin=COMPLAINT).wrong_target_traps == 1
    assert counted("fp4_mma.sm_121", cubin=b"an assertion of the program itself").wrong_target_traps == 0


@pytest.mark.parametrize(
    ("kernel", "traps"),
    [
        ("MainloopSm120TmaWarpSpecializedBlockScaled_Sm90TmaWarpSpecialized", 1),
        ("enable_sm120_family_SM75_U32x4_LDSM_N", 1),
        ("MainloopSm90TmaGmmaRmemAWarpSpecialized", 0),
        ("MainloopSm100TmaUmmaWarpSpecialized_5SM1004UMMA_Sm90", 0),
        ("a_kernel_of_our_own", 1),
    ],
)
def test_kernels_made_for_other_gpus_may_trap(kernel: str, traps: int) -> None:
    text = f"//--------------------- .text.{kernel}   ------\n        /*00d0*/                   BPT.TRAP 0x1 ;\n"
    facts = parse_disassembly(text, cubin=COMPLAINT, labelled=Target.parse("sm_120f"), max_registers=0)
    assert facts.wrong_target_traps == traps


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("OMMA.SF.16864.F32.E2M1.E2M1.UE4M3.4X R12, R8, R12, RZ, R0, R15, URZ", "fp4_mma"),
        ("@P0 OMMA.SF.SP.168128.F32.E2M1.E2M1.UE4M3.4X R12, R8", "fp4_mma"),
        ("@!UP1 QMMA.16832.F32.E4M3.E4M3 R4, R8, R2, R4", "fp8_mma"),
        ("QMMA.SF.16832.F32.E4M3.E4M3.E8 R4, R8, R2, R4, R0, R1, URZ", "fp8_mma"),
        ("F2FP.SATFINITE.E2M1.F32.PACK_AB_MERGE_C R0, R5, R0, RZ", "e2m1_convert"),
        ("F2FP.F16.E2M1.UNPACK_B R7, R2", "e2m1_decode"),
        ("STL.128 [R1+0x10], R8", "spilling_kernels"),
    ],
)
def test_an_instruction_is_counted_under_its_column_alone(line: str, field: str) -> None:
    text = f"//--------------------- .text.k   ------\n        /*00d0*/                   {line} ;\n"
    facts = parse_disassembly(text, cubin=b"", labelled=Target.parse("sm_121a"), max_registers=0)
    counts = facts.model_dump(exclude={"target"})
    assert {name for name, count in counts.items() if count} == {field}


@pytest.mark.parametrize(
    "line",
    [
        "HMMA.16816.F32.BF16 R4, R8, R2, R4",
        "OMMA.16864.F32.E2M1.E2M1 R12, R8, R12, RZ",
        "F2FP.SATFINITE.E4M3.F32.PACK_AB_MERGE_C R0, R5, R0, RZ",
        "F2FP.F16.E4M3.UNPACK_B R7, R2",
        "BPT.TRAP 0x1",
        "LDL R3, [R1]",
    ],
)
def test_other_instructions_are_not_counted(line: str) -> None:
    text = f"//--------------------- .text.k   ------\n        /*00d0*/                   {line} ;\n"
    facts = parse_disassembly(text, cubin=b"", labelled=Target.parse("sm_121a"), max_registers=0)
    assert not any(facts.model_dump(exclude={"target"}).values())


def test_members_of_a_fat_binary_are_read_in_order() -> None:
    entries = parse_entries((DATA / "plain.res-usage").read_text(encoding="utf-8"))
    assert [(entry.is_sass, str(entry.target)) for entry in entries] == [
        (False, "sm_80"),
        (True, "sm_80"),
        (True, "sm_120f"),
        (True, "sm_121a"),
    ]
    assert [entry.max_registers for entry in entries] == [0, 11, 12, 12]


@pytest.mark.parametrize(
    ("targets", "picked"),
    [
        (["sm_80", "sm_120f", "sm_121a"], "sm_121a"),
        (["sm_120", "sm_121"], "sm_121"),
        (["sm_120", "sm_120f", "sm_120a"], "sm_120f"),
        (["sm_90", "sm_120a"], "sm_120a"),
        (["sm_80", "sm_90a"], None),
        ([], None),
    ],
)
def test_the_code_that_gb10_picks_is_looked_into(targets: list[str], picked: str | None) -> None:
    chosen = choose(tuple(Target.parse(target) for target in targets))
    assert (None if chosen is None else targets[chosen]) == picked
