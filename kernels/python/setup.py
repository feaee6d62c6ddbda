"""Builds the compiled part with CMake (../CMakeLists.txt); CMAKE_ARGS is given to it, as to vLLM's build."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext


class CMakeBuild(build_ext):
    """Runs CMake in place of a compiler."""

    def build_extension(self, ext: Extension) -> None:
        """Put _C.so beside the package's modules."""
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve()
        settings = [f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target}", "-DCMAKE_BUILD_TYPE=Release"]
        settings += shlex.split(os.environ.get("CMAKE_ARGS", ""))
        cmake = shutil.which("cmake") or "cmake"
        subprocess.run([cmake, "-S", Path(__file__).parents[1], "-B", build, "-G", "Ninja", *settings], check=True)
        subprocess.run([cmake, "--build", build, "--parallel", os.environ.get("MAX_JOBS", "2")], check=True)


class AnyPython(bdist_wheel):
    """The library uses torch's stable ABI and nothing of Python's: one wheel serves every Python on this platform."""

    def get_tag(self) -> tuple[str, str, str]:
        """Any Python 3, this platform."""
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension("gb10_kernels._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": AnyPython},
)
