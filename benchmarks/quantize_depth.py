"""Layers per CPU second and peak memory of `sparkwright quantize` against depth, beside modelopt's plain flow.

Both quantize the same random models (12 MB a layer in BF16) with the same samples, each in a process of its own on one
thread, in turn. Run by `python benchmarks/quantize_depth.py PYTHON`, where PYTHON is that of an environment made from
requirements/quantize.txt with torch and this checkout in it.
"""

import json
import os
import random
import sys
import tempfile
from pathlib import Path

from measuring import store

from sparkwright.paths import CHECKOUT

DEPTHS = (5, 10, 20, 40)
SCRIPTS = CHECKOUT / "tests" / "quantize"
SAMPLES, LENGTH = 8, 128


def measured(argv: list[str]) -> dict[str, float]:
    """Run a command; its CPU and wall seconds and its largest resident memory."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    start = os.times().elapsed
    child = os.posix_spawn(
        argv[0], argv, environment, file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    )
    _, status, usage = os.wait4(child, 0)
    if status:
        raise SystemExit(f"{argv} ended with {os.waitstatus_to_exitcode(status)}")
    return {
        "cpu": round(usage.ru_utime + usage.ru_stime, 2),
        "wall": round(os.times().elapsed - start, 2),
        "peak_rss_mb": round(usage.ru_maxrss / 1000),
    }


def main() -> None:
    """Measure each depth with both."""
    python = sys.argv[1]
    counts = ["--samples", str(SAMPLES), "--length", str(LENGTH)]
    runs: dict[str, dict[str, dict[str, float]]] = {"by_layer": {}, "at_once": {}}
    with tempfile.TemporaryDirectory(prefix="sparkwright-benchmark-") as name:
        scratch = Path(name)
        chance = random.Random(7)
        data = scratch / "texts.jsonl"
        lines = [json.dumps({"text": " ".join(str(chance.random()) for _ in range(60))}) for _ in range(40)]
        data.write_text("\n".join(lines), encoding="utf-8")
        for depth in DEPTHS:
            model = scratch / f"model-{depth}"
            shape = ["--hidden", "512", "--wide", "3072", "--layers", str(depth), "--copies"]
            measured([python, str(SCRIPTS / "make_model.py"), str(model), *shape])
            layered = [python, "-m", "sparkwright", "quantize", str(model), str(scratch / f"by-layer-{depth}")]
            runs["by_layer"][str(depth)] = measured([*layered, "--data", str(data), *counts, "--device", "cpu"])
            whole = [python, str(SCRIPTS / "make_checkpoint.py"), str(model), str(scratch / f"at-once-{depth}")]
            runs["at_once"][str(depth)] = measured([*whole, "--data", str(data), *counts])
    least, most = str(min(DEPTHS)), str(max(DEPTHS))
    more = max(DEPTHS) - min(DEPTHS)
    store(
        "quantize-depth",
        {
            "units": "seconds, MB",
            "model": "random Llama, 12 MB a layer in BF16; one run of each",
            "runs": runs,
            "layers_per_cpu_second_beyond_the_start": {
                kind: round(more / (each[most]["cpu"] - each[least]["cpu"]), 3) for kind, each in runs.items()
            },
            "peak_rss_growth": {
                kind: round(each[most]["peak_rss_mb"] / each[least]["peak_rss_mb"], 3) for kind, each in runs.items()
            },
        },
    )


if __name__ == "__main__":
    main()
