"""Which state of this checkout an image is made from, and the tag that says so."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from sparkwright.errors import CommandFailedError, UsageError
from sparkwright.paths import CHECKOUT
from sparkwright.run import run

REPOSITORY: Final = "sparkwright"
"""What images are called on the machine that builds them."""
LATEST: Final = f"{REPOSITORY}:latest"
"""A further name of the one that passed its tests last: what Docker takes where no tag is given."""
_SHORT: Final = 8


@dataclass(frozen=True, kw_only=True)
class Revision:
    """A commit of this checkout, and whether files differ from it."""

    commit: str
    count: int
    """How many commits led to it, itself included."""
    time: int
    """When it was made, in seconds since 1970."""
    dirty: bool
    source: str
    """Where the repository is published, if its remote says so."""

    @property
    def name(self) -> str:
        """As in a tag: `214-g1a2b3c4d`, with `-dirty` when files differ. The number orders, the hash identifies."""
        return f"{self.count}-g{self.commit[:_SHORT]}" + ("-dirty" if self.dirty else "")

    @property
    def full(self) -> str:
        """As in a label: the whole commit."""
        return self.commit + ("-dirty" if self.dirty else "")

    @property
    def created(self) -> str:
        """The commit's time as RFC 3339; an image takes it for its own, so that a rebuild has the same."""
        return datetime.fromtimestamp(self.time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def tag(self, line: str) -> str:
        """The tag of an image of a line: `0.33.0-214-g1a2b3c4d`."""
        return f"{line}-{self.name}"


def read_revision(checkout: Path = CHECKOUT) -> Revision:
    """The state of the checkout.

    Raises:
        UsageError: it is no git checkout, or only a part of its history is there.
    """
    git = ["git", "-C", str(checkout)]
    try:
        commit, time = run([*git, "log", "-1", "--format=%H %ct"]).split()
        if run([*git, "rev-parse", "--is-shallow-repository"]).strip() == "true":
            raise UsageError(
                "the checkout has only a part of its history, so its revision has no number",
                cause="it was cloned with --depth",
                remedy="git fetch --unshallow",
            )
        count = int(run([*git, "rev-list", "--count", "HEAD"]))
        dirty = bool(run([*git, "status", "--porcelain"]).strip())
    except CommandFailedError as error:
        raise UsageError(
            f"{checkout} is not a git checkout with a commit",
            cause="an image says which commit it was made from, so that it can be made again",
            remedy="clone the repository instead of copying its files",
        ) from error
    return Revision(commit=commit, count=count, time=int(time), dirty=dirty, source=_origin(git))


def _origin(git: list[str]) -> str:
    try:
        address = run([*git, "remote", "get-url", "origin"]).strip()
    except CommandFailedError:
        return ""
    # Only a public address belongs into a label; never a local path, a user name or a token.
    if not address.startswith("https://") or "@" in address:
        return ""
    return address.removesuffix(".git")
