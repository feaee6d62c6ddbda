"""The decode kernels against this GPU's own copy bandwidth and against vLLM's Marlin, in one run.

Run it where gb10_kernels and vLLM are installed: python benchmarks/kernels/decode.py --output result.json
Marlin is the installed vLLM's. A kernel that cannot be measured says why in its row, and the result is written anew
after each row. --predict prints what GB10's bandwidth allows for each layer and needs no GPU. --dry-run walks through
everything on tiny layers, on the CPU too, and its times mean nothing.

A time is the median over replays of a CUDA graph that runs the kernel once on each of several copies of the layer,
which together are larger than the GPU's last-level cache three times over. Every result is compared with the float64
reference before it is timed.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import gb10_kernels  # type: ignore[import-not-found]
import marlin
import torch  # type: ignore[import-not-found]
from gb10_kernels import reference
from layers import LAYERS, TINY, Dense, Experts

GB10_BANDWIDTH = 273e9
DRIVER = Path("/proc/driver/nvidia/version")
ERROR_ALLOWED = 2.0**-7  # of the largest value; bfloat16's rounding is 2^-8


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What a kernel should reach; 0 where nothing is asked."""

    of_copy: float = 0
    marlin: float = 0


GOALS = {
    ("nvfp4_gemv", 1): Goal(of_copy=0.85),
    ("nvfp4_gemv", 8): Goal(marlin=1),
    ("nvfp4_moe_decode", 1): Goal(of_copy=0.7, marlin=1.5),
    ("nvfp4_moe_decode", 8): Goal(marlin=1),
}
"""By kernel and number of tokens."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to measure."""

    device: str
    replays: int
    cache_bytes: int


@dataclass(kw_only=True)
class Row:
    """One kernel on one layer."""

    layer: str
    tokens: int
    kernel: str
    microseconds: float | None = None
    bytes_read: float
    of_copy: float | None = None
    gb10_microseconds: float
    error: float | None = None
    note: str = ""


def main() -> int:
    """Predict, measure, print a table, write the raw result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predict", action="store_true", help="print GB10's rooflines and end")
    parser.add_argument("--dry-run", action="store_true", help="tiny layers, few replays, any device")
    parser.add_argument("--output", type=Path, help="where the raw result goes")
    parser.add_argument("--replays", type=int, default=120, help="at least 100 for a result worth storing")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 2, 4, 8])
    options = parser.parse_args()
    layers = TINY if options.dry_run else LAYERS
    _predict(layers, options.tokens)
    if options.predict:
        return 0
    if not options.dry_run and not torch.cuda.is_available():
        parser.error("there is no GPU; --predict and --dry-run need none")
    settings = _settings(options.dry_run, options.replays)
    bandwidth, copied = _copy_bandwidth(settings)
    print(f"device copy: {bandwidth / 1e9:.3g} GB/s, read and written bytes of {copied} counted")
    if options.dry_run:
        print("a dry run: the times below mean nothing")
    rows: list[Row] = []
    record = {
        "case": "kernels-decode",
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", *sys.argv]),
        "dry_run": options.dry_run,
        "machine": _machine(settings),
        "copy_bytes_per_second": bandwidth,
        "replays": settings.replays,
    }
    for layer in layers:
        for tokens in options.tokens:
            for row in _measure(layer, tokens, settings, bandwidth):
                rows.append(row)
                print(_line(row), flush=True)
                if options.output:
                    raw = json.dumps(record | {"rows": [asdict(each) for each in rows]}, indent=2)
                    options.output.write_text(raw + "\n", encoding="utf-8")
    for line in _against_the_goals(rows):
        print(line)
    wrong = [row for row in rows if row.error is not None and not row.error <= ERROR_ALLOWED]
    for row in wrong:
        print(
            f"WRONG: {row.kernel} on {row.layer}, {row.tokens} tokens: relative error {row.error:.1e}", file=sys.stderr
        )
    return 1 if wrong else 0


def _predict(layers: Sequence[Dense | Experts], tokens: Sequence[int]) -> None:
    print(f"what {GB10_BANDWIDTH / 1e9:.0f} GB/s allow, in microseconds: every weight and scale of a layer read once")
    heads = "".join(f"{'M=' + str(each):>10}" for each in tokens)
    print(f"{'':<42} {'MB at M=1':>9} {heads}")
    for layer in layers:
        times = [layer.bytes_read(layer.distinct(each)) / GB10_BANDWIDTH * 1e6 for each in tokens]
        size = layer.bytes_read(layer.distinct(1)) / 1e6
        print(f"{layer.name:<42} {size:>9.3f} {''.join(f'{time:>10.3f}' for time in times)}")


def _against_the_goals(rows: Sequence[Row]) -> Iterator[str]:
    """By layer and tokens, our kernel against the copy and against Marlin, with the goals.

    Judged on tiled scales: the backends that vLLM takes on GB10 leave them so, and a model runs on these.
    """
    for layer, tokens in dict.fromkeys((row.layer, row.tokens) for row in rows):
        here = [row for row in rows if (row.layer, row.tokens) == (layer, tokens)]
        ours = next(row for row in here if row.kernel.endswith("tiled scales"))
        theirs = next(row for row in here if row.kernel == "Marlin")
        goal = GOALS.get((ours.kernel.partition(",")[0], tokens), Goal())
        times = theirs.microseconds / ours.microseconds if theirs.microseconds and ours.microseconds else None
        of_copy, of_marlin = _judged(ours.of_copy, goal.of_copy, ".0%"), _judged(times, goal.marlin, ".2f")
        said = f"{of_copy} of copy, {of_marlin} times as fast as Marlin"
        yield f"{layer:<42} M={tokens} {said}"


def _judged(measured: float | None, goal: float, form: str) -> str:
    number = "?" if measured is None else f"{measured:{form}}"
    if not goal:
        return number
    verdict = "not measured" if measured is None else "met" if measured >= goal else "missed"
    return f"{number} (goal {goal:{form}}: {verdict})"


def _settings(dry_run: bool, replays: int) -> Settings:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cache = torch.cuda.get_device_properties(0).L2_cache_size if device == "cuda" else 0
    return Settings(device=device, replays=1 if dry_run else replays, cache_bytes=0 if dry_run else cache)


def _machine(settings: Settings) -> dict[str, object]:
    facts: dict[str, object] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "vllm": _version("vllm"),
        "gb10_kernels": gb10_kernels.__version__,
        "device": settings.device,
    }
    if settings.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts |= {
            "gpu": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "last_level_cache_bytes": properties.L2_cache_size,
            "cuda": torch.version.cuda,
            "driver": DRIVER.read_text(encoding="utf-8").splitlines()[0] if DRIVER.exists() else None,
        }
    return facts


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _copy_bandwidth(settings: Settings) -> tuple[float, str]:
    size = max(4 * settings.cache_bytes, 2**30) if settings.cache_bytes else 2**16
    source = torch.empty(size, dtype=torch.uint8, device=settings.device)
    target = torch.empty_like(source)
    seconds = _time([lambda: target.copy_(source)], settings)
    return 2 * size / seconds, f"{size / 2**20:.2f} MiB"


def _time(calls: Sequence[Callable[[], object]], settings: Settings) -> float:
    """The median seconds of one call, when all calls run one after another."""
    for call in calls:
        call()
    if settings.device == "cpu":
        return float(statistics.median(_seconds(calls) for _ in range(settings.replays))) / len(calls)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for _ in range(settings.replays):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return float(statistics.median(times)) / len(calls)


def _seconds(calls: Sequence[Callable[[], object]]) -> float:
    start = time.perf_counter()
    for call in calls:
        call()
    return time.perf_counter() - start


def _measure(layer: Dense | Experts, tokens: int, settings: Settings, bandwidth: float) -> Iterator[Row]:
    attempts = _dense(layer, tokens, settings) if isinstance(layer, Dense) else _experts(layer, tokens, settings)
    for kernel, distinct, wanted, make in attempts:
        read = layer.bytes_read(distinct)
        on_gb10 = read / GB10_BANDWIDTH * 1e6
        row = Row(layer=layer.name, tokens=tokens, kernel=kernel, bytes_read=read, gb10_microseconds=on_gb10)
        try:
            calls = make()
            row.error = ((calls[0]().double() - wanted).abs().max() / wanted.abs().max()).item()
            seconds = _time(calls, settings)
        except Exception as error:  # noqa: BLE001 one kernel that fails, however it does, must not lose the others
            row.note = f"not measured: {type(error).__name__}: {error}".splitlines()[0]
        else:
            row.microseconds, row.of_copy = seconds * 1e6, read / seconds / bandwidth
            row.note = f"{len(calls)} copies"
        yield row


Calls = list[Callable[[], Any]]


def _copies(size: float, settings: Settings) -> int:
    return max(1, -(-3 * settings.cache_bytes // int(size)) + 1)


def _weights(settings: Settings, *shape: int) -> tuple[Any, Any]:
    *experts, rows, width = shape
    packed = torch.randint(0, 256, (*experts, rows, width // 2), dtype=torch.uint8, device=settings.device)
    scales = (torch.rand(*experts, rows, width // 16, device=settings.device) + 0.25).to(torch.float8_e4m3fn)
    return packed, scales


def _dense(layer: Dense, tokens: int, settings: Settings) -> Iterator[tuple[str, float, Any, Callable[[], Calls]]]:
    """By kernel: what is read, in layers; the right result of the first call; and the calls, on a copy each."""
    x = torch.randn(tokens, layer.width, device=settings.device, dtype=torch.bfloat16)
    scale = torch.tensor(0.01, device=settings.device)
    copies = [_weights(settings, layer.rows, layer.width) for _ in range(_copies(layer.bytes_read(1), settings))]
    # In slices of rows: the float64 weights of a whole layer would not fit beside it.
    slices = [slice(start, start + 2048) for start in range(0, layer.rows, 2048)]
    packed, scales = copies[0]
    wanted = torch.cat([reference.gemv(x, packed[s], scales[s], scale) for s in slices], dim=1)

    def ours(*, tiled: bool) -> Calls:
        from gb10_kernels import ops

        kept = [(w, reference.tile_scales(s) if tiled else s) for w, s in copies]
        return [partial(ops.gemv, x, w, s, scale, tiled_scales=tiled) for w, s in kept]

    def theirs() -> Calls:
        locks = marlin.workspace(x.device)
        return [partial(marlin.linear(w, s, scale, locks), x) for w, s in copies]

    yield "nvfp4_gemv, linear scales", 1, wanted, partial(ours, tiled=False)
    yield "nvfp4_gemv, tiled scales", 1, wanted, partial(ours, tiled=True)
    yield "Marlin", 1, wanted, theirs


def _experts(layer: Experts, tokens: int, settings: Settings) -> Iterator[tuple[str, float, Any, Callable[[], Calls]]]:
    """As _dense, with other experts for each call."""
    device = settings.device
    x = torch.randn(tokens, layer.hidden, device=device, dtype=torch.bfloat16)
    w13, s13 = _weights(settings, layer.experts, 2 * layer.inner, layer.hidden)
    w2, s2 = _weights(settings, layer.experts, layer.hidden, layer.inner)
    g13 = torch.full((layer.experts, 2), 0.01, device=device)
    g2 = torch.full((layer.experts,), 0.01, device=device)
    weights = torch.softmax(torch.randn(tokens, layer.choices, device=device), dim=-1)
    # Other experts each time, all different within a token: that is what keeps the caches cold.
    per_call = layer.bytes_read(tokens * layer.choices)
    routes = [
        torch.stack([torch.randperm(layer.experts, device=device)[: layer.choices] for _ in range(tokens)]).int()
        for _ in range(_copies(per_call, settings))
    ]
    distinct = round(statistics.mean(len(route.unique()) for route in routes))
    wanted = reference.moe_decode(x, w13, s13, g13, w2, s2, g2, weights, routes[0])

    def ours(*, tiled: bool) -> Calls:
        from gb10_kernels import ops

        first, second = (reference.tile_scales(s13), reference.tile_scales(s2)) if tiled else (s13, s2)
        workspace = ops.moe_workspace(tokens, layer.choices, layer.inner, x.device)
        call = partial(ops.moe_decode, x, w13, first, g13, w2, second, g2, weights)
        return [partial(call, route, tiled_scales=tiled, workspace=workspace) for route in routes]

    def theirs() -> Calls:
        locks = marlin.workspace(x.device)
        product = marlin.experts(w13, s13, g13[:, 0].contiguous(), w2, s2, g2, locks)
        return [partial(product, x, weights, route) for route in routes]

    yield "nvfp4_moe_decode, linear scales", distinct, wanted, partial(ours, tiled=False)
    yield "nvfp4_moe_decode, tiled scales", distinct, wanted, partial(ours, tiled=True)
    yield "Marlin", distinct, wanted, theirs


def _line(row: Row) -> str:
    measured = "-" if row.microseconds is None else f"{row.microseconds:.1f} us"
    share = "-" if row.of_copy is None else f"{row.of_copy:.0%} of copy"
    error = "-" if row.error is None else f"error {row.error:.1e}"
    roofline = f"GB10 at 273 GB/s: {row.gb10_microseconds:.3g} us"
    named = f"{row.layer:<42} M={row.tokens} {row.kernel:<32}"
    return f"{named} {measured:>12} {share:>14}  {error:<14} {roofline}  {row.note}"


if __name__ == "__main__":
    sys.exit(main())
