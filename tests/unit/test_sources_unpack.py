"""Unpacking archives that are what they should be, and archives that were made to do harm."""

import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sparkwright.errors import InputUnreadableError, OutputError
from sparkwright.sources import unpack

TEXT = b"some source\n"


def entry(name: str, content: bytes = TEXT, *, mode: int = 0o644) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    member.mode = mode
    member.mtime = 1_600_000_000
    return member, content


def special(name: str, kind: bytes, link: str = "") -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type = kind
    member.linkname = link
    return member, b""


def make_tar(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for member, content in members:
            tar.addfile(member, io.BytesIO(content))
    return path


def make_zip(path: Path, *members: tuple[str, int]) -> Path:
    """A zip of members with a Unix mode each (0: made on a system that has none)."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as package:
        for name, mode in members:
            info = zipfile.ZipInfo(name, date_time=(2020, 9, 13, 12, 26, 40))
            info.create_system = 3
            info.external_attr = mode << 16
            package.writestr(info, TEXT)
    return path


@pytest.fixture
def sdist(tmp_path: Path) -> Path:
    return make_tar(
        tmp_path / "demo-1.0.tar.gz",
        special("demo-1.0", tarfile.DIRTYPE),
        entry("demo-1.0/README"),
        entry("demo-1.0/bin/tool", mode=0o4777),
        special("demo-1.0/deep/down/link", tarfile.SYMTYPE, "../../README"),
        special("demo-1.0/bin/same", tarfile.LNKTYPE, "demo-1.0/bin/tool"),
        special("demo-1.0/empty", tarfile.DIRTYPE),
    )


def test_sdist(sdist: Path, tmp_path: Path) -> None:
    root = unpack(sdist, tmp_path / "out")
    assert root == tmp_path / "out" / "demo-1.0"
    assert (root / "README").read_bytes() == (root / "deep/down/link").read_bytes() == TEXT
    assert (root / "README").stat().st_mtime == 1_600_000_000
    assert stat.S_IMODE((root / "README").stat().st_mode) == 0o644
    assert stat.S_IMODE((root / "bin/tool").stat().st_mode) == 0o755
    assert (root / "bin/same").read_bytes() == TEXT
    assert (root / "empty").is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.lock", "demo-1.0.tar.gz", "out"]


def test_wheel_keeps_what_is_executable(tmp_path: Path) -> None:
    wheel = make_zip(
        tmp_path / "demo-1.0-py3-none-any.whl",
        ("demo/__init__.py", stat.S_IFREG | 0o664),
        ("demo/bin/nvcc", stat.S_IFREG | 0o755),
        ("demo/data", 0),
    )
    root = unpack(wheel, tmp_path / "out")
    assert root == tmp_path / "out"
    modes = {name: stat.S_IMODE((root / "demo" / name).stat().st_mode) for name in ("__init__.py", "bin/nvcc", "data")}
    assert modes == {"__init__.py": 0o644, "bin/nvcc": 0o755, "data": 0o644}
    assert (root / "demo/data").stat().st_mtime == 1_600_000_000


@pytest.mark.parametrize(
    "member",
    [
        pytest.param(entry("/etc/cron.d/x"), id="absolute"),
        pytest.param(entry("demo-1.0/../../x"), id="parent in the middle"),
        pytest.param(entry("../x"), id="parent"),
        pytest.param(entry("demo-1.0\\..\\..\\x"), id="backslashes"),
        pytest.param(special("demo-1.0/x", tarfile.CHRTYPE), id="character device"),
        pytest.param(special("demo-1.0/x", tarfile.BLKTYPE), id="block device"),
        pytest.param(special("demo-1.0/x", tarfile.FIFOTYPE), id="pipe"),
        pytest.param(special("demo-1.0/x", tarfile.SYMTYPE, "/etc/passwd"), id="absolute link"),
        pytest.param(special("demo-1.0/x", tarfile.SYMTYPE, "../../etc/passwd"), id="link out"),
        pytest.param(special("demo-1.0/x", tarfile.SYMTYPE, "README/../../../etc"), id="link out by way of a name"),
        pytest.param(special("demo-1.0/x", tarfile.SYMTYPE, ""), id="link to nothing"),
        pytest.param(special("demo-1.0/x", tarfile.LNKTYPE, "/etc/passwd"), id="absolute hard link"),
        pytest.param(special("demo-1.0/x", tarfile.LNKTYPE, "../etc/passwd"), id="hard link out"),
    ],
)
def test_sdist_that_reaches_out_is_refused(tmp_path: Path, member: tuple[tarfile.TarInfo, bytes]) -> None:
    archive = make_tar(tmp_path / "demo-1.0.tar.gz", entry("demo-1.0/README"), member)
    with pytest.raises(InputUnreadableError, match="is refused: its member"):
        unpack(archive, tmp_path / "deep" / "out")
    assert not [path for path in tmp_path.rglob("*") if path.name not in {"demo-1.0.tar.gz", "deep", ".out.lock"}]


@pytest.mark.parametrize(
    "members",
    [
        pytest.param([entry("demo-1.0/in/x")], id="file through a link"),
        pytest.param([special("demo-1.0/in/x", tarfile.DIRTYPE)], id="folder through a link"),
        pytest.param([special("demo-1.0/in/x", tarfile.SYMTYPE, "README")], id="link through a link"),
        pytest.param([special("demo-1.0/x", tarfile.LNKTYPE, "demo-1.0/in")], id="hard link to a link"),
        pytest.param([special("demo-1.0/x", tarfile.LNKTYPE, "demo-1.0/in/README")], id="hard link through a link"),
        pytest.param([entry("demo-1.0/in")], id="file over a link"),
    ],
)
def test_link_inside_is_never_written_through(tmp_path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    harmless = [entry("demo-1.0/sub/README"), special("demo-1.0/in", tarfile.SYMTYPE, "sub")]
    unpack(make_tar(tmp_path / "demo-0.9.tar.gz", *harmless), tmp_path / "harmless")
    archive = make_tar(tmp_path / "demo-1.0.tar.gz", *harmless, *members)
    with pytest.raises(InputUnreadableError):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("/etc/x", 0),
        ("../x", 0),
        ("demo/../../x", 0),
        ("demo\\..\\x", 0),
        ("demo/link", stat.S_IFLNK | 0o777),
        ("demo/pipe", stat.S_IFIFO | 0o644),
        ("demo/device", stat.S_IFCHR | 0o644),
    ],
)
def test_wheel_that_reaches_out_is_refused(tmp_path: Path, name: str, mode: int) -> None:
    wheel = make_zip(tmp_path / "demo-1.0-py3-none-any.whl", ("demo/__init__.py", 0), (name, mode))
    with pytest.raises(InputUnreadableError, match="is refused: its member"):
        unpack(wheel, tmp_path / "deep" / "out")
    assert not (tmp_path / "deep" / "out").exists()
    assert not list(tmp_path.rglob("x"))


def test_member_that_comes_twice_is_refused(tmp_path: Path) -> None:
    archive = make_tar(tmp_path / "demo-1.0.tar.gz", entry("demo-1.0/x"), entry("demo-1.0/x", b"other"))
    with pytest.raises(InputUnreadableError, match="contradict"):
        unpack(archive, tmp_path / "out")


@given(
    depth=st.integers(0, 3),
    link=st.lists(st.sampled_from(["..", ".", "a", "up", ""]), min_size=1, max_size=8).map("/".join),
)
@example(depth=0, link="a/up/../..")
def test_accepted_links_stay_inside(tmp_path_factory: pytest.TempPathFactory, depth: int, link: str) -> None:
    folder = tmp_path_factory.mktemp("links").resolve()
    path = "/".join(["top", *"abc"[:depth], "link"])
    others = [entry("top/a/a/a/file"), special("top/a/up", tarfile.SYMTYPE, "..")]
    unpack(make_tar(folder / "demo-0.9.tar.gz", *others), folder / "others")
    archive = make_tar(folder / "demo-1.0.tar.gz", *others, special(path, tarfile.SYMTYPE, link))
    try:
        root = unpack(archive, folder / "out")
    except InputUnreadableError:
        return
    assert (folder / "out" / path).resolve().is_relative_to(root.parent)


@pytest.mark.parametrize("name", ["demo-1.0.tar.gz", "demo-1.0-py3-none-any.whl"])
@given(keep=st.floats(0, 0.999))
def test_truncated_archive(tmp_path_factory: pytest.TempPathFactory, name: str, keep: float) -> None:
    folder = tmp_path_factory.mktemp("cut")
    make = folder / name
    if name.endswith(".gz"):
        make_tar(make, *(entry(f"demo-1.0/{number}", TEXT * number) for number in range(30)))
    else:
        make_zip(make, *((f"demo/{number}", 0) for number in range(30)))
    content = make.read_bytes()
    make.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(InputUnreadableError):
        unpack(make, folder / "out")
    assert sorted(path.name for path in folder.iterdir()) == sorted([".out.lock", name])


@pytest.mark.parametrize("name", ["demo-1.0.tar.gz", "demo.whl", "demo.zip"])
def test_file_that_is_no_archive(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("not an archive", encoding="utf-8")
    with pytest.raises(InputUnreadableError, match="cannot be unpacked"):
        unpack(tmp_path / name, tmp_path / "out")


def test_missing_archive(tmp_path: Path) -> None:
    with pytest.raises(InputUnreadableError, match="does not exist"):
        unpack(tmp_path / "demo.whl", tmp_path / "out")


def test_wheel_with_a_wrong_checksum(tmp_path: Path) -> None:
    wheel = make_zip(tmp_path / "demo.whl", ("demo/x", 0))
    content = wheel.read_bytes()
    wheel.write_bytes(content.replace(zipfile.ZipFile(wheel).infolist()[0].CRC.to_bytes(4, "little"), b"\0\0\0\0"))
    with pytest.raises(InputUnreadableError, match="cannot be unpacked"):
        unpack(wheel, tmp_path / "out")


@pytest.mark.parametrize("members", [[entry("a/x"), entry("b/x")], [entry("x")], []])
def test_archive_without_one_top_folder_is_no_sdist(
    tmp_path: Path, members: list[tuple[tarfile.TarInfo, bytes]]
) -> None:
    with pytest.raises(InputUnreadableError, match="one top folder"):
        unpack(make_tar(tmp_path / "demo-1.0.tar.gz", *members), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_existing_folder_is_refused_or_reused_on_request(sdist: Path, tmp_path: Path) -> None:
    root = unpack(sdist, tmp_path / "out", reuse=True)
    (root / "README").write_text("patched", encoding="utf-8")
    assert unpack(sdist, tmp_path / "out", reuse=True) == root
    assert (root / "README").read_text(encoding="utf-8") == "patched"
    with pytest.raises(OutputError, match="exists already"):
        unpack(sdist, tmp_path / "out")


def test_folder_of_another_archive_is_not_reused(sdist: Path, tmp_path: Path) -> None:
    unpack(sdist, tmp_path / "out")
    other = make_tar(tmp_path / "demo-1.1.tar.gz", entry("demo-1.1/x"))
    with pytest.raises(OutputError, match=r"not made from demo-1\.1"):
        unpack(other, tmp_path / "out", reuse=True)
    (tmp_path / "mine").mkdir()
    with pytest.raises(OutputError, match="was not made from"):
        unpack(sdist, tmp_path / "mine", reuse=True)


def test_rest_of_an_interrupted_run_is_removed(sdist: Path, tmp_path: Path) -> None:
    rest = tmp_path / ".out.unpacking" / "demo-1.0"
    rest.mkdir(parents=True)
    (rest / "stale").touch()
    root = unpack(sdist, tmp_path / "out")
    assert not (root / "stale").exists()
    assert not rest.exists()


def test_interrupted_run_leaves_nothing(sdist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", interrupt)
    with pytest.raises(KeyboardInterrupt):
        unpack(sdist, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.lock", "demo-1.0.tar.gz"]


def test_full_disk(sdist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", fill)
    with pytest.raises(OutputError, match="disk is full"):
        unpack(sdist, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.lock", "demo-1.0.tar.gz"]


def test_twice_the_same(sdist: Path, tmp_path: Path) -> None:
    def facts(root: Path) -> list[tuple[str, int, float, bytes]]:
        return [
            (str(path.relative_to(root)), path.stat().st_mode, path.stat().st_mtime, path.read_bytes())
            for path in sorted(root.rglob("*"))
            if path.is_file()
        ]

    assert facts(unpack(sdist, tmp_path / "one")) == facts(unpack(sdist, tmp_path / "two"))
