"""What vLLM's own CMake would build, told by running it (configure.cmake); no compiler and no torch are involved."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sparkwright.errors import CommandFailedError
from sparkwright.run import run

_SCRIPT = Path(__file__).with_name("configure.cmake")


@dataclass(frozen=True, kw_only=True)
class Configured:
    """What a run of CMake asked for, and the error that ended it, if one did."""

    code: dict[str, frozenset[str]]
    """By source file: the machine code and PTX that nvcc is told to make."""
    sources: frozenset[str]
    defines: frozenset[str]
    clones: tuple[str, ...]
    """Dependencies that would be cloned; the run ends at the first."""
    error: str

    def code_of(self, name: str) -> frozenset[str]:
        """The code of the one source file with this name; empty when it has none."""
        found = [code for source, code in self.code.items() if source.rpartition("/")[2] == name]
        assert len(found) <= 1
        return found[0] if found else frozenset()

    def all_code(self) -> frozenset[str]:
        """Everything that is made for any file."""
        return frozenset().union(*self.code.values())


@dataclass(frozen=True, kw_only=True)
class UpstreamCMake:
    """Runs the CMake code of unpacked vLLM trees."""

    program: Path
    scratch: Path

    def configure(
        self, tree: Path, archs: str, *, lean: bool = False, cuda: str = "13.0.88", only: str = ""
    ) -> Configured:
        """Configure a tree for a TORCH_CUDA_ARCH_LIST (entries split by `;`)."""
        words = [f"-DTREE={tree}", f"-DARCHS={archs}", f"-DCUDA={cuda}", f"-DSCRATCH={self.scratch}"]
        words += ["-DVLLM_LEAN=ON"] if lean else []
        words += [f"-DONLY={tree / only}", f"-DQUTLASS_SRC_DIR={self.scratch}"] if only else []
        error = self._run(tree, [*words, "-P", str(_SCRIPT)])
        return _read(self.scratch / "record", error)

    def intersect(self, tree: Path, *questions: tuple[str, str]) -> tuple[list[str], str]:
        """What cuda_archs_loose_intersection answers to each (listed, requested), and the error that stopped it."""
        script, answers = self.scratch / "intersect.cmake", self.scratch / "answers"
        lines = ["cmake_minimum_required(VERSION 3.26)", "set(CMAKE_CUDA_COMPILER_VERSION 13.0.88)"]
        lines += [f'include("{tree}/cmake/utils.cmake")', f'file(WRITE "{answers}" "")']
        for listed, requested in questions:
            lines.append(f'cuda_archs_loose_intersection(ANSWER "{listed}" "{requested}")')
            lines.append(f'file(APPEND "{answers}" "${{ANSWER}}\\n")')
        script.write_text("\n".join(lines))
        error = self._run(tree, ["-P", str(script)])
        return answers.read_text().splitlines(), error

    def _run(self, tree: Path, words: Iterable[str]) -> str:
        try:
            run([self.program, "-Wno-dev", *words], cwd=tree)
        except CommandFailedError as error:
            return " ".join(error.what.split())
        return ""


def _read(record: Path, error: str) -> Configured:
    code: dict[str, set[str]] = defaultdict(set)
    values: dict[str, list[str]] = defaultdict(list)
    for line in record.read_text().splitlines():
        kind, subject, value = line.split("\t")
        if kind == "code":
            code[subject].add(value)
        else:
            values[kind].append(subject if kind == "clone" else value)
    return Configured(
        code={source: frozenset(made) for source, made in code.items()},
        sources=frozenset(values["source"]),
        defines=frozenset(values["define"]),
        clones=tuple(values["clone"]),
        error=error,
    )
