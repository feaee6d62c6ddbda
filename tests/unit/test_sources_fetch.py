"""Fetching from a package index that behaves well, and from ones that do not."""

import errno
import hashlib
import itertools
import multiprocessing
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sparkwright.errors import IntegrityError, OutputError, UnavailableError
from sparkwright.pins import PinnedFile
from sparkwright.sources import fetch, index
from sparkwright.sources.fetch import write_verified

CONTENT = bytes(range(256)) * 40
FILE = PinnedFile(
    project="demo",
    version="1.0",
    kind="sdist",
    name="demo-1.0.tar.gz",
    size=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
)


@dataclass
class FakeIndex:
    """What the server does next: statuses for the page and the file, what it lists and what it sends."""

    address: str = ""
    page_statuses: list[int] = field(default_factory=list)
    file_statuses: list[int] = field(default_factory=list)
    listed_sha256: str | None = FILE.sha256
    listed_name: str = FILE.name
    page_type: str = "text/html"
    content: bytes = CONTENT
    announced: int | None = None
    required_authorization: str | None = None
    requests: list[str] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)

    def page(self) -> bytes:
        fragment = f"#sha256={self.listed_sha256}" if self.listed_sha256 else ""
        return (
            f'<html><body><a href="/files/{self.listed_name}{fragment}">{self.listed_name}</a></body></html>'.encode()
        )


class Handler(BaseHTTPRequestHandler):
    index: FakeIndex

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        fake = self.index
        fake.requests.append(self.path)
        fake.authorizations.append(self.headers.get("Authorization"))
        is_page = self.path.startswith("/simple/")
        if fake.required_authorization not in (None, self.headers.get("Authorization")):
            status = 401
        elif is_page and self.path != "/simple/demo/":
            status = 404
        else:
            statuses = fake.page_statuses if is_page else fake.file_statuses
            status = statuses.pop(0) if statuses else 200
        body = b"" if status != 200 else fake.page() if is_page else fake.content
        self.send_response(status)
        self.send_header("Content-Type", fake.page_type if is_page else "application/octet-stream")
        length = fake.announced if fake.announced is not None and not is_page else len(body)
        if length >= 0:
            self.send_header("Content-Length", str(length))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPARKWRIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SPARKWRIGHT_OFFLINE", raising=False)
    return tmp_path / "cache" / "downloads"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeIndex]:
    """A running index that pip's environment variable points at; pauses between attempts are left out."""
    state = FakeIndex()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"index": state}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.address = f"http://127.0.0.1:{server.server_address[1]}/simple/"
    monkeypatch.setenv("PIP_INDEX_URL", state.address)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(index, "_pip_settings", dict)
    monkeypatch.setattr(index, "RETRY_AFTER_SECONDS", (0.0, 0.0, 0.0))
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


def left_in(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


def test_file_is_fetched_once(fake: FakeIndex, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch(FILE) == cache / FILE.name
    assert fetch(FILE).read_bytes() == CONTENT
    assert fake.requests == ["/simple/demo/", f"/files/{FILE.name}"]
    assert left_in(cache) == [FILE.name]
    output = capsys.readouterr()
    assert output.err == f"fetching {FILE.name} (0.1 MB)\n"
    assert output.out == ""


def test_full_cache_needs_no_network(fake: FakeIndex, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch(FILE)
    fake.requests.clear()
    monkeypatch.setenv("SPARKWRIGHT_OFFLINE", "1")
    assert fetch(FILE) == fetch(FILE, offline=True) == cache / FILE.name
    assert fake.requests == []


@pytest.mark.parametrize("by_variable", [True, False])
def test_offline_names_what_is_missing(
    fake: FakeIndex, cache: Path, monkeypatch: pytest.MonkeyPatch, by_variable: bool
) -> None:
    if by_variable:
        monkeypatch.setenv("SPARKWRIGHT_OFFLINE", "1")
    with pytest.raises(UnavailableError) as caught:
        fetch(FILE, offline=not by_variable)
    assert "demo-1.0.tar.gz (demo 1.0)" in caught.value.what
    assert str(cache / FILE.name) in caught.value.cause
    assert fake.requests == []


def test_offline_does_not_use_a_damaged_file(fake: FakeIndex, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / FILE.name).write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(UnavailableError, match=r"demo-1\.0") as caught:
        fetch(FILE, offline=True)
    assert "damaged" in caught.value.cause
    assert fake.requests == []


@pytest.mark.parametrize("damaged", [CONTENT[:-1], CONTENT[:-1] + b"x", b"", CONTENT + b"x"])
@pytest.mark.usefixtures("fake")
def test_damaged_cached_file_is_named_and_fetched_anew(
    cache: Path, damaged: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    cache.mkdir(parents=True)
    (cache / FILE.name).write_bytes(damaged)
    assert fetch(FILE).read_bytes() == CONTENT
    assert f"{cache / FILE.name} is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["page_statuses", "file_statuses"])
def test_server_error_is_tried_again(fake: FakeIndex, where: str) -> None:
    getattr(fake, where).extend([500, 503])
    assert fetch(FILE).read_bytes() == CONTENT


def test_server_that_keeps_failing(fake: FakeIndex, cache: Path) -> None:
    fake.file_statuses.extend([502] * 9)
    with pytest.raises(UnavailableError, match=r"demo-1\.0.*the server answered 502"):
        fetch(FILE)
    assert len(fake.requests) == 5
    assert left_in(cache) == []


@pytest.mark.parametrize("status", [401, 403, 404, 410, 429])
def test_refusal_is_not_tried_again(fake: FakeIndex, cache: Path, status: int) -> None:
    fake.file_statuses.append(status)
    with pytest.raises(UnavailableError, match=f"the server answered {status}"):
        fetch(FILE)
    assert len(fake.requests) == 2
    assert left_in(cache) == []


def test_unknown_project(fake: FakeIndex) -> None:
    other = FILE.model_copy(update={"project": "other", "name": "other-1.0.tar.gz"})
    with pytest.raises(UnavailableError, match="no project other"):
        fetch(other)
    assert len(fake.requests) == 1


def test_file_that_is_not_listed(fake: FakeIndex) -> None:
    fake.listed_name = "demo-1.1.tar.gz"
    with pytest.raises(UnavailableError, match=r"no file demo-1\.0\.tar\.gz"):
        fetch(FILE)


def test_answer_that_is_no_index(fake: FakeIndex) -> None:
    fake.page_type = "image/png"
    with pytest.raises(UnavailableError, match="not a package index"):
        fetch(FILE)


def test_index_that_lists_another_hash_is_refused_before_the_download(fake: FakeIndex, cache: Path) -> None:
    fake.listed_sha256 = "0" * 64
    with pytest.raises(IntegrityError, match="lists"):
        fetch(FILE)
    assert len(fake.requests) == 1
    assert left_in(cache) == []


@pytest.mark.parametrize("content", [CONTENT[:-1] + b"x", CONTENT + b"x", CONTENT * 9])
@pytest.mark.parametrize("listed", [FILE.sha256, None])
def test_wrong_content_is_refused(fake: FakeIndex, cache: Path, content: bytes, listed: str | None) -> None:
    fake.content = content
    fake.listed_sha256 = listed
    with pytest.raises(IntegrityError, match="is not the pinned file"):
        fetch(FILE)
    assert len(fake.requests) == 2
    assert left_in(cache) == []


def test_endless_content_is_not_read_to_its_end(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=f"more than {FILE.size} bytes"):
        write_verified(itertools.repeat(CONTENT[:1000]), FILE, tmp_path / "partial")


@pytest.mark.parametrize("announced", [len(CONTENT), -1])
def test_truncated_download_is_tried_again_and_leaves_nothing(fake: FakeIndex, cache: Path, announced: int) -> None:
    fake.content = CONTENT[:1000]
    fake.announced = announced
    with pytest.raises(UnavailableError, match="broke off"):
        fetch(FILE)
    assert len(fake.requests) == 5
    assert left_in(cache) == []


def test_no_server_at_all(cache: Path, fake: FakeIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:secret@127.0.0.1:9/simple/")
    with pytest.raises(UnavailableError, match="no connection") as caught:
        fetch(FILE)
    assert "secret" not in str(caught.value)
    assert fake.requests == []
    assert left_in(cache) == []


def test_index_of_a_kind_that_cannot_be_asked(monkeypatch: pytest.MonkeyPatch, fake: FakeIndex) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "file:///srv/simple")
    with pytest.raises(UnavailableError, match="InvalidSchema"):
        fetch(FILE)
    assert fake.requests == []


def test_credentials_go_to_the_index_and_its_own_files(fake: FakeIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", fake.address.replace("//", "//user:p%40ss@"))
    fake.required_authorization = "Basic dXNlcjpwQHNz"
    assert fetch(FILE).read_bytes() == CONTENT


def test_credentials_do_not_go_to_another_host(fake: FakeIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:secret@elsewhere.invalid/simple/")
    with index.Index() as asked, asked.open(f"{fake.address}demo/") as pieces:
        assert b"".join(pieces) == fake.page()
    assert fake.authorizations == [None]


def test_settings_of_pip_are_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tmp_path / "pip.conf"
    settings.write_text(
        "[global]\nindex-url = https://mirror.invalid/simple\ncert = /etc/mirror.pem\n"
        "[download]\nindex-url = https://other.invalid/simple\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(settings))
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    monkeypatch.delenv("PIP_CERT", raising=False)
    assert index._pip_settings()["index-url"] == "https://other.invalid/simple"
    with index.Index() as asked:
        assert asked._pages.endpoint == "https://other.invalid/simple/"
        assert asked._pages.s.verify == asked._files.verify == "/etc/mirror.pem"
    monkeypatch.setenv("PIP_CERT", "/etc/own.pem")
    monkeypatch.setenv("PIP_INDEX_URL", "https://third.invalid/simple")
    with index.Index() as asked:
        assert asked._pages.endpoint == "https://third.invalid/simple/"
        assert asked._files.verify == "/etc/own.pem"


def test_full_disk(fake: FakeIndex, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / f".{FILE.name}.part").symlink_to("/dev/full")
    with pytest.raises(OutputError, match="disk is full"):
        fetch(FILE)
    assert len(fake.requests) == 2
    assert left_in(cache) == []


def test_read_only_cache(fake: FakeIndex, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root is not stopped by a folder's permissions, so the answer of the system is put in its place.
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(OutputError, match="cannot be written") as caught:
        fetch(FILE)
    assert caught.value.remedy
    assert len(fake.requests) == 2
    assert left_in(cache) == []


def test_file_in_the_cache_is_used_without_writing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.mkdir(parents=True)
    (cache / FILE.name).write_bytes(CONTENT)

    def fail(*_: object, **__: object) -> None:
        pytest.fail("the cache may be read-only")

    with monkeypatch.context() as patch:
        patch.setattr("os.open", fail)
        assert fetch(FILE) == cache / FILE.name


def test_file_in_place_of_the_cache(cache: Path, fake: FakeIndex) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("a file")
    with pytest.raises(OutputError, match=r"demo-1\.0"):
        fetch(FILE)
    assert fake.requests == []


def test_threads_fetch_once(fake: FakeIndex) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: fetch(FILE).read_bytes(), range(8)))
    assert found == [CONTENT] * 8
    assert len(fake.requests) == 2


def test_processes_fetch_once(fake: FakeIndex) -> None:
    # spawn: a forked child would inherit the server's thread in an undefined state.
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = pool.map(fetch, [FILE] * 2)
        pool.close()
        pool.join()
    assert len(set(found)) == 1
    assert len(fake.requests) == 2
