"""PTX in a finished library, compiled ahead: what changes in the library, what does not, and what is refused."""

import os
import re
import shlex
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from sparkwright.audit import Readiness, Requirement, audit, check
from sparkwright.audit.containers import open_containers
from sparkwright.audit.target import Target
from sparkwright.errors import AuditFailedError, BuildFailedError
from sparkwright.native.translate import add_machine_code
from sparkwright.pins import default_line, host_wheel_kind, load_line
from sparkwright.run import run
from sparkwright.sources import fetch

pytestmark = [pytest.mark.sources, pytest.mark.compiles, pytest.mark.timeout(600)]

GB10 = Target.parse("sm_121a")
JOBS = len(os.sched_getaffinity(0))
FA2 = "vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so"
KERNELS = """
__global__ void {name}_scale(float* x, float by) {{ x[threadIdx.x] *= by; }}
extern "C" __global__ void {name}_add(double* x, double term) {{
    for (int i = 0; i < 64; ++i) x[i * blockDim.x + threadIdx.x] += term * i;
}}
void {name}(float* x, double* y) {{ {name}_scale<<<1, 32>>>(x, 2); {name}_add<<<1, 32>>>(y, 3); }}
"""
OLD = "-gencode=arch=compute_80,code=[sm_80,compute_80]"
SPECIFIC = "-gencode=arch=compute_90a,code=sm_90a"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda_home: Path) -> None:
    """Nothing that was compiled before is found; the tools are those of the common cache."""
    monkeypatch.setenv("SPARKWRIGHT_CUOBJDUMP", str(cuda_home / "bin" / "cuobjdump"))
    monkeypatch.setenv("SPARKWRIGHT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def original(cuda_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library of three translation units: code for 8.0 with PTX, code for 12.0, code for 9.0a alone."""
    folder = tmp_path_factory.mktemp("translate")
    units = {"old": (OLD, "-maxrregcount=24"), "family": ("-arch=sm_120",), "hopper": (SPECIFIC,)}
    objects = []
    for name, options in units.items():
        source = folder / f"{name}.cu"
        source.write_text(KERNELS.format(name=name))
        objects.append(folder / f"{name}.o")
        run([cuda_home / "bin" / "nvcc", "-Xcompiler", "-fPIC", *options, "-c", source, "-o", objects[-1]])
    library = folder / "original.so"
    run([cuda_home / "bin" / "nvcc", "-shared", "-cudart", "none", *objects, "-o", library])
    return library


@pytest.fixture
def library(original: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    copy = tmp_path / "library.so"
    copy.write_bytes(original.read_bytes())
    copy.chmod(0o755)
    return copy


def states(library: Path) -> list[Readiness]:
    (container,) = audit(library).containers
    return [unit.readiness for unit in container.fat_binaries]


def compiled(folder: Path) -> int:
    """How often ptxas was run to fill this cache."""
    return sum(len(file.read_text().splitlines()) for file in folder.rglob("measurements.jsonl"))


def test_only_what_the_driver_would_compile_gets_machine_code(library: Path, original: Path, cuda_home: Path) -> None:
    assert states(library) == [Readiness.JIT, Readiness.NATIVE, Readiness.NONE]
    with open_containers(library) as (container,):
        begin, room = container.offsets[0], len(container.pieces[0])
    assert add_machine_code(library, GB10, cuda_home=cuda_home, jobs=JOBS) == 1
    assert states(library) == [Readiness.NATIVE, Readiness.NATIVE, Readiness.NONE]
    unit = audit(library).containers[0].fat_binaries[0]
    assert unit.sass == ("sm_121a",)
    assert unit.ptx == ("sm_80",), "for a driver that would rather compile it"
    assert unit.code
    assert unit.code.kernels == 2
    assert unit.code.max_registers <= 24, "PTX is compiled with the options that it came with"
    old, new = original.read_bytes(), library.read_bytes()
    assert len(old) == len(new)
    assert old[:begin] + old[begin + room :] == new[:begin] + new[begin + room :]
    assert library.stat().st_mode & 0o777 == 0o755
    listed = run([cuda_home / "bin" / "cuobjdump", "-all", library])
    assert re.search(r"ptxasOptions =.*-maxrregcount=24", listed), "the driver would do so as well"


def test_what_is_done_is_not_done_again(library: Path, original: Path, tmp_path: Path, cuda_home: Path) -> None:
    assert add_machine_code(library, GB10, cuda_home=cuda_home, jobs=JOBS) == 1
    assert compiled(tmp_path) == 1
    done = library.read_bytes()
    assert add_machine_code(library, GB10, cuda_home=cuda_home, jobs=JOBS) == 0
    library.write_bytes(original.read_bytes())
    assert add_machine_code(library, GB10, cuda_home=cuda_home, jobs=JOBS) == 1
    assert compiled(tmp_path) == 0, "it came from the cache"
    assert library.read_bytes() == done


def test_machine_code_that_does_not_fit_is_refused(cuda_home: Path, tmp_path: Path) -> None:
    """Where there is nothing but PTX, there is no room for more."""
    source, library = tmp_path / "ptx.cu", tmp_path / "ptx.so"
    source.write_text(KERNELS.format(name="ptx"))
    only_ptx = ("-gencode=arch=compute_80,code=compute_80", "-Xcompiler", "-fPIC", "-shared", "-cudart", "none")
    run([cuda_home / "bin" / "nvcc", *only_ptx, source, "-o", library])
    before = library.read_bytes()
    with pytest.raises(BuildFailedError, match="does not fit where it has to go"):
        add_machine_code(library, GB10, cuda_home=cuda_home, jobs=JOBS)
    assert library.read_bytes() == before


@pytest.fixture
def toolkit(cuda_home: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A CUDA_HOME whose ptxas does something else: toolkit(shell)."""

    def make(shell: str) -> Path:
        folder = tmp_path / "cuda" / "bin"
        folder.mkdir(parents=True)
        (folder / "fatbinary").symlink_to(cuda_home / "bin" / "fatbinary")
        ptxas = shlex.quote(str(cuda_home / "bin" / "ptxas"))
        (folder / "ptxas").write_text(f"#!/bin/bash\n[[ $1 == --version ]] && exec {ptxas} --version\n{shell}\n")
        (folder / "ptxas").chmod(0o755)
        return folder.parent

    return make


def test_other_machine_code_than_the_ptx_says_is_refused(
    library: Path, toolkit: Callable[[str], Path], cuda_home: Path
) -> None:
    without_one = r"sed '/^\.visible \.entry old_add/,/^}/d' "
    ptxas = shlex.quote(str(cuda_home / "bin" / "ptxas"))
    other = '"${@: -1}.ptx"'
    spoilt = toolkit(f'{without_one} "${{@: -3:1}}" >{other}; exec {ptxas} "${{@:1:$#-3}}" {other} "${{@: -2}}"')
    before = library.read_bytes()
    with pytest.raises(AuditFailedError, match="1 kernels for sm_121a, not 2 for sm_121a"):
        add_machine_code(library, GB10, cuda_home=spoilt, jobs=JOBS)
    assert library.read_bytes() == before


def test_a_compiler_that_fails_is_told(library: Path, toolkit: Callable[[str], Path]) -> None:
    before = library.read_bytes()
    with pytest.raises(BuildFailedError, match=r"(?s)could not be compiled for sm_121a.*out of registers") as error:
        add_machine_code(library, GB10, cuda_home=toolkit("echo out of registers >&2; exit 1"), jobs=JOBS)
    assert "--externals wheel" in str(error.value)
    assert library.read_bytes() == before


def flash_attention(folder: Path) -> Path:
    """The library of the official wheel."""
    with zipfile.ZipFile(fetch(load_line(default_line()).component("vllm").file(host_wheel_kind()))) as wheel:
        return Path(wheel.extract(FA2, folder))


def tensor_core_instructions(fat_binary: Path, target: str, cuda_home: Path) -> int:
    (cubin,) = run([cuda_home / "bin" / "cuobjdump", "-xelf", target, fat_binary], cwd=fat_binary.parent).split()[-1:]
    return run([cuda_home / "bin" / "nvdisasm", "-c", fat_binary.parent / cubin]).count("HMMA.")


def test_a_module_of_flash_attention(tmp_path: Path, cuda_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest of the official wheel, in a library of its own."""
    monkeypatch.delenv("SPARKWRIGHT_CACHE")
    with open_containers(flash_attention(tmp_path)) as (container,):
        smallest = min(container.pieces, key=len)
        (tmp_path / "old.fatbin").write_bytes(smallest)
    assembly, library = tmp_path / "module.s", tmp_path / "module.so"
    assembly.write_text(f'.section .nv_fatbin,"a"\n.incbin "{tmp_path}/old.fatbin"\n')
    run(["g++", "-shared", assembly, "-o", library])
    assert states(library) == [Readiness.JIT]
    monkeypatch.setenv("SPARKWRIGHT_CACHE", str(tmp_path / "cache"))
    assert add_machine_code(library, GB10, cuda_home=cuda_home, jobs=JOBS) == 1
    assert check(audit(library), [Requirement.SM121]) == []
    with open_containers(library) as (container,):
        (tmp_path / "new.fatbin").write_bytes(container.pieces[0])
    expected = tensor_core_instructions(tmp_path / "old.fatbin", "sm_80", cuda_home)
    assert expected > 0
    assert tensor_core_instructions(tmp_path / "new.fatbin", "sm_121a", cuda_home) == expected


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_all_of_flash_attention(tmp_path: Path, cuda_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes an hour of one core when the common cache holds nothing of it."""
    monkeypatch.delenv("SPARKWRIGHT_CACHE")
    library = flash_attention(tmp_path)
    modules = states(library)
    assert set(modules) == {Readiness.JIT}
    assert add_machine_code(library, GB10, cuda_home=cuda_home, jobs=JOBS) == len(modules)
    assert set(states(library)) == {Readiness.NATIVE}
    assert check(audit(library), [Requirement.SM121]) == []
