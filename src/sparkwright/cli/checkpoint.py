"""`sparkwright checkpoint` and `sparkwright roofline`: what one is, whether it is sound, what it can give."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from sparkwright.checkpoint.checkpoint import Checkpoint, read_checkpoint
from sparkwright.checkpoint.findings import RULES, markdown
from sparkwright.checkpoint.inspection import format_name
from sparkwright.checkpoint.inspection import inspect as inspect_checkpoint
from sparkwright.checkpoint.repair import Actions, repair_in_place, repair_into
from sparkwright.checkpoint.roofline import SPARKS
from sparkwright.checkpoint.roofline import roofline as bounds
from sparkwright.checkpoint.verify import SAMPLE, Verification, verify_headers
from sparkwright.checkpoint.verify import verify as verify_checkpoint
from sparkwright.errors import InputUnreadableError, UsageError
from sparkwright.report import note, print_json, print_table, progress

app = typer.Typer(
    help="What a checkpoint is, whether vLLM would serve it soundly, and safe repairs.", no_args_is_help=True
)

DirectoryArgument = Annotated[
    Path, typer.Argument(metavar="DIR", help="Folder with config.json and .safetensors files.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts instead of tables.")]

_SHOWN = 3  # tensors named in a table; --json lists all


@app.command()
def inspect(directory: DirectoryArgument, json: JsonOption = False) -> None:
    """Show format, layers, size, and the bounds of `sparkwright roofline`; reads headers only."""
    found = inspect_checkpoint(_with_weights(directory))
    if json:
        print_json(found)
        return
    print_table(
        str(directory),
        ("what", "value"),
        [
            ("architecture", escape(str(found["architecture"]))),
            ("format", found["format"]),
            ("decoder layers", found["layers"]),
            ("parameters", _known(found["parameters"], lambda count: f"{count / 1e9:.3f} billion")),
            ("bits per weight", _known(found["bits_per_weight"], lambda bits: f"{bits:.2f}")),
            (
                "on disk",
                f"{found['bytes_on_disk'] / 1e9:.2f} GB in {found['shards']} files, {found['tensors']} tensors",
            ),
        ],
    )
    print_table(
        "Layers",
        ("kind", "stored as", "modules", "parameters", "MB", "bits per weight"),
        [
            (
                kind["role"],
                kind["stored_as"],
                kind["modules"],
                _known(kind["parameters"], lambda count: f"{count:,}"),
                f"{kind['bytes'] / 1e6:,.1f}",
                _known(kind["bits_per_weight"], lambda bits: f"{bits:.2f}"),
            )
            for kind in found["kinds"]
        ],
    )
    _show_roofline(found["roofline"])


def _with_weights(directory: Path) -> Checkpoint:
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


@app.command()
def verify(
    directory: DirectoryArgument,
    against: Annotated[
        Path | None, typer.Option("--against", help="Folder of the unquantized model: compare every Linear with it.")
    ] = None,
    limit: Annotated[
        float | None,
        typer.Option("--bound", help="Largest relative L2 error of a quantized Linear, instead of the format's own."),
    ] = None,
    sample: Annotated[int, typer.Option("--sample", min=0, help="Weights looked at per tensor; 0 for all.")] = SAMPLE,
    headers_only: Annotated[bool, typer.Option("--headers-only", help="Leave out all that needs values.")] = False,
    json: JsonOption = False,
) -> None:
    """Find what would go wrong in vLLM. Ends with 0 when clean, 1 with warnings, 2 with errors."""
    if headers_only and against is not None:
        raise UsageError("--headers-only compares nothing", remedy="leave --against or --headers-only out")
    if headers_only:
        result = verify_headers(directory)
    else:
        with progress(unit="modules") as display:
            passes = 1 if against is None else 2
            task = display.add_task("verifying", total=passes * len(read_checkpoint(directory).modules))
            result = verify_checkpoint(
                directory, against=against, limit=limit, sample=sample, advance=lambda: display.advance(task)
            )
    if json:
        print_json(result.to_json())
    else:
        _show_verification(result)
    raise typer.Exit(result.exit_code)


def _show_verification(result: Verification) -> None:
    if result.differences:
        errors = [one.error for one in result.differences]
        print_table(
            "Relative L2 error to the base model",
            ("Linears", "lowest", "mean", "highest", "not compared"),
            [
                (
                    len(errors),
                    f"{min(errors):.4f}",
                    f"{sum(errors) / len(errors):.4f}",
                    f"{max(errors):.4f}",
                    len(result.not_compared),
                )
            ],
        )
    if result.findings:
        print_table(
            f"{result.checkpoint.root}: {format_name(result.checkpoint)}",
            ("severity", "code", "what", "where", "consequence in vLLM", "what to do"),
            [
                (
                    one.rule.severity,
                    one.rule.code,
                    escape(one.rule.title + (f" ({one.detail})" if one.detail else "")),
                    escape(_where(one.subjects)),
                    one.rule.consequence,
                    one.rule.remedy,
                )
                for one in result.findings
            ],
        )
    else:
        print(f"{result.checkpoint.root}: {format_name(result.checkpoint)}, nothing found")


def _where(subjects: tuple[str, ...]) -> str:
    rest = len(subjects) - _SHOWN
    return ", ".join(subjects[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


@app.command()
def repair(
    directory: DirectoryArgument,
    output: Annotated[Path | None, typer.Option("--output", help="New folder for the mended checkpoint.")] = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Mend the folder itself; no shard is rewritten.")
    ] = False,
    base: Annotated[Path | None, typer.Option("--base", help="Folder of the model that was quantized.")] = None,
    set_input_scale: Annotated[
        float | None,
        typer.Option("--set-input-scale", help="Give missing input scales this value, unmeasured: costs accuracy."),
    ] = None,
    restore_ignore: Annotated[
        bool, typer.Option("--restore-ignore", help="List exactly what is not quantized as ignored.")
    ] = False,
    restore_config: Annotated[
        bool,
        typer.Option("--restore-config", help="Take sizes, token ids and kinds of layers from the base's config.json."),
    ] = False,
    rebuild_index: Annotated[bool, typer.Option("--rebuild-index", help="Make the index from the files.")] = False,
    copy_tokenizer: Annotated[
        bool, typer.Option("--copy-tokenizer", help="Copy the base's tokenizer files that are missing.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Mend what is asked for by name. Doing it twice changes nothing."""
    if in_place == (output is not None):
        raise UsageError(
            "say where: --output DIR for a new folder, or --in-place", remedy="name exactly one of the two"
        )
    actions = Actions(
        set_input_scale=set_input_scale,
        restore_ignore=restore_ignore,
        restore_config=restore_config,
        rebuild_index=rebuild_index,
        copy_tokenizer=copy_tokenizer,
        base=base,
    )
    if output is None:
        done = repair_in_place(directory, actions)
    else:
        with progress(unit="files") as display:
            task = display.add_task("linking or copying", total=0)
            done = repair_into(
                directory,
                output,
                actions,
                advance=lambda completed, total: display.update(task, completed=completed, total=total),
            )
    for notice in done.notices:
        note(notice)
    if json:
        print_json({"directory": str(done.directory), "written": list(done.written), "notices": list(done.notices)})
    elif done.written:
        print_table(str(done.directory), ("written",), [(name,) for name in done.written])
    else:
        print(f"{done.directory}: nothing to do")


@app.command()
def codes(
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the table of docs/checkpoints.md.")] = False,
    json: JsonOption = False,
) -> None:
    """List everything that `verify` can find."""
    if json:
        print_json(
            [
                {
                    "code": rule.code,
                    "severity": rule.severity.value,
                    "title": rule.title,
                    "consequence": rule.consequence,
                    "remedy": rule.remedy,
                }
                for rule in RULES.values()
            ]
        )
    elif as_markdown:
        print(markdown())
    else:
        print_table(
            "What `sparkwright checkpoint verify` can find",
            ("code", "severity", "what", "consequence in vLLM", "what to do"),
            [(rule.code, rule.severity, rule.title, rule.consequence, rule.remedy) for rule in RULES.values()],
        )


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
    found = bounds(_with_weights(directory), contexts=context, memory_share=memory_share, streams=streams)
    if json:
        print_json(found)
    else:
        _show_roofline(found)


def _known(value: float | None, form: Callable[[float], str]) -> str:
    return "unknown" if value is None else form(value)


def _show_roofline(found: dict[str, Any]) -> None:
    read = found["bytes_per_token"]
    experts = found["experts"]
    beyond = read["kv_beyond_windows"]
    rows = [
        ("weights", f"{read['weights'] / 1e9:.3f} GB"),
        ("experts", f"{experts['chosen']} of {experts['number']}" if experts["number"] else "none"),
        ("recurrent state, read and written", _known(read["state"], lambda size: f"{size / 1e6:.1f} MB")),
        ("KV cache for each token of context", _by_type(read["kv_per_context_token"])),
    ]
    if beyond != read["kv_per_context_token"]:
        rows.append(("for each token beyond the layers' windows", _by_type(beyond)))
    print_table("Read for one decoded token", ("what", "value"), rows)
    assumed = found["assumptions"]
    speeds: dict[tuple[int, str], list[str]] = {}
    for one in found["tokens_per_second"]:
        text = _known(one["bound"], lambda bound: f"{bound:.1f}")
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
    return _known(one["context"], lambda length: f"{length:,}" + (" (all the model has)" if whole else ""))
