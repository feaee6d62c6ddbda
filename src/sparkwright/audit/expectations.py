"""Compare objects with what pins/ says that their machine code must show."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from sparkwright.audit.model import Container, totals
from sparkwright.audit.requirements import Failure
from sparkwright.pins import Expectation


def check_expectations(containers: Sequence[Container], expectations: Iterable[Expectation]) -> list[Failure]:
    """The expectations that the objects do not meet; their globs are matched against the containers' paths.

    An expectation that matches no object fails: what was not built cannot be right.
    """
    failures = []
    for expectation in expectations:
        matching = [container for container in containers if fnmatchcase(container.path, expectation.objects)]
        if not matching:
            failures.append(
                Failure(
                    path=expectation.objects,
                    check=f"expectation of unit {expectation.unit}",
                    what="no object with device code has such a path",
                    cause="it was not compiled, upstream renamed it, or it holds host code only",
                    remedy="correct the build, or the expectation in pins/",
                )
            )
        for container in matching:
            failures += _compare(container, expectation)
    return failures


def _compare(container: Container, expectation: Expectation) -> list[Failure]:
    facts = totals(container.code())
    targets = sorted(container.sass())
    differences = []
    if targets != sorted(expectation.targets):
        differences.append(
            f"it holds code for {', '.join(targets) or 'no target'}, not {', '.join(expectation.targets)}"
        )
    if expectation.fp4_mma is not None and facts.fp4_mma != expectation.fp4_mma:
        differences.append(f"it holds {facts.fp4_mma} FP4 tensor-core instructions, not {expectation.fp4_mma}")
    if expectation.e2m1_convert is not None and facts.e2m1_convert < expectation.e2m1_convert:
        differences.append(
            f"it holds {facts.e2m1_convert} native E2M1 conversions, fewer than {expectation.e2m1_convert}"
        )
    if facts.wrong_target_traps > expectation.traps:
        differences.append(
            f"it holds {facts.wrong_target_traps} traps for a wrong target, more than {expectation.traps}"
        )
    return [
        Failure(
            path=container.path,
            check=f"expectation of unit {expectation.unit}",
            what=difference,
            cause="it was compiled for another target, or its source, headers or compiler changed",
            remedy="compare the compile command with pins/; when the change is meant, correct the expectation there",
        )
        for difference in differences
    ]
