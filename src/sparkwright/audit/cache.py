"""Remember the facts about device code that was inspected before, by its content.

The same translation unit comes by several times: in its object, in the library, in the wheel.
"""

import hashlib
import tempfile
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from sparkwright import paths
from sparkwright.audit import inspection
from sparkwright.audit.disassembler import Disassembler
from sparkwright.audit.model import FatBinary
from sparkwright.files import explain_write_errors, sha256_bytes, write_atomic

_READERS: Final = ("inspection.py", "model.py", "target.py")


class FactsCache:
    """Facts on disk; a change of the tools or of the code that reads their output starts afresh."""

    def __init__(self, tools: Disassembler) -> None:
        readers = (Path(__file__).with_name(name).read_bytes() for name in _READERS)
        self._folder = paths.cache() / "audit" / sha256_bytes(b"".join((tools.version().encode(), *readers)))[:16]

    def facts(self, piece: memoryview, name: str, tools: Disassembler) -> FatBinary:
        """What is known about a piece of device code, inspecting it when that is nothing."""
        file = self._folder / f"{hashlib.sha256(piece).hexdigest()}.json"
        try:
            return FatBinary.model_validate_json(file.read_bytes())
        except (FileNotFoundError, ValidationError):
            with explain_write_errors(Path(tempfile.gettempdir())):
                facts = inspection.inspect(piece, name, tools)
            write_atomic(file, facts.model_dump_json())
            return facts
