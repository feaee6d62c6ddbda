"""The experts' kernel, with torch: see inside/moe_checks.py."""

import pytest
from tests.kernels.torch_side import run_inside

pytestmark = pytest.mark.compiles


def test_moe() -> None:
    assert " passed" in run_inside("moe_checks.py")
