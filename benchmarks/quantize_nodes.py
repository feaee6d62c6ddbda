"""How much faster two Ray actors quantize than one, each actor on a node of its own with one core.

In turn: without Ray on one core; a Ray cluster of one node; one of two, each pinned to its own core. The same model
and samples. What is compared is the time of quantizing all layers, not that of starting Python. The process that deals
the layers is pinned to the second core. Other programs on the machine spoil the ratio.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from measuring import store

from sparkwright.paths import CHECKOUT

LAYERS, SAMPLES = 12, 16
PORT = 6479
ADDRESS = f"127.0.0.1:{PORT}"


def cluster(python: str, cores: list[int], environment: dict[str, str], log: Path) -> list[subprocess.Popen[bytes]]:
    """Start one node for each of the cores; each ends when its process is told to."""
    nodes: list[subprocess.Popen[bytes]] = []
    log.write_bytes(b"")
    for number, core in enumerate(cores):
        role = ["--head", f"--port={PORT}", "--include-dashboard=false"] if number == 0 else [f"--address={ADDRESS}"]
        words = ["--block", "--num-cpus=1", "--disable-usage-stats", "--node-ip-address=127.0.0.1"]
        start = ["taskset", "-c", str(core), python, "-m", "ray.scripts.scripts", "start", *role, *words]
        with log.open("ab") as stream:
            nodes.append(subprocess.Popen(start, env=environment, stdout=stream, stderr=stream))
        deadline = time.monotonic() + 120
        while log.read_bytes().count(b"Ray runtime started") <= number:
            if time.monotonic() > deadline:
                raise SystemExit(log.read_text(encoding="utf-8", errors="replace"))
            time.sleep(0.2)
    return nodes


def end(node: subprocess.Popen[bytes]) -> None:
    """Stop a node, by force if it does not end: one that has lost its head may hang."""
    node.terminate()
    try:
        node.wait(20)
    except subprocess.TimeoutExpired:
        node.kill()
        node.wait()


def main() -> None:
    """Measure all in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("python", help="of an environment of requirements/quantize.txt, torch and this checkout")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--length", type=int, default=480, help="tokens of a sample; each crosses at a cost of its own")
    options = parser.parse_args()
    python = options.python
    cases: dict[str, list[int]] = {"without_ray": [], "one": [0], "two": [0, 1]}
    seconds: dict[str, list[float]] = {case: [] for case in cases}
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
        counts = ["--samples", str(SAMPLES), "--length", str(options.length)]
        for number in range(options.rounds):
            for case, cores in cases.items():
                output = scratch / f"{case}-{number}"
                nodes = cluster(python, cores, environment, scratch / "ray.log")
                try:
                    words = ["quantize", str(model), str(output), "--data", str(data), *counts, "--device", "cpu"]
                    if cores:
                        words += ["--ray", ADDRESS, "--actors", str(len(cores))]
                    own = ["taskset", "-c", "1" if cores else "0", python, "-m", "sparkwright"]
                    subprocess.run([*own, *words], env=environment, check=True)
                finally:
                    for node in reversed(nodes):
                        end(node)
                report = json.loads((scratch / f"{output.name}.report.json").read_text(encoding="utf-8"))
                seconds[case].append(round(report["seconds"]["quantizing"], 2))
    middle = {case: statistics.median(all_) for case, all_ in seconds.items()}
    store(
        f"quantize-nodes-{options.length}-tokens",
        {
            "units": "wall seconds of all layers",
            "model": f"random Llama, {LAYERS} layers of 18 MB; {SAMPLES} samples of {options.length} tokens",
            "runs": seconds,
            "speedup_of_two_actors": round(middle["one"] / middle["two"], 2),
            "speedup_against_one_process": round(middle["without_ray"] / middle["two"], 2),
        },
    )


if __name__ == "__main__":
    main()
