"""A small image in a folder: packages with metadata, receipts and modules, and a system's files under a root."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sparkwright.doctor.installed import Installed
from sparkwright.doctor.machine import Machine
from sparkwright.files import sha256_bytes

MakeMachine = Callable[..., Machine]


def add_package(site: Path, project: str, version: str, package: str, files: Mapping[str, str] | None = None) -> Path:
    """An importable package with the metadata that pip leaves."""
    metadata = site / f"{project.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n")
    (site / package).mkdir(exist_ok=True)
    for name, text in ({"__init__.py": ""} | dict(files or {})).items():
        target = site / package / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    return metadata


def receipt(component: str, touched: Mapping[str, str], *, status: str = "applied") -> str:
    """A receipt by which these files have this text."""
    files = [{"path": path, "before": "0" * 64, "after": sha256_bytes(text.encode())} for path, text in touched.items()]
    entry = {
        "name": "a-patch",
        "status": status,
        "reason": "a fault",
        "kind": "python",
        "definition": "1" * 64,
        "files": files,
    }
    return json.dumps({"component": component, "version": "1", "sparkwright": "0.1.0", "patches": [entry]})


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """The packages of an image: vLLM from our wheel, FlashInfer patched in place."""
    folder = tmp_path / "site-packages"
    metadata = add_package(folder, "vllm", "0.33.0+gb10", "vllm", {"worker.py": "patched\n", "_version.py": VERSION})
    (metadata / "sparkwright").mkdir()
    source = {"vllm/worker.py": "patched\n", "csrc/kernel.cu": "not in a wheel", "CMakeLists.txt": "nor this"}
    source["cmake/utils.cmake"] = "nor this, though there is a package called cmake"
    add_package(folder, "cmake", "3.31.10", "cmake")
    (metadata / "sparkwright" / "patches.json").write_text(receipt("vllm", source))
    add_package(folder, "flashinfer-python", "0.7.2.post1", "flashinfer", {"jit/moe.py": "patched too\n"})
    (folder / ".sparkwright").mkdir()
    (folder / ".sparkwright" / "patches.json").write_text(
        receipt("flashinfer", {"flashinfer/jit/moe.py": "patched too\n"})
    )
    add_package(folder, "torch", "2.14.0+cu130", "torch")
    return folder


@pytest.fixture
def machine(tmp_path: Path, site: Path) -> MakeMachine:
    """A machine with these system files."""

    def make(files: Mapping[str, str] | None = None, **given: Any) -> Machine:  # noqa: ANN401  whatever the fields are
        root = tmp_path / "root"
        for name, text in (files or {}).items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        home = {"HOME": str(tmp_path / "home"), "PATH": "/nowhere"}
        usual = Machine(root=root, environment=home, installed=Installed((site,)), architecture="aarch64", memlock=-1)
        return replace(usual, **given)

    return make


VERSION = """\
__version__ = version = '0.33.0'
__commit_id__ = commit_id = 'g4ba787ec9'
"""
