"""The audit: what machine code is really in a file, and whether it is what was asked for."""

from sparkwright.audit.auditor import audit
from sparkwright.audit.expectations import check_expectations
from sparkwright.audit.model import Audit, Container, FatBinary, MachineCode, Readiness
from sparkwright.audit.requirements import Failure, Requirement, check, raise_on

__all__ = [
    "Audit",
    "Container",
    "Failure",
    "FatBinary",
    "MachineCode",
    "Readiness",
    "Requirement",
    "audit",
    "check",
    "check_expectations",
    "raise_on",
]
