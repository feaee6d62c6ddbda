"""Patches to upstream source trees: plan, apply, revert, and the matrix over releases."""

from sparkwright.patching.model import (
    AddFile,
    Because,
    Computed,
    Contains,
    EditMismatchError,
    InsertAfter,
    InsertBefore,
    Lacks,
    NoFile,
    Patch,
    Replace,
    Status,
    Variant,
)

__all__ = [
    "AddFile",
    "Because",
    "Computed",
    "Contains",
    "EditMismatchError",
    "InsertAfter",
    "InsertBefore",
    "Lacks",
    "NoFile",
    "Patch",
    "Replace",
    "Status",
    "Variant",
]
