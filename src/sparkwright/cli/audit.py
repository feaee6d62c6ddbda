"""`sparkwright audit`: what machine code is in a file, and whether GB10 can run it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from sparkwright.audit import Audit, Readiness, Requirement, check, raise_on
from sparkwright.audit import audit as audit_path
from sparkwright.audit.model import Container, Totals, totals
from sparkwright.report import note, print_json, print_table

COLUMNS = (
    "path",
    "SASS",
    "PTX",
    "TUs native/JIT/none",
    "kernels",
    "FP4 mma",
    "FP8 mma",
    "E2M1 convert/decode",
    "traps",
    "max regs",
    "spilling",
    "runs on GB10",
)


def audit(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH...", help="Object, cubin, shared library, wheel or installed package folder."),
    ],
    require: Annotated[
        list[Requirement] | None,
        typer.Option(
            "--require",
            help="Fail (exit 4) unless each PATH holds to it: **sm121** all its files with device code hold machine "
            "code that loads on 12.1; **fp4-mma** FP4 tensor-core instructions, and no trap left by CUTLASS for a "
            "wrong target; **e2m1-convert** native E2M1 conversions. May be given several times.",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts instead of a table.")] = False,
) -> None:
    """Report the machine code in PATH for GB10; with --require, exit 4 when it is not what it must be."""
    audits = [audit_path(path) for path in paths]
    failures = [failure for one in audits for failure in check(one, require or ())]
    if json:
        print_json(
            {
                "audits": [one.to_json() for one in audits],
                "required": [str(requirement) for requirement in require or ()],
                "failures": [vars(failure) for failure in failures],
                "ok": not failures,
            }
        )
    else:
        for one in audits:
            _print(one)
    raise_on(failures)


def _print(audit: Audit) -> None:
    rows = [_row(container) for container in audit.containers]
    if len(rows) > 1:
        rows.append(("total", *[""] * 3, *_numbers(audit.totals()), ""))
    if rows:
        print_table(f"Machine code in {audit.path}", COLUMNS, rows)
    if audit.without_device_code:
        note(f"{audit.path}: without device code: {', '.join(audit.without_device_code)}")
    if not rows and not audit.without_device_code:
        note(f"{audit.path}: no file in it holds machine code")


def _row(container: Container) -> Sequence[str]:
    units = container.translation_units()
    return (
        container.path,
        _counts(container.sass()),
        _counts(container.ptx()),
        "/".join(str(units[one]) for one in Readiness),
        *_numbers(totals(container.code())),
        _verdict(container),
    )


def _verdict(container: Container) -> str:
    traps = totals(container.code()).wrong_target_traps
    return f"{container.readiness.value}, but traps" if traps else container.readiness.value


def _numbers(facts: Totals) -> tuple[str, ...]:
    return (
        str(facts.kernels),
        str(facts.fp4_mma),
        str(facts.fp8_mma),
        f"{facts.e2m1_convert}/{facts.e2m1_decode}",
        str(facts.wrong_target_traps),
        str(facts.max_registers),
        str(facts.spilling_kernels),
    )


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {target}" if count > 1 else target for target, count in sorted(counts.items()))
