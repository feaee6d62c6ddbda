"""The lossy 2:4 form: see inside/sparse_checks.py."""

import pytest
from tests.kernels.torch_side import run_inside

pytestmark = pytest.mark.compiles


def test_sparse() -> None:
    assert " passed" in run_inside("sparse_checks.py")
