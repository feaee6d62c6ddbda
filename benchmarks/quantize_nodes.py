"""How much faster two Ray actors quantize than one, each actor on a node of its own with one core.

Two Ray clusters in turn, one of one node and one of two, whose processes are pinned to their cores; the same model,
samples and batches. What is compared is the time of calibrating and exporting, not that of starting Python. Run by
`python benchmarks/quantize_nodes.py PYTHON`, where PYTHON is that of an environment made from requirements/quantize.txt
with torch and this checkout in it. Other programs on the machine spoil the ratio.
"""

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measuring import store

from sparkwright.paths import CHECKOUT

ROUNDS = 3
LAYERS, SAMPLES, LENGTH, BATCHES = 8, 32, 512, 8
PORT = 6479
ADDRESS = f"127.0.0.1:{PORT}"


def cluster(python: str, cores: list[int], environment: dict[str, str]) -> list[subprocess.Popen[bytes]]:
    """Start one node for each of the cores; each ends when its process is told to."""
    nodes = []
    for number, core in enumerate(cores):
        role = ["--head", f"--port={PORT}", "--include-dashboard=false"] if number == 0 else [f"--address={ADDRESS}"]
        words = ["--block", "--num-cpus=1", "--disable-usage-stats", "--node-ip-address=127.0.0.1"]
        start = ["taskset", "-c", str(core), python, "-m", "ray.scripts.scripts", "start", *role, *words]
        nodes.append(subprocess.Popen(start, env=environment, stdout=subprocess.DEVNULL))
        time.sleep(20)  # Ray says nowhere else that it is ready
    return nodes


def main() -> None:
    """Measure both in turn."""
    python = sys.argv[1]
    seconds: dict[str, list[float]] = {"one": [], "two": []}
    with tempfile.TemporaryDirectory(prefix="sparkwright-benchmark-") as name:
        scratch = Path(name)
        chance = random.Random(7)
        data = scratch / "texts.jsonl"
        lines = [json.dumps({"text": " ".join(str(chance.random()) for _ in range(60))}) for _ in range(200)]
        data.write_text("\n".join(lines), encoding="utf-8")
        model = scratch / "model"
        shape = ["--hidden", "768", "--wide", "3072", "--layers", str(LAYERS), "--copies"]
        environment = os.environ | {"HOME": name, "OMP_NUM_THREADS": "1"}
        subprocess.run([python, CHECKOUT / "tests/quantize/make_model.py", model, *shape], check=True)
        counts = ["--samples", str(SAMPLES), "--length", str(LENGTH), "--batches", str(BATCHES)]
        for number in range(ROUNDS):
            for case, cores in (("one", [0]), ("two", [0, 1])):
                output = scratch / f"{case}-{number}"
                nodes = cluster(python, cores, environment)
                try:
                    words = ["quantize", str(model), str(output), "--data", str(data), *counts, "--device", "cpu"]
                    words += ["--ray", ADDRESS, "--actors", str(len(cores))]
                    subprocess.run([python, "-m", "sparkwright", *words], env=environment, check=True)
                finally:
                    for node in reversed(nodes):
                        node.terminate()
                        node.wait(60)
                report = json.loads((scratch / f"{output.name}.report.json").read_text(encoding="utf-8"))
                spent = report["seconds"]
                seconds[case].append(round(spent["calibrating"] + spent["exporting"], 2))
    ratio = statistics.median(seconds["one"]) / statistics.median(seconds["two"])
    store(
        "quantize-nodes",
        {
            "units": "wall seconds of calibrating and exporting",
            "model": f"random Llama, {LAYERS} layers of 18 MB; {SAMPLES} samples of {LENGTH} tokens, {BATCHES} batches",
            "runs": seconds,
            "speedup_of_two_actors": round(ratio, 2),
        },
    )


if __name__ == "__main__":
    main()
