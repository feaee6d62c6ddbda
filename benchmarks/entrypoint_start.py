"""Time `entrypoint.sh serve` from start to the exec of `vllm`, above a bare `python3 -c pass` on the same machine.

`vllm` is a program that ends at once. Runs alternate; the difference of the medians is what the entrypoint adds before
vLLM itself begins.
"""

import os
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
from measuring import Cost, measure, store
from safetensors.numpy import save_file

from sparkwright.paths import CHECKOUT

RUNS = 25


def main() -> None:
    """Measure with variables only, with a recipe, whose schema needs heavier imports, and with a folder to check."""
    with tempfile.TemporaryDirectory(prefix="sparkwright-benchmark-") as name:
        scratch = Path(name)
        stub = scratch / "vllm"
        stub.symlink_to("/bin/true")
        model = scratch / "model"
        model.mkdir()
        (model / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}', encoding="utf-8")
        save_file({"model.norm.weight": np.ones(64, dtype=np.float32)}, model / "model.safetensors")
        base = {
            "PATH": f"{scratch}:/usr/bin:/bin",
            "HOME": name,
            "TMPDIR": name,
            "SPARKWRIGHT_PYTHON": sys.executable,
            "SPARKWRIGHT_VLLM_VERSION": "0.33.0",
        }
        cases: dict[str, tuple[list[str | Path], dict[str, str]]] = {
            "bare_python": ([sys.executable, "-c", "pass"], dict(os.environ)),
            "serve": ([CHECKOUT / "entrypoint.sh", "serve"], {**base, "MODEL": "owner/name"}),
            "serve_with_a_recipe": ([CHECKOUT / "entrypoint.sh", "serve"], {**base, "RECIPE": "qwen3-8b-nvfp4"}),
            "serve_a_folder": ([CHECKOUT / "entrypoint.sh", "serve"], {**base, "MODEL": str(model)}),
        }
        costs: dict[str, list[Cost]] = {case: [] for case in cases}
        for _ in range(RUNS):
            for case, (argv, environment) in cases.items():
                costs[case].append(measure(argv, env=environment))
    medians = {
        case: {"cpu": statistics.median(one.cpu for one in each), "wall": statistics.median(one.wall for one in each)}
        for case, each in costs.items()
    }
    bare = medians["bare_python"]
    store(
        "entrypoint-start",
        {
            "units": "seconds",
            "runs": {case: [[one.cpu, one.wall] for one in each] for case, each in costs.items()},
            "median": medians,
            "above_bare_python": {
                case: {key: round(each[key] - bare[key], 3) for key in each}
                for case, each in medians.items()
                if case != "bare_python"
            },
        },
    )


if __name__ == "__main__":
    main()
