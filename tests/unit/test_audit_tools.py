"""Which tools the audit uses, and that it asks them once about the same device code."""

from pathlib import Path

import pytest

from sparkwright.audit import audit
from sparkwright.audit.disassembler import VARIABLE, find_disassembler
from sparkwright.errors import ConfigurationError, InputUnreadableError

DATA = Path(__file__).parent / "data" / "audit"
FAT_BINARY = bytes.fromhex("50ed55ba01001000 0800000000000000") + b"the code"


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of stand-ins that print stored output and note each call in `calls`."""
    folder = tmp_path / "tools"
    folder.mkdir()
    calls = folder / "calls"
    cuobjdump = f"""case "$1" in
-res-usage) cat {DATA}/plain.res-usage ;;
-xelf) : > "code.3.sm_121a.cubin" ;;
esac"""
    nvdisasm = f"""case "$1" in
--version) echo "Cuda compilation tools, release 13.2, V13.2.51" ;;
*) cat {DATA}/plain.sm_121a.sass ;;
esac"""
    for name, body in (("cuobjdump", cuobjdump), ("nvdisasm", nvdisasm)):
        script = folder / name
        script.write_text(f'#!/bin/sh\necho "{name} $1 $2" >> {calls}\n{body}\n')
        script.chmod(0o755)
    monkeypatch.setenv(VARIABLE, str(folder / "cuobjdump"))
    monkeypatch.setenv("SPARKWRIGHT_CACHE", str(tmp_path / "cache"))
    return folder


def test_a_fat_binary_is_inspected_once(tools: Path, tmp_path: Path) -> None:
    (tmp_path / "k.fatbin").write_bytes(FAT_BINARY)
    first = audit(tmp_path / "k.fatbin")
    (one,) = first.containers
    assert one.sass() == {"sm_80": 1, "sm_120f": 1, "sm_121a": 1}
    assert one.ptx() == {"sm_80": 1}
    assert first.totals().spilling_kernels == 1
    calls = (tools / "calls").read_text()
    assert "cuobjdump -xelf code.3." in calls
    (tmp_path / "copy.fatbin").write_bytes(FAT_BINARY)
    assert audit(tmp_path / "copy.fatbin").totals() == first.totals()
    assert (tools / "calls").read_text().replace("nvdisasm --version \n", "") == calls.replace(
        "nvdisasm --version \n", ""
    )


def test_a_damaged_record_is_made_again(tools: Path, tmp_path: Path) -> None:
    (tmp_path / "k.fatbin").write_bytes(FAT_BINARY)
    first = audit(tmp_path / "k.fatbin").totals()
    (record,) = (tmp_path / "cache" / "audit").rglob("*.json")
    record.write_text(record.read_text()[:-5])
    assert audit(tmp_path / "k.fatbin").totals() == first
    assert (tools / "calls").read_text().count("cuobjdump -xelf") == 2


def test_what_the_tools_cannot_read_is_unreadable(tools: Path, tmp_path: Path) -> None:
    (tools / "cuobjdump").write_text("#!/bin/sh\necho 'cuobjdump fatal' >&2\nexit 255\n")
    (tmp_path / "k.fatbin").write_bytes(FAT_BINARY)
    with pytest.raises(InputUnreadableError, match=r"k\.fatbin") as caught:
        audit(tmp_path / "k.fatbin")
    assert "cuobjdump fatal" in caught.value.what


def test_tools_that_were_chosen_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cuobjdump"))
    with pytest.raises(ConfigurationError, match="cannot be run"):
        find_disassembler()
