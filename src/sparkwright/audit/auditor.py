"""Audit what a path names: every file in it that holds device code."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sparkwright.audit.cache import FactsCache
from sparkwright.audit.containers import RawContainer, open_containers
from sparkwright.audit.disassembler import Disassembler, find_disassembler
from sparkwright.audit.model import Audit, Container, FatBinary
from sparkwright.report import progress


def audit(path: Path, *, only: Sequence[str] | None = None) -> Audit:
    """The facts about the machine code in an object, cubin, shared library, wheel or package folder.

    With `only`, just these files of a folder, named by their paths in it.

    Raises:
        InputUnreadableError: `path` is missing, truncated or of no known kind.
    """
    tools = find_disassembler()
    with open_containers(path, only=only) as raw:
        facts = _inspect(raw, tools, label=path.name)
        return Audit(
            path=path,
            containers=tuple(
                Container(path=one.path, fat_binaries=tuple(facts[index, at] for at in range(len(one.pieces))))
                for index, one in enumerate(raw)
                if one.pieces
            ),
            without_device_code=tuple(one.path for one in raw if not one.pieces),
        )


def _inspect(raw: Sequence[RawContainer], tools: Disassembler, *, label: str) -> dict[tuple[int, int], FatBinary]:
    cache = FactsCache(tools)
    # The largest first, so that no worker is left with the longest disassembly at the end.
    keys = sorted(
        ((index, at) for index, one in enumerate(raw) for at in range(len(one.pieces))),
        key=lambda key: -len(raw[key[0]].pieces[key[1]]),
    )
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool, progress(unit="translation units") as bar:
        task = bar.add_task(f"audit {label}", total=len(keys))
        facts = {}
        work = pool.map(lambda key: cache.facts(raw[key[0]].pieces[key[1]], raw[key[0]].path, tools), keys)
        for key, found in zip(keys, work, strict=True):
            facts[key] = found
            bar.advance(task)
    return facts
