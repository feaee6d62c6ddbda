"""The locks of the image against the package index: everything has a wheel for the machines that it is for."""

from dataclasses import replace
from fnmatch import fnmatchcase

import pytest

from sparkwright.errors import UnavailableError
from sparkwright.image.contents import load_contents
from sparkwright.image.inventory import load_inventory, lock_name
from sparkwright.image.locked import read_lock
from sparkwright.image.target import SPARK, Target
from sparkwright.image.wheels import find_wheels, list_wheels
from sparkwright.paths import REQUIREMENTS
from sparkwright.pins import default_line

pytestmark = [pytest.mark.sources, pytest.mark.timeout(600)]

LINE = default_line()
STAND_IN = Target(machine="x86_64", python=(3, 13), glibc=(2, 41))
"""The machine that builds the image in CI."""


def test_every_release_has_a_wheel_with_a_locked_hash() -> None:
    locked = read_lock(REQUIREMENTS / lock_name(LINE, "b12x"), SPARK)
    found = find_wheels(locked, SPARK)
    assert len(found) == len(locked) > 200
    assert all(one.sha256 in one.release.sha256 for one in found)
    # What runs on any machine needs no second look.
    special = {one.release.project for one in found if not one.name.endswith("-any.whl")}
    assert len(special) > 80
    ours = tuple(one for one in read_lock(REQUIREMENTS / lock_name(LINE, "b12x"), STAND_IN) if one.project in special)
    assert {one.project for one in ours} == special
    find_wheels(ours, STAND_IN)


def test_a_release_without_such_a_wheel_is_found() -> None:
    (torch,) = (one for one in read_lock(REQUIREMENTS / lock_name(LINE), SPARK) if one.project == "torch")
    assert find_wheels((torch,), SPARK)
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
