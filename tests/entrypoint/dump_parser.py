"""Write the options of the installed vLLM's own `serve` parser as JSON; for maintainers and the parser tests.

Run it with a Python that has vLLM, VLLM_TARGET_DEVICE=cpu on a machine without a GPU:

    VLLM_TARGET_DEVICE=cpu python tests/entrypoint/dump_parser.py --table options-VERSION.json

The table belongs into src/sparkwright/entrypoint/data/.

`--parse FILE` reads a JSON list of command lines and writes over it what that parser says against each.
"""

import argparse
import contextlib
import io
import json
from pathlib import Path

import vllm  # type: ignore[import-not-found]
from vllm.entrypoints.cli.serve import cmd_init  # type: ignore[import-not-found]
from vllm.utils.argparse_utils import FlexibleArgumentParser  # type: ignore[import-not-found]


def serve_parser() -> argparse.ArgumentParser:
    """The parser that `vllm serve` uses."""
    root = FlexibleArgumentParser(prog="vllm")
    parser: argparse.ArgumentParser = cmd_init()[0].subparser_init(root.add_subparsers(dest="subparser"))
    return parser


def takes(action: argparse.Action) -> str:
    """How many words follow the option: `none`, `one`, `maybe` (none or one) or `many`."""
    if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction):
        return "none"
    if action.nargs is None:
        return "one"
    return "maybe" if action.nargs == "?" else "many"


def describe(parser: argparse.ArgumentParser, action: argparse.Action) -> dict[str, object]:
    """One option: all spellings that are accepted, what follows it, and the values it is limited to."""
    # An action lists only what --help shows; the parser also takes --no-enable-x, for instance.
    names = [name for name, each in parser._option_string_actions.items() if each is action]
    record: dict[str, object] = {"names": names, "takes": takes(action)}
    if action.choices is not None:
        record["choices"] = [str(choice) for choice in action.choices]
    if type(action).__name__ in ("_AppendAction", "_ExtendAction"):
        record["repeats"] = True
    return record


def accepts(parser: argparse.ArgumentParser, words: list[str]) -> str:
    """What the parser says against a command line; nothing when it accepts it."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parser.parse_args(words)
    except SystemExit:
        return said.getvalue().strip().splitlines()[-1]
    return ""


def main() -> None:
    """Write the table, judge command lines, or both; results go to files, because vLLM logs to stdout."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--table", type=Path)
    arguments.add_argument("--parse", type=Path)
    options = arguments.parse_args()
    parser = serve_parser()
    if options.parse:
        lines = json.loads(options.parse.read_text(encoding="utf-8"))
        options.parse.write_text(json.dumps([accepts(parser, words) for words in lines]), encoding="utf-8")
    if options.table:
        described = [f"  {json.dumps(describe(parser, each))}" for each in parser._actions if each.option_strings]
        version, table = json.dumps(vllm.__version__.partition("+")[0]), ",\n".join(described)
        options.table.write_text(f'{{"vllm": {version}, "options": [\n{table}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
