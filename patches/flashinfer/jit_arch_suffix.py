"""Give the architectures of FLASHINFER_CUDA_ARCH_LIST the suffix that FlashInfer's kernels need.

Before 0.7 FlashInfer's JIT takes the variable literally: `12.1` becomes `compute_121`. Its kernels need an `a` or `f` target from
compute capability 9.0 on: arch_condition.h stops with "Compiling for SM90 or newer architectures must use Arch specific or Arch Family
specific target", and files that do not include it fail in ptxas. Architectures that FlashInfer finds by asking the device
get the `a`; this gives it to the listed ones too, unless they carry a suffix.

Without the patch: write `FLASHINFER_CUDA_ARCH_LIST=12.1a`. Both forms work with it.
"""

from sparkwright.patching.model import Because, Contains, Patch, Replace, Variant

_PATH = "flashinfer/compilation_context.py"

PATCH = Patch(
    title="FLASHINFER_CUDA_ARCH_LIST=12.1 compiles for plain compute_121, which FlashInfer's kernels refuse",
    releases="<0.7",
    kind="python",
    category="temporary",
    reference=f"{_PATH} (0.6.3: lines 36-39); mended upstream by _normalize_cuda_arch (0.7.2.post1)",
    remove_when="no pinned release is older than 0.7",
    guarded_by="tests/patches/test_jit_arch_suffix.py",
    variants=(
        Variant(
            edits=(
                Replace(
                    path=_PATH,
                    old="""\
                major, minor = arch.split(".")
                major = int(major)
                self.TARGET_CUDA_ARCHS.add((int(major), str(minor)))
        else:
""",
                    new="""\
                major, minor = arch.split(".")
                major = int(major)
                if major >= 9 and minor.isdigit():
                    minor += "a"
                self.TARGET_CUDA_ARCHS.add((major, minor))
        else:
""",
                ),
            )
        ),
    ),
    upstream=(
        Because(
            signs=(
                Contains(
                    path=_PATH,
                    text="""\
                    self.TARGET_CUDA_ARCHS.add(
                        self._normalize_cuda_arch(major, int(minor))
                    )
""",
                    count=1,
                ),
            ),
            why="listed architectures without a suffix are normalised",
            releases=">=0.7",
        ),
    ),
)
