"""Finding device code in files of every kind, and refusing what is damaged."""

import struct
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkwright.audit import elf
from sparkwright.audit.containers import open_containers
from sparkwright.errors import InputUnreadableError

HOST = 62
CUDA = 190


def elf_file(contents: dict[str, bytes], *, machine: int = HOST) -> bytes:
    """A 64-bit ELF file with these sections and a table of their names at the end of the content."""
    contents = contents | {".shstrtab": b""}
    names = b"\0" + b"".join(name.encode() + b"\0" for name in contents)
    contents[".shstrtab"] = names
    body = b""
    headers = [bytes(64)]
    for name, content in contents.items():
        headers.append(
            struct.pack(
                "<IIQQQQIIQQ", names.index(name.encode() + b"\0"), 1, 0, 0, 64 + len(body), len(content), 0, 0, 8, 0
            )
        )
        body += content
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack(
        "<HHIQQQIHHHHHH", 1, machine, 1, 0, 0, 64 + len(body), 0, 64, 0, 0, 64, len(headers), len(headers) - 1
    )
    return header + body + b"".join(headers)


def fat_binary(content: bytes) -> bytes:
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(content)) + content


def found(path: Path, *, only: list[str] | None = None) -> dict[str, list[bytes]]:
    with open_containers(path, only=only) as containers:
        return {one.path: [bytes(piece) for piece in one.pieces] for one in containers}


LIBRARY = elf_file({".text": b"host", ".nv_fatbin": fat_binary(b"first") + bytes(3) + fat_binary(b"second") + bytes(8)})
PIECES = [fat_binary(b"first"), fat_binary(b"second")]
HOST_ONLY = elf_file({".text": b"host"})
CUBIN = elf_file({".text.k": b"code"}, machine=CUDA)


def test_a_library_gives_one_piece_for_each_translation_unit(tmp_path: Path) -> None:
    (tmp_path / "lib.so").write_bytes(LIBRARY)
    assert found(tmp_path / "lib.so") == {"lib.so": PIECES}


def test_relocatable_code_counts_where_nothing_is_linked(tmp_path: Path) -> None:
    relocatable = {"__nv_relfatbin": fat_binary(b"relocatable")}
    (tmp_path / "a.o").write_bytes(elf_file(relocatable))
    (tmp_path / "b.so").write_bytes(elf_file(relocatable | {".nv_fatbin": fat_binary(b"linked")}))
    assert found(tmp_path / "a.o") == {"a.o": [fat_binary(b"relocatable")]}
    assert found(tmp_path / "b.so") == {"b.so": [fat_binary(b"linked")]}


def test_a_cubin_and_a_fat_binary_are_taken_whole(tmp_path: Path) -> None:
    (tmp_path / "k.cubin").write_bytes(CUBIN)
    (tmp_path / "k.fatbin").write_bytes(PIECES[0])
    assert found(tmp_path / "k.cubin") == {"k.cubin": [CUBIN]}
    assert found(tmp_path / "k.fatbin") == {"k.fatbin": [PIECES[0]]}


def test_a_folder_gives_its_binaries_and_nothing_else(tmp_path: Path) -> None:
    package = tmp_path / "vllm"
    (package / "libs").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "libs" / "_C.so").write_bytes(LIBRARY)
    (package / "libs" / "_C.so.1").symlink_to("_C.so")
    (package / "spin.so").write_bytes(HOST_ONLY)
    assert found(package) == {"libs/_C.so": PIECES, "spin.so": []}
    assert found(package, only=["spin.so"]) == {"spin.so": []}


def test_a_wheel_gives_its_members(tmp_path: Path) -> None:
    wheel = tmp_path / "vllm-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("vllm/__init__.py", "x = 1\n")
        archive.writestr("vllm/_C.so", LIBRARY)
    assert found(wheel) == {"vllm/_C.so": PIECES}
    wheel.write_bytes(wheel.read_bytes()[:-40])
    with pytest.raises(InputUnreadableError, match="not a complete wheel"):
        found(wheel)


@pytest.mark.parametrize(("compression", "damage_at"), [(zipfile.ZIP_STORED, 100), (zipfile.ZIP_DEFLATED, 0)])
def test_a_wheel_with_a_damaged_member_is_refused(tmp_path: Path, compression: int, damage_at: int) -> None:
    wheel = tmp_path / "vllm-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", compression) as archive:
        archive.writestr("vllm/_C.so", LIBRARY)
    content = bytearray(wheel.read_bytes())
    start = content.index(b"vllm/_C.so") + len(b"vllm/_C.so") + damage_at
    content[start : start + 20] = b"\xff" * 20
    wheel.write_bytes(content)
    with pytest.raises(InputUnreadableError, match="not a complete wheel"):
        found(wheel)


@pytest.mark.parametrize("content", [b"", b"int main() {}\n", b"\x7fELF", b"\x7fELF\x01\x01" + bytes(60)])
def test_a_file_without_machine_code_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(InputUnreadableError):
        found(tmp_path / "file")


def test_a_missing_path_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputUnreadableError, match="cannot be read"):
        found(tmp_path / "missing.so")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputUnreadableError, match="empty folder"):
        found(tmp_path / "empty")


def test_something_else_among_the_fat_binaries_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lib.so").write_bytes(elf_file({".nv_fatbin": PIECES[0] + b"rubbish and more of it"}))
    with pytest.raises(InputUnreadableError, match="not a fat binary"):
        found(tmp_path / "lib.so")


def test_a_fat_binary_that_ends_too_early_is_refused(tmp_path: Path) -> None:
    (tmp_path / "k.fatbin").write_bytes(PIECES[0][:-1])
    with pytest.raises(InputUnreadableError, match="cut off"):
        found(tmp_path / "k.fatbin")


@given(length=st.integers(min_value=4, max_value=len(LIBRARY) - 1))
def test_an_elf_file_cut_anywhere_is_refused(length: int) -> None:
    with pytest.raises(InputUnreadableError):
        elf.sections(memoryview(LIBRARY[:length]), "lib.so")


def test_a_section_beyond_the_end_is_refused() -> None:
    lying = bytearray(LIBRARY)
    table = int.from_bytes(lying[40:48], "little")
    struct.pack_into("<Q", lying, table + 2 * 64 + 32, len(lying))
    with pytest.raises(InputUnreadableError, match="cut off"):
        elf.sections(memoryview(bytes(lying)), "lib.so")


def test_more_sections_than_the_header_can_count() -> None:
    whole = bytearray(LIBRARY)
    table = int.from_bytes(whole[40:48], "little")
    count, names = struct.unpack_from("<HH", whole, 60)
    struct.pack_into("<HH", whole, 60, 0, 0xFFFF)
    struct.pack_into("<QI", whole, table + 32, count, names)
    assert elf.sections(memoryview(bytes(whole)), "lib.so")[1:] == elf.sections(memoryview(LIBRARY), "lib.so")[1:]
