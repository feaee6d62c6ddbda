"""Docker as a program: on this machine, or on another one over ssh."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparkwright.errors import CommandFailedError, UnavailableError, UsageError
from sparkwright.run import run, run_lines

SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15")
"""ssh that never asks: no password, and an unknown host key is refused, never accepted."""


@dataclass(frozen=True, kw_only=True)
class Docker:
    """A Docker engine: the one that the environment names, or that of `host` (`user@node`) over ssh."""

    host: str = ""

    @property
    def environment(self) -> dict[str, str]:
        """What docker is started with."""
        if not self.host:
            return dict(os.environ)
        kept = {name: value for name, value in os.environ.items() if name != "DOCKER_CONTEXT"}
        return kept | {"DOCKER_HOST": f"ssh://{self.host}"}

    def run(self, *words: str | Path) -> str:
        """Run a docker command to its end; what it wrote. Raises as `run`."""
        return run(["docker", *words], env=self.environment)

    def run_container(self, *words: str | Path) -> str:
        """Run a container without a network to its end and remove it; what it wrote. Raises as `run`."""
        return self.run("run", "--rm", "--network", "none", *words)

    def ask(self, *words: str | Path) -> Any:  # noqa: ANN401  docker's own JSON
        """Run a docker command that answers with one JSON value."""
        return json.loads(self.run(*words))

    def watch(self, words: Sequence[str | Path], *, log: Path, on_line: Callable[[str], None]) -> None:
        """Run a docker command and hand over its output line by line; `log` keeps it. Raises as `run_lines`."""
        run_lines(["docker", *words], on_line=on_line, log=log, env=self.environment)

    def require_engine(self) -> dict[str, Any]:
        """Make sure that docker, its engine and BuildKit answer; what `docker info` says.

        Raises:
            UnavailableError: one of them does not.
            UsageError: the ssh host is not one that can be used.
        """
        if shutil.which("docker") is None:
            raise UnavailableError(
                "Docker is not installed here: there is no program docker on PATH",
                cause="DGX OS has it; other systems may not",
                remedy="install it (Debian, Ubuntu: apt install docker.io docker-buildx); ./build.sh --host needs no"
                " Docker, and ./build.sh --on user@spark uses that of a Spark",
            )
        if self.host:
            require_ssh(self.host)
        try:
            info: dict[str, Any] = self.ask("info", "--format", "{{json .}}")
        except CommandFailedError as error:
            raise _no_engine(error, self.host) from error
        if problems := info.get("ServerErrors"):
            raise _no_engine(UnavailableError("; ".join(problems)), self.host)
        try:
            self.run("buildx", "version")
        except CommandFailedError as error:
            raise UnavailableError(
                "this Docker has no BuildKit: `docker buildx version` fails",
                cause="the plugin buildx is not installed; the Dockerfile needs cache mounts and named contexts",
                remedy="install it (Debian, Ubuntu: apt install docker-buildx; Docker's own packages:"
                " docker-buildx-plugin)",
            ) from error
        return info

    def image_id(self, reference: str) -> str | None:
        """The id of an image, or None when the engine has none of that name."""
        try:
            return self.run("image", "inspect", "--format", "{{.Id}}", reference).strip()
        except CommandFailedError as error:
            if "no such image" in error.what.lower():
                return None
            raise

    def inspect(self, reference: str) -> dict[str, Any]:
        """What the engine knows of an image.

        Raises:
            UsageError: it has none of that name.
        """
        if self.image_id(reference) is None:
            raise UsageError(
                f"there is no image {reference}", remedy="./build.sh makes one; ./build.sh --list names those there are"
            )
        found: list[dict[str, Any]] = self.ask("image", "inspect", reference)
        return found[0]


def _no_engine(error: Exception, host: str) -> UnavailableError:
    text = str(error)
    if "permission denied" in text.lower():
        return UnavailableError(
            "Docker's engine does not let this user in",
            cause="the user is not in the group docker",
            remedy="sudo usermod -aG docker $USER, then log in again",
        )
    last = text.splitlines()[-1] if text else ""
    return UnavailableError(
        f"Docker's engine{f' on {host}' if host else ''} does not answer: {last}",
        cause="it is not running, or DOCKER_HOST or the docker context names another one",
        remedy="start it (sudo systemctl start docker), then run the same command again;"
        " ./build.sh --host needs no Docker",
    )


def require_ssh(host: str) -> None:
    """Make sure that a machine lets us in by ssh without a question.

    Raises:
        UsageError: the name cannot be one of a host.
        UnavailableError: it cannot be reached, its key is unknown, or it asks for a password.
    """
    if not host or host.startswith("-") or any(character.isspace() for character in host):
        raise UsageError(f"{host!r} is not a host", remedy="give user@host, or a Host of ~/.ssh/config")
    try:
        run([*SSH, "--", host, "true"])
    except CommandFailedError as error:
        text = error.what.lower()
        cases = (
            (
                "host key verification failed",
                f"the key of {host} is not known here, or has changed",
                f"compare the fingerprint once: ssh {host}; if it changed without a reason that you know, stop",
            ),
            (
                "permission denied",
                f"{host} does not accept a key of this user; passwords are never used",
                f"ssh-copy-id {host}",
            ),
            (
                "could not resolve",
                f"no host is called {host.rpartition('@')[2]}",
                "check the name, or add it to ~/.ssh/config",
            ),
        )
        otherwise = ("it is switched off, or not reachable from here", f"check that `ssh {host}` works")
        cause, remedy = next(((why, what) for sign, why, what in cases if sign in text), otherwise)
        raise UnavailableError(
            f"{host} cannot be reached by ssh: {error.what.splitlines()[-1]}", cause=cause, remedy=remedy
        ) from error
