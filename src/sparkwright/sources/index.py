"""The package index that pip is configured for: ask it where a file lies, and open that file."""

import ast
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

import requests
from pypi_simple import (
    PYPI_SIMPLE_ENDPOINT,
    DistributionPackage,
    NoSuchProjectError,
    PyPISimple,
    UnsupportedContentTypeError,
)

from sparkwright.errors import IntegrityError, UnavailableError
from sparkwright.pins import PinnedFile
from sparkwright.run import run

RETRY_AFTER_SECONDS: Final = (0.5, 2.0, 8.0)
"""The pauses between attempts; one attempt more than there are pauses."""
_TIMEOUT_SECONDS: Final = (20.0, 120.0)  # to connect, and between two pieces of an answer
_SERVER_ERROR: Final = 500

_Answer = TypeVar("_Answer")


class Index:
    """A session with the configured index; a context manager, because it holds connections open."""

    def __init__(self) -> None:
        settings = _pip_settings()
        endpoint = os.environ.get("PIP_INDEX_URL") or settings.get("index-url") or PYPI_SIMPLE_ENDPOINT
        endpoint, self._credentials = _without_credentials(endpoint)
        self._host = urlsplit(endpoint).netloc
        self._pages = PyPISimple(endpoint, auth=self._credentials)
        self._files = requests.Session()
        # Else a server may pack a .tar.gz once more on the way, and its size and hash would be lost.
        self._files.headers["Accept-Encoding"] = "identity"
        for session in (self._pages.s, self._files):
            session.verify = (
                os.environ.get("PIP_CERT") or settings.get("cert") or os.environ.get("SSL_CERT_FILE") or True
            )

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *_: object) -> None:
        self._pages.s.close()
        self._files.close()

    def locate(self, file: PinnedFile) -> str:
        """The address of a pinned file.

        Raises:
            UnavailableError: the index cannot be reached, or does not have the file.
            IntegrityError: it lists the file with another sha256 than the pinned one.
        """
        for package in self.packages(file.project):
            if package.filename == file.name:
                listed = package.digests.get("sha256")
                if listed is not None and listed != file.sha256:
                    raise IntegrityError(
                        f"the package index lists {file.name} with sha256 {listed}, pinned is {file.sha256}",
                        cause="the index is not the one that the pin was made from, or it was tampered with",
                        remedy="check which index pip is configured for (pip config list)",
                    )
                return package.url
        raise UnavailableError(
            f"the package index has no file {file.name}",
            cause=f"the mirror in use does not carry {file.project} {file.version}, or the release was withdrawn",
            remedy="check which index pip is configured for (pip config list)",
        )

    def packages(self, project: str) -> list[DistributionPackage]:
        """All files that the index lists for a project.

        Raises:
            UnavailableError: it has no such project, or what answers is no package index.
        """
        try:
            return self._pages.get_project_page(project, timeout=_TIMEOUT_SECONDS).packages
        except NoSuchProjectError as error:
            raise UnavailableError(
                f"the package index has no project {project}",
                cause="the mirror in use does not carry it",
                remedy="check which index pip is configured for (pip config list)",
            ) from error
        except UnsupportedContentTypeError as error:
            raise UnavailableError(
                f"what answers for {project} is not a package index ({error.content_type})",
                cause="the configured address is not that of a simple index, or a proxy answers in its place",
                remedy="check which index pip is configured for (pip config list)",
            ) from error

    @contextmanager
    def open(self, address: str) -> Iterator[Iterator[bytes]]:
        """Open a file of the index and yield its content in pieces."""
        # Credentials for the index are not for the host that it refers to for files, unless they are one.
        auth = self._credentials if urlsplit(address).netloc == self._host else None
        with self._files.get(address, stream=True, timeout=_TIMEOUT_SECONDS, auth=auth) as answer:
            answer.raise_for_status()
            yield answer.iter_content(1 << 20)

    def part(self, address: str, span: str) -> tuple[bytes, int]:
        """A part of a file, named as HTTP does (`-4096`: its last 4096 bytes), and the size of the whole file.

        Raises:
            UnavailableError: the server only gives whole files.
        """
        auth = self._credentials if urlsplit(address).netloc == self._host else None
        answer = self._files.get(address, timeout=_TIMEOUT_SECONDS, auth=auth, headers={"Range": f"bytes={span}"})
        answer.raise_for_status()
        if answer.status_code != requests.codes.partial_content:
            raise UnavailableError(
                "the package index gives whole files only, not parts of them",
                cause="the mirror in use does not answer range requests",
                remedy="use another mirror for this command (PIP_INDEX_URL)",
            )
        return answer.content, int(answer.headers["Content-Range"].rpartition("/")[2])


def with_retries(attempt: Callable[[], _Answer], *, file: PinnedFile) -> _Answer:
    """Do `attempt`, again after a pause when the connection or the server failed; never after a refusal.

    Raises:
        UnavailableError: it failed each time, or the server refused.
    """
    for pause in (*RETRY_AFTER_SECONDS, None):
        try:
            return attempt()
        except requests.RequestException as error:
            if pause is not None and _is_transient(error):
                time.sleep(pause)
                continue
            raise UnavailableError(
                f"{file.name} ({file.project} {file.version}) could not be fetched: {_reason(error)}",
                cause="no network, or a proxy or mirror that is not set up"
                if error.response is None
                else "the package index or mirror refuses or fails",
                remedy="check that `pip download` works here, then run the same command again",
            ) from error
    raise AssertionError("the last attempt returns or raises")


def _is_transient(error: requests.RequestException) -> bool:
    if error.response is not None:
        return error.response.status_code >= _SERVER_ERROR
    return isinstance(
        error,
        requests.ConnectionError | requests.Timeout | requests.exceptions.ChunkedEncodingError,
    ) and not isinstance(error, requests.exceptions.SSLError)


def _reason(error: requests.RequestException) -> str:
    # Neither address nor headers: they may carry credentials.
    if error.response is not None:
        return f"the server answered {error.response.status_code}"
    kinds: tuple[tuple[type[Exception], str], ...] = (
        (requests.exceptions.SSLError, "the server's certificate is not trusted"),
        (requests.exceptions.ProxyError, "the proxy failed"),
        (requests.Timeout, "no answer in time"),
        (requests.exceptions.ChunkedEncodingError, "the connection broke off"),
        (requests.ConnectionError, "no connection, or it broke off"),
    )
    return next((text for kind, text in kinds if isinstance(error, kind)), type(error).__name__)


def _pip_settings() -> dict[str, str]:
    """What pip's configuration files say, those for `pip download` winning over the global ones."""
    if importlib.util.find_spec("pip") is None:
        return {}
    listing = run([sys.executable, "-m", "pip", "config", "list"])
    settings: dict[str, str] = {}
    for section in ("global.", "download."):
        for line in listing.splitlines():
            key, _, text = line.partition("=")
            if key.startswith(section):
                settings[key.removeprefix(section)] = ast.literal_eval(text)
    return settings


def _without_credentials(address: str) -> tuple[str, tuple[str, str] | None]:
    parts = urlsplit(address)
    if parts.username is None:
        return address, None
    bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    return bare, (unquote(parts.username), unquote(parts.password or ""))
