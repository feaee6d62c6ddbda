"""Compile five representative files for 12.1a alone and for the list of upstream's own image; compare CPU seconds.

Both build trees are configured by vLLM's own CMake: ours from the patched source with the pinned list, upstream's from
the same source with only the lean patch (so that nothing is cloned) and the architectures of its published image.
The compile commands are the ones CMake made, without the compiler cache, run one after another, alternating.
"""

import shlex
import shutil
import statistics
import tempfile
from pathlib import Path

from measuring import measure, store

from sparkwright.native.compiler import host_compiler
from sparkwright.native.configure import Configuration, configuration, configure
from sparkwright.native.environment import BuildEnvironment, build_environment
from sparkwright.native.layout import Layout
from sparkwright.native.source import cutlass_headers
from sparkwright.patching.engine import apply_series
from sparkwright.patching.series import load_series, select
from sparkwright.pins import default_line, load_line
from sparkwright.report import note
from sparkwright.run import run
from sparkwright.sources import fetch, unpack

UPSTREAM = ("7.5", "8.0", "8.6", "8.9", "10.0", "11.0", "12.0")
"""torch_cuda_arch_list of docker/versions.json in the 0.33.0 sdist, less 9.0.

With 9.0 configure generates Machete, and its generator needs Python parts of CUTLASS that a copy of the headers lacks.
So what upstream really spends is more than what is measured here.
"""

FILES = (
    "csrc/quantization/fp4/nvfp4_quant_kernels.cu.o",
    "csrc/quantization/w8a8/cutlass/moe/moe_data.cu.o",
    "csrc/cache_kernels.cu.o",
    "csrc/layernorm_kernels.cu.o",
    "csrc/pos_encoding_kernels.cu.o",
)
RUNS = 2


def configured(folder: Path, archs: tuple[str, ...], names: tuple[str, ...]) -> tuple[Configuration, BuildEnvironment]:
    """A build tree of vLLM's own CMake for these architectures, from a source with these patches (all when empty)."""
    line = load_line(default_line())
    folders = Layout(root=folder)
    source = unpack(fetch(line.component("vllm").file("sdist")), folders.vllm)
    apply_series(source, "vllm", line.name, series=select(load_series("vllm"), names))
    environment = build_environment(line, host_compiler(), folders.log("environment"))
    how = configuration(
        line=line.model_copy(update={"arch_list": archs}),
        source=source,
        cutlass=cutlass_headers(line),
        environment=environment,
        folders=folders,
        ccache=None,
    )
    configure(how, environment, folders.log("configure"))
    return how, environment


def command(how: Configuration, environment: BuildEnvironment, name: str) -> list[str]:
    """The compiler call that ninja would make for an object, without our launcher in front."""
    targets = run([environment.tool("ninja"), "-C", how.build, "-t", "targets", "all"], env=how.variables)
    target = next(line.rpartition(": ")[0] for line in targets.splitlines() if line.rpartition(": ")[0].endswith(name))
    (call,) = run(
        [environment.tool("ninja"), "-C", how.build, "-t", "commands", "-s", target], env=how.variables
    ).splitlines()
    words = shlex.split(call)
    return words[words.index(str(environment.cuda_home / "bin" / "nvcc")) :]


def main() -> None:
    """Measure all files and store the result."""
    costs: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="sparkwright-benchmark-") as name:
        ours = configured(Path(name) / "ours", load_line(default_line()).arch_list, ())
        theirs = configured(Path(name) / "upstream", UPSTREAM, ("lean-gb10-externals",))
        for file in FILES:
            costs[file] = {"12.1a": [], "upstream": []}
            for _ in range(RUNS):
                for key, (how, environment) in (("12.1a", ours), ("upstream", theirs)):
                    words = command(how, environment, file)
                    output = how.build / words[words.index("-o") + 1]
                    output.parent.mkdir(parents=True, exist_ok=True)
                    costs[file][key].append(measure(words, cwd=how.build, env=how.variables).cpu)
                    output.unlink()
                note(f"{file}: {costs[file]}")
        shutil.rmtree(Path(name) / "upstream")
    total = {key: sum(statistics.median(each[key]) for each in costs.values()) for key in ("12.1a", "upstream")}
    medians = {file: {key: statistics.median(values) for key, values in each.items()} for file, each in costs.items()}
    store(
        "arch-list",
        {
            "units": "CPU seconds, one compiler at a time, no compiler cache",
            "upstream_list": UPSTREAM,
            "runs": costs,
            "ratio_12.1a_to_upstream": {
                **{file: round(each["12.1a"] / each["upstream"], 3) for file, each in medians.items()},
                "all": round(total["12.1a"] / total["upstream"], 3),
            },
        },
    )


if __name__ == "__main__":
    main()
