"""What the records of instructions say about GB10, and what the page says about the records."""

import json
import re
from collections import defaultdict
from typing import Any

import pytest
from tests.kernels.build import KERNELS
from tests.kernels.instructions import ALL, Streaming

_ROW = re.compile(r"^\| `(\w+)`(?: ([a-z ]+))? \| ([\d.]+) \|([ \d.|]+)\|$", re.MULTILINE)


def recorded(kernel: Streaming) -> dict[str, Any]:
    """The costs on GB10 by variant."""
    costs: dict[str, Any] = json.loads(kernel.record.read_text(encoding="utf-8"))["121a"]
    return costs


@pytest.mark.parametrize("kernel", ALL, ids=lambda kernel: kernel.name)
def test_gb10_has_time_for_every_loop_while_it_reads(kernel: Streaming) -> None:
    too_long = {
        name: cost["per_weight"]
        for name, cost in recorded(kernel).items()
        if cost["per_weight"] > 0.8 * kernel.budget()
    }
    assert too_long == {}


def _loops(kernel: Streaming) -> dict[str, list[float]]:
    """The most that a weight costs, in the order of the rows of x, by the part of the kernel."""
    most: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for name, cost in recorded(kernel).items():
        rows = re.search(r"(\d) rows of x", name)
        part, number = ("", int(rows[1])) if rows else (name.split(", ")[0], 1)
        most[part][number] = max(most[part][number], cost["per_weight"])
    return {part: [cost for _, cost in sorted(by_rows.items())] for part, by_rows in most.items()}


def test_the_page_says_what_is_on_record() -> None:
    page = (KERNELS / "README.md").read_text(encoding="utf-8")
    said = {
        (name, part): (float(budget), [float(cost) for cost in costs.split("|") if cost.strip()])
        for name, part, budget, costs in _ROW.findall(page)
    }
    assert said == {
        (kernel.name, part): (round(kernel.budget(), 1), [round(cost, 1) for cost in costs])
        for kernel in ALL
        for part, costs in _loops(kernel).items()
    }
