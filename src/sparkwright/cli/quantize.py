"""`sparkwright quantize`: a BF16 folder in, a verified NVFP4 folder out."""

import importlib.util
import signal
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.markup import escape

from sparkwright.errors import SparkwrightError, UnavailableError, UsageError
from sparkwright.quantize.calibration import local_data
from sparkwright.quantize.display import clock
from sparkwright.quantize.options import Attention, Calibration, KvCache, Nodes, Options, Recipe
from sparkwright.quantize.plan import Plan, deal_layers, make_plan
from sparkwright.quantize.rate import Rate, read_rate
from sparkwright.quantize.source import read_source
from sparkwright.quantize.state import begun
from sparkwright.report import gigabytes, note, print_json, print_table

_NEEDED = ("torch", "transformers", "accelerate", "modelopt")
_DATA, _RECIPE, _MACHINE, _NODES = "Calibration data", "Precision", "This machine", "Several machines"


def quantize(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of the unquantized model.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="New folder for the quantized model.")],
    data: Annotated[
        str | None,
        typer.Option(
            help="Calibration data: a .jsonl, .parquet or text file, a folder of these, or a hub data set.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Calibration samples.", rich_help_panel=_DATA)] = 128,
    length: Annotated[int, typer.Option(min=1, help="Tokens of a sample.", rich_help_panel=_DATA)] = 2048,
    seed: Annotated[int, typer.Option(help="Decides the order of the texts.", rich_help_panel=_DATA)] = 0,
    field: Annotated[
        str | None, typer.Option(help="The field of a row that holds the text.", rich_help_panel=_DATA)
    ] = None,
    split: Annotated[str, typer.Option(help="The split of a hub data set.", rich_help_panel=_DATA)] = "train",
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            help="Modules to leave as they are, by a pattern like '*.self_attn'; repeatable.", rich_help_panel=_RECIPE
        ),
    ] = None,
    experts_only: Annotated[
        bool,
        typer.Option(
            "--experts-only",
            help="Quantize the experts of a mixture of experts; the rest stays as it is.",
            rich_help_panel=_RECIPE,
        ),
    ] = False,
    attention: Annotated[
        Attention | None,
        typer.Option(
            help="What attention's projections become; by default, nvfp4, with --experts-only bf16.",
            rich_help_panel=_RECIPE,
        ),
    ] = None,
    kv_cache: Annotated[KvCache, typer.Option(help="Scales for the KV cache.", rich_help_panel=_RECIPE)] = KvCache.NONE,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel=_MACHINE)] = "auto",
    threads: Annotated[
        int,
        typer.Option(min=1, help="CPU threads of torch; the count may change the last bits.", rich_help_panel=_MACHINE),
    ] = 1,
    scratch: Annotated[
        Path | None, typer.Option(help="Folder for hidden states, instead of OUTPUT.", rich_help_panel=_MACHINE)
    ] = None,
    save_every: Annotated[
        int | None,
        typer.Option(
            min=1, help="Layers between two sure places to resume from; chosen by size.", rich_help_panel=_MACHINE
        ),
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(min=0, help="GB of memory that may be used, instead of what is free.", rich_help_panel=_MACHINE),
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Say what is needed and end.")] = False,
    time_from: Annotated[
        Path | None, typer.Option(help="Report of an earlier run on this machine, to estimate the time by.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            help="Work on the nodes of a Ray cluster: auto, HOST:PORT, or local for one made here.",
            rich_help_panel=_NODES,
        ),
    ] = None,
    actors: Annotated[
        int | None, typer.Option(min=1, help="Ray actors; by default one for each node.", rich_help_panel=_NODES)
    ] = None,
    shard_layers: Annotated[
        str | None,
        typer.Option(
            help="Layers of each actor, this machine first, as 40,48; as even as possible by default.",
            rich_help_panel=_NODES,
        ),
    ] = None,
    shared_folder: Annotated[
        bool,
        typer.Option(
            "--shared-folder", help="OUTPUT is the same folder on all nodes: nothing is sent.", rich_help_panel=_NODES
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts instead of tables.")] = False,
) -> None:
    """Quantize a model to NVFP4 with modelopt, one layer in memory at a time.

    First ask what it needs, then do it; --resume goes on after any interruption (docs/quantize.md):

    `sparkwright quantize Qwen3-8B Qwen3-8B-NVFP4 --plan`

    `sparkwright quantize Qwen3-8B Qwen3-8B-NVFP4 --data texts.jsonl`
    """
    nodes = None
    if ray is not None:
        nodes = Nodes(
            address=ray,
            shard_layers=_numbers(shard_layers),
            actors=actors,
            shared_folder=shared_folder,
        )
    elif actors is not None or shard_layers is not None or shared_folder:
        raise UsageError("--actors, --shard-layers and --shared-folder are for Ray", remedy="add --ray auto")
    if time_from is not None and not plan:
        raise UsageError("--time-from is for an estimate", remedy="add --plan")
    options = Options(
        source=model,
        output=output,
        calibration=Calibration(data=data or "", samples=samples, length=length, seed=seed, field=field, split=split),
        recipe=Recipe(
            exclude=tuple(exclude or ()),
            experts_only=experts_only,
            attention=attention,
            kv_cache=kv_cache,
        ),
        device=device,
        scratch=scratch,
        save_every=save_every,
        threads=threads,
        resume=resume,
        nodes=nodes,
        memory_limit=None if memory is None else int(memory * 1e9),
    )
    _check_names(options)
    source = read_source(model)
    if nodes is not None and (wanted := len(nodes.shard_layers) or nodes.actors):
        deal_layers(source.layers, wanted, nodes.shard_layers)
    estimate = make_plan(source, options)
    if plan:
        spent = None if time_from is None else read_rate(time_from)
        if json:
            seconds = None if spent is None else estimate.flop / spent.flop_per_second
            print_json({**estimate.to_json(), "seconds": seconds})
        else:
            _show_plan(estimate, spent)
        estimate.check()
        return
    if data is None:
        raise UsageError("there is no calibration data", remedy="name it: --data texts.jsonl")
    _require_environment()
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    if not resume:
        estimate.check()
    # tests/quantize compares this release of transformers with modelopt's own flow, bit for bit.
    warnings.filterwarnings("ignore", "transformers .* is not tested with current version of modelopt")
    from sparkwright.quantize.run import quantize as run
    from sparkwright.quantize.run import report_path

    try:
        report = run(source, options, estimate)
    except SparkwrightError as error:
        if begun(output) and not isinstance(error, UsageError) and "--resume" not in error.remedy:
            error.remedy = f"{error.remedy}; --resume goes on where it was".removeprefix("; ")
        raise
    if json:
        print_json(report)
    else:
        _show_report(report, report_path(output))


def _check_names(options: Options) -> None:
    output = options.output
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output} is a file", remedy="name a new folder for the result")
    if output.resolve() == options.source.resolve():
        raise UsageError(f"the result cannot go to {output}: the model is there", remedy="name a new folder for it")
    if options.calibration.data:
        local_data(options.calibration)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    # Also for Docker: a process that is the first of its container ignores the signal unless it has a handler.
    note("sparkwright: told to end; the same command with --resume goes on")
    raise SystemExit(128 + number)


def _numbers(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    words = text.split(",")
    if not all(word.strip().isdecimal() and int(word) > 0 for word in words):
        raise UsageError(f"--shard-layers {text} is not a list of counts", remedy="write it as 40,48")
    return tuple(int(word) for word in words)


def _require_environment() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        from sparkwright.image.inventory import lock_name
        from sparkwright.pins import default_line

        raise UnavailableError(
            f"this Python does not have {', '.join(missing)}",
            cause="the image has them; an environment made for other commands does not",
            remedy="run it in the image, or: python3 -m venv .quantize; .quantize/bin/pip install --no-deps "
            f"--require-hashes -r requirements/{lock_name(default_line())}; "
            ".quantize/bin/pip install --no-deps --editable . ; .quantize/bin/sparkwright quantize ...",
        )


def _show_plan(plan: Plan, spent: Rate | None) -> None:
    where = "on the same disk" if plan.one_disk else gigabytes(plan.scratch_free)
    print_table(
        "What the run needs",
        ("what", "needed", "there is"),
        [
            ("memory of a node", gigabytes(plan.memory), gigabytes(plan.memory_available)),
            ("the result", gigabytes(plan.output), gigabytes(plan.output_free)),
            ("scratch files here", gigabytes(plan.kept), where),
            *([("scratch files of each node", gigabytes(plan.scratch), "asked at the start")] if plan.on_nodes else []),
        ],
    )
    between = "sent to the next node" if plan.on_nodes else "written and read again"
    print(
        f"{plan.layers} layers, the largest of {gigabytes(plan.largest_layer)}; "
        f"{plan.parameters / 1e9:.2f} billion parameters; "
        f"a resumed run does at most {plan.save_every} layers again.\n"
        f"The work: {plan.flop / 1e12:,.1f} TFLOP with the layers' weights; {gigabytes(plan.read)} of layers to read; "
        f"after each layer {gigabytes(plan.hidden_states)} of hidden states {between}, "
        f"{gigabytes(plan.moved)} in all."
    )
    if spent is None:
        print("How long that takes here is not known: --time-from REPORT tells it by an earlier run on this machine.")
    else:
        print(f"By {spent.told}: about {clock(plan.flop / spent.flop_per_second)} for the layers.")


def _left_out(names: Sequence[str]) -> str:
    return f"{len(names)} tensors that transformers does not load, from {escape(names[0])} on"


def _show_report(report: dict[str, Any], path: Path) -> None:
    errors = [one["mean"] for one in report["error_by_layer"].values()]
    # A run that an earlier state finished has not counted them, and left them out.
    calibration, predicting = report["calibration"], len(report.get("multi_token_prediction", []))
    print_table(
        escape(report["output"]),
        ("what", "value"),
        [
            (
                "quantized",
                f"{report['quantized_linears']} Linears in {report['layers']} layers, {gigabytes(report['bytes'])}",
            ),
            ("calibrated with", f"{calibration['samples']} samples, {calibration['tokens']:,} tokens"),
            (
                "relative L2 error of the weights",
                f"{sum(errors) / len(errors):.4f} on average, {max(errors):.4f} in the worst layer"
                if errors
                else "none",
            ),
            ("findings of `checkpoint verify`", len(report["findings"])),
            *([("multi-token prediction", f"{predicting} tensors, copied as they are")] if predicting else []),
            *([("left out", _left_out(report["left_out"]))] if report["left_out"] else []),
            ("peak memory", gigabytes(report["peak_rss_bytes"])),
            *([("on the GPU", gigabytes(report["peak_cuda_bytes"]))] if "peak_cuda_bytes" in report else []),
            ("time", f"{report['seconds']['all']:.0f} s"),
            ("report", escape(str(path))),
        ],
    )
