"""Audit the objects and libraries of a build against the pins."""

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from sparkwright.audit import Audit, Failure, Requirement, check, check_expectations
from sparkwright.native.units import Unit
from sparkwright.pins import Line
from sparkwright.run import run


def failures_of(facts: Audit, unit: Unit, line: Line) -> list[Failure]:
    """What the objects of a unit must show and do not: every one runs on 12.1, and the expectations of pins/ hold."""
    expected = [one for one in line.expectations if unit.libraries or one.unit == unit.name]
    if not expected:
        # A unit that is a part of the ones that pins/ speaks of.
        expected = [
            one
            for one in line.expectations
            if any(fnmatchcase(container.path, one.objects) for container in facts.containers)
        ]
    return [*check(facts, Requirement), *check_expectations(facts.containers, expected)]


def driver_failures(build: Path, libraries: Sequence[str]) -> list[Failure]:
    """The libraries that call the driver and do not ask for it: they link, but cannot be loaded."""
    failures = []
    for library in libraries:
        calls = re.findall(r" U (cu[A-Z]\w*)$", run(["nm", "-D", "--undefined-only", build / library]), re.MULTILINE)
        if calls and "[libcuda.so.1]" not in run(["readelf", "-d", build / library]):
            failures.append(
                Failure(
                    path=library,
                    check="driver linkage",
                    what=f"it calls {', '.join(calls)} but does not need libcuda.so.1",
                    cause="the driver stub that it was linked against lacks these functions",
                    remedy="remove the build environment from the cache so that its stub is made anew",
                )
            )
    return failures
