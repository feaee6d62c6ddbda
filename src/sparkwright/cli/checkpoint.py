"""`sparkwright checkpoint`: what one is, whether it is sound, and how to mend it."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from sparkwright.checkpoint.checkpoint import read_checkpoint
from sparkwright.checkpoint.findings import RULES, markdown
from sparkwright.checkpoint.inspection import format_name
from sparkwright.checkpoint.inspection import inspect as inspect_checkpoint
from sparkwright.checkpoint.repair import Actions, repair_in_place, repair_into
from sparkwright.checkpoint.verify import SAMPLE, Verification, verify_headers
from sparkwright.checkpoint.verify import verify as verify_checkpoint
from sparkwright.cli.roofline import DirectoryArgument, JsonOption, known, show_roofline, with_weights
from sparkwright.errors import UsageError
from sparkwright.report import note, print_json, print_table, progress

app = typer.Typer(
    help="What a checkpoint is, whether vLLM would serve it soundly, and safe repairs.", no_args_is_help=True
)

_SHOWN = 3  # tensors named in a table; --json lists all


@app.command()
def inspect(directory: DirectoryArgument, json: JsonOption = False) -> None:
    """Show format, layers, size, and the bounds of `sparkwright roofline`; reads headers only."""
    found = inspect_checkpoint(with_weights(directory))
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
            ("parameters", known(found["parameters"], lambda count: f"{count / 1e9:.3f} billion")),
            ("bits per weight", known(found["bits_per_weight"], lambda bits: f"{bits:.2f}")),
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
                known(kind["parameters"], lambda count: f"{count:,}"),
                f"{kind['bytes'] / 1e6:,.1f}",
                known(kind["bits_per_weight"], lambda bits: f"{bits:.2f}"),
            )
            for kind in found["kinds"]
        ],
    )
    show_roofline(found["roofline"])


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
