"""The operators as torch sees them: see inside/binding_checks.py."""

import pytest
from tests.kernels.torch_side import run_inside

pytestmark = pytest.mark.compiles


def test_binding() -> None:
    assert " passed" in run_inside("binding_checks.py")
