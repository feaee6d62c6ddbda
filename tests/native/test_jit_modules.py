"""FlashInfer's modules, compiled ahead by its own generators: names, audit, loading without a compiler.

No GPU is needed to compile, to read the machine code or to load a library; to launch one of its kernels it is.
"""

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from sparkwright.errors import AuditFailedError, CommandFailedError, ConfigurationError, PatchDriftError
from sparkwright.native import jit_build
from sparkwright.native.compiler import host_compiler
from sparkwright.native.environment import (
    BuildEnvironment,
    build_environment,
    locked_environment,
    requirements_of,
    site_packages,
)
from sparkwright.native.jit_modules import JitModule, built, choose, load_modules
from sparkwright.native.source import pristine_tree
from sparkwright.patching.engine import apply_series
from sparkwright.paths import cache
from sparkwright.pins import load_line
from sparkwright.run import run

pytestmark = [pytest.mark.sources, pytest.mark.compiles, pytest.mark.timeout(1200)]

LINE = load_line("0.33.0")
ASKS = Path(__file__).with_name("flashinfer_asks.py")
NORM = choose(load_modules(LINE), ("norm",))
SILU = JitModule(
    name="silu_and_mul",
    generator="flashinfer.jit.activation:gen_act_and_mul_module",
    arguments={"act_func_name": "silu"},
    why="a small one",
    asked_by="this test",
    peak_mb=1000,
)
IMPORTED = (
    *("apache-tvm-ffi", "certifi", "charset-normalizer", "idna", "nvidia-ml-py", "requests", "tqdm", "urllib3"),
)
"""What FlashInfer imports to describe its modules, beside what the build environment has."""


@dataclass(frozen=True)
class Installation:
    """An environment with a patched FlashInfer."""

    python: Path
    site: Path
    scratch: Path

    def ask(self, *words: str, **variables: str) -> str:
        """Run the script that asks FlashInfer, by default with everything it needs to describe modules."""
        usual = {
            "PATH": os.defpath,
            "HOME": str(self.scratch / "home"),
            "FLASHINFER_DISABLE_JIT": "1",
            "FLASHINFER_CUDA_ARCH_LIST": "12.1a",
            "CUDA_HOME": str(self.site / "nvidia" / "cu13"),
        }
        return run([self.python, "-W", "ignore", ASKS, *words], env=usual | variables).splitlines()[-1]


def part_of_lock(names: tuple[str, ...], into: Path) -> Path:
    """A lock file with some of the entries of the locked run environment."""
    entries: list[list[str]] = []
    for line in requirements_of(LINE, "run").read_text().splitlines():
        if line and not line[0].isspace() and line[0] not in "#-":
            entries.append([])
        if entries and line and not line.lstrip().startswith("#"):
            entries[-1].append(line)
    wanted = ["\n".join(entry) for entry in entries if entry[0].partition("==")[0] in names]
    assert len(wanted) == len(names)
    into.write_text("\n".join(wanted) + "\n")
    return into


def link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@pytest.fixture(scope="module")
def unpatched(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """FlashInfer's wheel over the build environment, which has torch, ninja and CUDA's compiler."""
    scratch = tmp_path_factory.mktemp("flashinfer")
    log = cache() / "envs" / "tests.log"
    build = build_environment(LINE, host_compiler(), log)
    dependencies = locked_environment(part_of_lock(IMPORTED, scratch / "flashinfer-imports.txt"), log)
    prefix = scratch / "env"
    run([sys.executable, "-m", "venv", "--without-pip", prefix])
    site = site_packages(prefix)
    tree = pristine_tree(LINE.component("flashinfer-python").file("wheel-any"))
    shutil.copytree(tree, site, dirs_exist_ok=True, copy_function=link)
    (site / "nvidia").symlink_to(site_packages(build.prefix) / "nvidia")
    (site / "others.pth").write_text(f"{site_packages(build.prefix)}\n{site_packages(dependencies)}\n")
    (prefix / "bin" / "ninja").symlink_to(build.tool("ninja"))
    return Installation(prefix / "bin" / "python", site, scratch)


@pytest.fixture(scope="module")
def installation(unpatched: Installation) -> Installation:
    with pytest.raises(PatchDriftError, match="FlashInfer is not patched: moe-utils-sm12x"):
        jit_build.build(LINE, NORM, python=unpatched.python, work=unpatched.scratch / "work")
    apply_series(unpatched.site, "flashinfer", LINE.component("flashinfer-python").version)
    return unpatched


@pytest.fixture(scope="module")
def norm(installation: Installation) -> jit_build.JitReport:
    return jit_build.build(LINE, NORM, python=installation.python, work=installation.scratch / "work")


def test_the_listed_names_are_those_that_flashinfer_asks_for_on_121(installation: Installation) -> None:
    asked = json.loads(installation.ask(HOME=str(installation.scratch / "other-home")))
    # No recipe's model asks for norm: it is there to try the build with.
    assert sorted(asked) == sorted({module.name for module in load_modules(LINE).modules} - {"norm"})


def test_flashinfer_describes_every_listed_module(installation: Installation) -> None:
    environment = BuildEnvironment(prefix=installation.python.parent.parent, lock="")
    variables = environment.variables(
        {"FLASHINFER_WORKSPACE_BASE": str(installation.scratch / "described"), "FLASHINFER_CUDA_ARCH_LIST": "12.1a"}
    )
    modules = load_modules(LINE).modules
    described = jit_build.describe(environment, modules, variables)
    assert [one.name for one in described.modules] == [module.name for module in modules]
    assert described.folder == installation.site / "flashinfer" / "data" / "aot"
    for one in described.modules:
        assert "sm_120f" in one.ninja.read_text() or "sm_121a" in one.ninja.read_text()
    renamed = modules[0].model_copy(update={"name": "fused_moe_121"})
    with pytest.raises(ConfigurationError, match="makes fused_moe_120, not fused_moe_121"):
        jit_build.describe(environment, [renamed], variables)


def without_cost(module: jit_build.ModuleReport) -> jit_build.ModuleReport:
    return module.model_copy(update={"compiled": False, "objects": 0, "cpu_seconds": 0.0, "peak_mb": 0})


def test_a_module_is_compiled_audited_and_installed(installation: Installation, norm: jit_build.JitReport) -> None:
    (one,) = norm.modules
    assert (one.name, one.compiled, one.objects, one.targets) == ("norm", True, 2, ("sm_121a",))
    assert one.cpu_seconds > 1
    assert one.peak_mb > 100
    (ready,) = built(installation.site / "flashinfer" / "data" / "aot")
    assert (ready.name, ready.size) == ("norm", one.size)
    stored = jit_build.read_report(ready.path.parent.parent)
    assert stored
    assert stored.modules == (without_cost(one),), "what was measured would differ with each build of an image"


def test_it_loads_without_a_compiler_and_a_missing_one_says_so(
    installation: Installation, norm: jit_build.JitReport
) -> None:
    assert norm.modules
    libraries = installation.site / "nvidia" / "cu13" / "lib"
    bare = {"CUDA_HOME": "/nonexistent", "PATH": "/nonexistent", "LD_LIBRARY_PATH": str(libraries)}
    assert json.loads(installation.ask("load", **bare)) is True
    shutil.move(libraries_of(installation, "norm"), installation.scratch / "aside")
    try:
        with pytest.raises(CommandFailedError, match="MissingJITCacheError"):
            installation.ask("load", HOME=str(installation.scratch / "other-home"))
    finally:
        shutil.move(installation.scratch / "aside", libraries_of(installation, "norm"))


def libraries_of(installation: Installation, name: str) -> Path:
    return installation.site / "flashinfer" / "data" / "aot" / name


def test_what_is_up_to_date_is_kept_and_what_was_lost_is_linked_again(
    installation: Installation, norm: jit_build.JitReport
) -> None:
    work = installation.scratch / "work"
    again = jit_build.build(LINE, NORM, python=installation.python, work=work)
    assert again.modules == tuple(without_cost(one) for one in norm.modules)
    library = libraries_of(installation, "norm") / "norm.so"
    library.write_bytes(library.read_bytes()[:-1])
    repaired = jit_build.build(LINE, NORM, python=installation.python, work=work)
    assert repaired.modules[0].sha256 == norm.modules[0].sha256
    assert repaired.modules[0].objects == 0


def test_a_module_for_another_gpu_is_refused_and_not_installed(installation: Installation) -> None:
    for_rtx = LINE.model_copy(update={"arch_list": ("12.0a",)})
    with pytest.raises(AuditFailedError, match="no machine code that loads on compute capability"):
        jit_build.build(for_rtx, (SILU,), python=installation.python, work=installation.scratch / "rtx")
    assert not libraries_of(installation, "silu_and_mul").exists()


def test_the_pinned_commit_is_the_one_that_upstream_names() -> None:
    tree = pristine_tree(LINE.component("vllm").file("sdist"))
    (version,) = tree.rglob("vllm/_version.py")
    assert f"commit_id = 'g{LINE.vllm_commit}'" in version.read_text()
