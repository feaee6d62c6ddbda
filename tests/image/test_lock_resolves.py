"""The locks of the image against the package index: everything has a wheel for the machines that it is for."""

import os
import shutil
import sys
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from sparkwright.errors import CommandFailedError, UnavailableError
from sparkwright.image.contents import load_contents
from sparkwright.image.inventory import load_inventory, lock_name
from sparkwright.image.locked import read_lock
from sparkwright.image.target import SPARK, Target
from sparkwright.image.wheels import find_wheels, list_wheels
from sparkwright.paths import REQUIREMENTS
from sparkwright.pins import default_line
from sparkwright.run import run

pytestmark = [pytest.mark.sources, pytest.mark.timeout(600)]

LINE = default_line()
STAND_IN = Target(machine="x86_64", python=(3, 13), glibc=(2, 41))
"""The machine that builds the image in CI."""


def resolve(lock: Path, platform: str, python: str, folder: Path) -> None:
    """Let uv look for a wheel of each locked release for a machine, and install nothing."""
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert uv is not None
    words = ["--dry-run", "--no-config", "--no-deps", "--only-binary", ":all:", "--no-progress"]
    words += ["--python-platform", platform, "--python-version", python]
    run([uv, "pip", "install", *words, "--target", folder, "--requirement", lock])


@pytest.mark.parametrize(
    ("platform", "python"),
    [("aarch64-manylinux_2_39", "3.12"), ("x86_64-manylinux_2_39", "3.13")],
    ids=["spark", "stand-in"],
)
def test_every_release_has_a_wheel(tmp_path: Path, platform: str, python: str) -> None:
    resolve(REQUIREMENTS / lock_name(LINE, "b12x"), platform, python, tmp_path)


def test_a_release_without_a_wheel_is_found(tmp_path: Path) -> None:
    (tmp_path / "lock.txt").write_text("nvidia-nccl-cu13==2.30.7\n")
    resolve(tmp_path / "lock.txt", "aarch64-manylinux_2_39", "3.12", tmp_path / "none")
    with pytest.raises(CommandFailedError, match=r"(?i)no (matching|compatible|wheels)|wheel"):
        resolve(tmp_path / "lock.txt", "aarch64-apple-darwin", "3.12", tmp_path / "none")


def test_a_wheel_is_found_by_its_locked_hash_and_tag() -> None:
    (torch,) = (one for one in read_lock(REQUIREMENTS / lock_name(LINE), SPARK) if one.project == "torch")
    assert [one.name for one in find_wheels((torch,), SPARK)] == [
        one.wheel for one in load_inventory(LINE).entries if one.project == "torch"
    ]
    with pytest.raises(UnavailableError, match=r"no wheel of torch"):
        find_wheels((replace(torch, sha256=frozenset({"0" * 64})),), SPARK)
    with pytest.raises(UnavailableError, match=r"no wheel of torch"):
        find_wheels((torch,), replace(SPARK, machine="riscv64"))


def test_what_the_image_leaves_out_is_in_the_wheels_of_both_machines() -> None:
    contents = load_contents(LINE)
    selections = (*contents.removed, *contents.stripped)
    projects = {selection.project for selection in selections}
    stored = {entry.project: entry for entry in load_inventory(LINE).entries}
    for target in (SPARK, STAND_IN):
        locked = tuple(one for one in read_lock(REQUIREMENTS / lock_name(LINE), target) if one.project in projects)
        listings = {listing.project: listing for listing in list_wheels(locked, target)}
        for selection in selections:
            listing = listings[selection.project]
            for pattern in selection.files:
                assert any(fnmatchcase(file.path, pattern) for file in listing.files), f"{listing.name}: {pattern}"
            if target == SPARK:
                entry = stored[selection.project]
                assert (listing.name, listing.size) == (entry.wheel, entry.packed)
                assert sum(file.size for file in listing.files) == entry.size
                assert listing.licence == entry.licence
