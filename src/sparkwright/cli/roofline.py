"""`sparkwright roofline`: how fast a checkpoint can be decoded at best, and what fits beside it."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from sparkwright.checkpoint.checkpoint import Checkpoint, read_checkpoint
from sparkwright.checkpoint.roofline import SPARKS
from sparkwright.checkpoint.roofline import roofline as bounds
from sparkwright.errors import InputUnreadableError
from sparkwright.report import note, print_json, print_table

DirectoryArgument = Annotated[
    Path, typer.Argument(metavar="DIR", help="Folder with config.json and .safetensors files.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts instead of tables.")]


def roofline(
    directory: DirectoryArgument,
    context: Annotated[
        list[int] | None, typer.Option("--context", min=0, help="Tokens of context; several are possible.")
    ] = None,
    streams: Annotated[int, typer.Option("--streams", min=1, help="Sequences decoded together.")] = 1,
    memory_share: Annotated[
        float, typer.Option("--memory-share", min=0, max=1, help="What vLLM takes of the memory (GPU_MEMORY_UTIL).")
    ] = 0.75,
    json: JsonOption = False,
) -> None:
    """Bound tok/s by what has to be read for a token, for one to four Sparks, and say which context fits."""
    found = bounds(with_weights(directory), contexts=context, memory_share=memory_share, streams=streams)
    if json:
        print_json(found)
    else:
        show_roofline(found)


def with_weights(directory: Path) -> Checkpoint:
    """What the folder holds; a figure of nothing would be a wrong one."""
    checkpoint = read_checkpoint(directory)
    if not checkpoint.tensors:
        raise InputUnreadableError(
            f"{directory} holds no tensor that can be read",
            remedy="name the folder of the .safetensors files; `checkpoint verify` says what is wrong with them",
        )
    if checkpoint.has_broken_shard:
        note(f"files of {directory} are missing or damaged (see `checkpoint verify`): what is left is counted")
    return checkpoint


def known(value: float | None, form: Callable[[float], str]) -> str:
    """A figure for a table, as `form` writes it."""
    return "unknown" if value is None else form(value)


def show_roofline(found: dict[str, Any]) -> None:
    """Print the bounds as tables."""
    read = found["bytes_per_token"]
    experts = found["experts"]
    beyond = read["kv_beyond_windows"]
    rows = [
        ("weights", f"{read['weights'] / 1e9:.3f} GB"),
        ("experts", f"{experts['chosen']} of {experts['number']}" if experts["number"] else "none"),
        ("recurrent state, read and written", known(read["state"], lambda size: f"{size / 1e6:.1f} MB")),
        ("KV cache for each token of context", _by_type(read["kv_per_context_token"])),
    ]
    if beyond != read["kv_per_context_token"]:
        rows.append(("for each token beyond the layers' windows", _by_type(beyond)))
    print_table("Read for one decoded token", ("what", "value"), rows)
    assumed = found["assumptions"]
    speeds: dict[tuple[int, str], list[str]] = {}
    for one in found["tokens_per_second"]:
        text = known(one["bound"], lambda bound: f"{bound:.1f}")
        speeds.setdefault((one["context"], one["kv_cache"]), []).append(text)
    sparks = tuple(f"{number} Spark{'s' if number > 1 else ''}" for number in SPARKS)
    print_table(
        f"Upper bound of tok/s at {assumed['bandwidth_bytes_per_second'] / 1e9:g} GB/s, {assumed['streams']} at once; "
        "several Sparks with ideal tensor parallelism",
        ("context", "KV cache", *sparks),
        [(f"{context:,}", name, *values) for (context, name), values in speeds.items()],
    )
    fits: dict[str, list[str]] = {}
    for one in found["fits"]:
        fits.setdefault(one["kv_cache"], []).append(_fitting(one))
    print_table(
        f"Tokens of context that fit when vLLM takes {assumed['memory_share']:.0%} of "
        f"{assumed['memory_bytes'] / 1e9:g} GB, of which {assumed['reserve_bytes'] / 1e9:g} GB hold neither weights "
        "nor cache",
        ("KV cache", *sparks),
        [(name, *values) for name, values in fits.items()],
    )
    for one in found["notes"]:
        print(one)


def _by_type(cache: dict[str, int | None]) -> str:
    bf16, fp8 = cache["bf16"], cache["fp8"]
    return "unknown" if bf16 is None or fp8 is None else f"{bf16 / 1e3:.1f} kB in BF16, {fp8 / 1e3:.1f} kB in FP8"


def _fitting(one: dict[str, Any]) -> str:
    if not one["weights_fit"]:
        return "weights do not fit"
    whole = one["context"] == one["most_context"]
    return known(one["context"], lambda length: f"{length:,}" + (" (all the model has)" if whole else ""))
