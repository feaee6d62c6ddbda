"""What can be required of machine code, and what is said when it does not hold."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from sparkwright.audit.model import Audit, Container, Readiness
from sparkwright.errors import AuditFailedError


class Requirement(StrEnum):
    """A promise about everything that a path names."""

    SM121 = "sm121"
    FP4_MMA = "fp4-mma"
    E2M1_CONVERT = "e2m1-convert"


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One promise that does not hold, said as what happened, the likely cause and what to do."""

    path: str
    check: str
    what: str
    cause: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.what}"]
        if self.cause:
            lines.append(f"  Likely cause: {self.cause}")
        if self.remedy:
            lines.append(f"  What to do: {self.remedy}")
        return "\n".join(lines)


_BUILD_FOR_GB10 = "build for 12.1a (TORCH_CUDA_ARCH_LIST=12.1a, nvcc -arch=sm_121a) or the family target 12.0f"


def check(audit: Audit, requirements: Iterable[Requirement]) -> list[Failure]:
    """The requirements that do not hold; empty when all do."""
    failures = []
    for requirement in requirements:
        if not audit.containers:
            failures.append(
                Failure(
                    path=str(audit.path),
                    check=requirement,
                    what="it holds no device code at all",
                    cause="only host code was built, or the path is not the one that was meant",
                )
            )
            continue
        match requirement:
            case Requirement.SM121:
                failures += _check_sm121(audit)
            case Requirement.FP4_MMA:
                failures += _check_fp4_mma(audit)
            case Requirement.E2M1_CONVERT:
                failures += _check_e2m1_convert(audit)
    return failures


def raise_on(failures: Sequence[Failure]) -> None:
    """Raise what `check` found.

    Raises:
        AuditFailedError: there is at least one failure.
    """
    if failures:
        raise AuditFailedError(
            "the machine code is not what was required:\n" + "\n".join(str(failure) for failure in failures)
        )


def _check_sm121(audit: Audit) -> list[Failure]:
    return [
        Failure(
            path=container.path,
            check=Requirement.SM121,
            what=f"no machine code that loads on compute capability 12.1; it holds {_holdings(container)}",
            cause="it is PTX, which the driver compiles at first use and machine code was asked for"
            if container.readiness is Readiness.JIT
            else "it was compiled for other GPUs; note that 12.0a code runs on 12.0 alone",
            remedy=_BUILD_FOR_GB10,
        )
        for container in audit.containers
        if container.readiness is not Readiness.NATIVE
    ]


def _check_fp4_mma(audit: Audit) -> list[Failure]:
    facts = audit.totals()
    failures = []
    if facts.fp4_mma == 0:
        failures.append(
            Failure(
                path=str(audit.path),
                check=Requirement.FP4_MMA,
                what="it holds no block-scaled FP4 tensor-core instruction (OMMA)",
                cause="the kernels were compiled for a target without suffix (12.0, 12.1), which leaves them empty, "
                "or no FP4 GEMM is in it",
                remedy=_BUILD_FOR_GB10,
            )
        )
    if facts.wrong_target_traps:
        failures.append(
            Failure(
                path=str(audit.path),
                check=Requirement.FP4_MMA,
                what=f"{facts.wrong_target_traps} traps stand where CUTLASS kernels should be",
                cause="they were compiled for a target that lacks their instructions",
                remedy=_BUILD_FOR_GB10,
            )
        )
    return failures


def _check_e2m1_convert(audit: Audit) -> list[Failure]:
    if audit.totals().e2m1_convert:
        return []
    return [
        Failure(
            path=str(audit.path),
            check=Requirement.E2M1_CONVERT,
            what="it holds no native conversion to E2M1 (F2FP.SATFINITE.E2M1)",
            cause="the quantisers were compiled for a target without suffix and fell back to software, "
            "or none is in it",
            remedy=_BUILD_FOR_GB10,
        )
    ]


def _holdings(container: Container) -> str:
    parts = [*sorted(container.sass()), *(f"{target} as PTX" for target in sorted(container.ptx()))]
    return ", ".join(parts) or "nothing"
