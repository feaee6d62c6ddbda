"""Questions to the server in this container."""

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any, Final

from sparkwright.errors import UnavailableError

_SECONDS: Final = 10
_EVERYWHERE: Final = ("0.0.0.0", "::", "")  # noqa: S104  read, not bound


def reachable(host: str) -> str:
    """The address at which a server that listens on `host` is reached from inside its container."""
    return "127.0.0.1" if host in _EVERYWHERE else host


def base_url(state: Mapping[str, Any]) -> str:
    """Where the server of a state listens, seen from inside its container."""
    host = reachable(str(state["host"]))
    scheme = "https" if state.get("tls") else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{state['port']}"


def ask(url: str, body: Mapping[str, object] | None = None, *, key: str = "", seconds: float = _SECONDS) -> str:
    """The text of a good answer.

    Raises:
        UnavailableError: no answer, or one with another status than 200.
    """
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(url, data=data, headers=headers)  # noqa: S310  base_url makes it http or https
    # Our own server: its certificate names another host than the loopback address, and no proxy stands between.
    trust = ssl.create_default_context()
    trust.check_hostname = False
    trust.verify_mode = ssl.CERT_NONE
    handlers = (urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trust))
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=seconds) as answer:
            text: str = answer.read().decode(errors="replace")
            return text
    except urllib.error.HTTPError as error:
        detail = error.read().decode(errors="replace")[:300]
        raise UnavailableError(f"{url} answered {error.code}: {detail}") from error
    except OSError as error:
        raise UnavailableError(f"{url} did not answer: {error}") from error
