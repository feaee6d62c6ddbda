"""`sparkwright recipe`: the served models that come with this project, and whether a recipe file can be used."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from sparkwright.entrypoint import release, words
from sparkwright.entrypoint.plan import Host
from sparkwright.entrypoint.serve import plan
from sparkwright.entrypoint.variables import Values
from sparkwright.entrypoint.words import Source
from sparkwright.errors import ConfigurationError, SparkwrightError
from sparkwright.pins import default_line
from sparkwright.recipes import find, names
from sparkwright.recipes.foreign import ForeignRecipe, map_recipe
from sparkwright.recipes.load import line_for, load, read
from sparkwright.recipes.model import Recipe
from sparkwright.report import print_json, print_table

app = typer.Typer(help="Served models: options, environment and where their figures come from.", no_args_is_help=True)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts instead of a table.")]
LineOption = Annotated[str | None, typer.Option("--line", help="Release line; the newest when not given.")]


@app.command("list")
def list_recipes(json: JsonOption = False) -> None:
    """List the recipes that RECIPE=NAME accepts."""
    recipes = [load(name) for name in names()]
    if json:
        print_json([recipe.model_dump(mode="json") for recipe in recipes])
        return
    print_table(
        "Recipes",
        ("name", "model", "lines", "nodes", "weights GB", "what it is"),
        [
            (
                recipe.name,
                recipe.model,
                ", ".join(recipe.lines),
                recipe.nodes,
                f"{recipe.memory.weights_gb:g}",
                recipe.description,
            )
            for recipe in recipes
        ],
    )


def _planned(name: str, line: str) -> tuple[list[str], dict[str, str], list[str]]:
    """What `serve` would run with nothing set but this recipe."""
    environment = {"RECIPE": name, "SPARKWRIGHT_VLLM_VERSION": line, "MAX_JOBS": "1"}
    found = read(find(name))
    if isinstance(found, Recipe) and found.node_count > 1:
        environment |= {"NNODES": str(found.node_count), "HEAD_IP": "127.0.0.1", "VLLM_HOST_IP": "127.0.0.1"}
    much = 2**40  # whether it fits into this machine is not the question here
    planned = plan(Values(environment), (), Host(memory_total=much, memory_available=much), {})
    return list(planned.argv), dict(planned.env), list(planned.notices)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A recipe of ours, or a file.")],
    line: LineOption = None,
    json: JsonOption = False,
) -> None:
    """Show a recipe and the command that it becomes for a release line."""
    line = line or default_line()
    found = read(find(name))
    argv, env, notices = _planned(name, line)
    if json:
        content = found.model_dump(mode="json")
        print_json({"recipe": content, "line": line, "argv": argv, "env": env, "notices": notices})
        return
    if isinstance(found, Recipe):
        facts = [
            ("model", found.model),
            ("revision", found.revision or "the newest"),
            ("nodes", found.nodes),
            ("weights", f"{found.memory.weights_gb:g} GB ({found.memory.source})"),
            ("backend", f"MoE {found.backend.moe}, linear {found.backend.linear}: {found.backend.why}"),
            ("", f"according to {found.backend.source}"),
            *([("", f"required: {found.backend.required}")] if found.backend.required else []),
            *(("note", note) for note in found.notes),
            *(("claimed by others", f"{figure.claim} ({figure.source})") for figure in found.figures),
            *(("source", source) for source in found.sources),
        ]
        print_table(f"{found.name}: {found.description}", ("what", "value"), facts)
    for key, value in env.items():
        print(f"{key}={shlex.quote(value)} \\")
    print(shlex.join(argv))


def _problems(path: Path) -> tuple[str, list[tuple[str, str]]]:
    """A recipe's name and what speaks against it, each as (release line, sentence)."""
    found = read(path)
    wrong: list[tuple[str, str]] = []
    if isinstance(found, ForeignRecipe):
        mapped = map_recipe(found)
        wrong += [("all", one) for one in mapped.unmapped]
        lines = {default_line(): mapped.words}
        env = dict(mapped.env)
    else:
        lines = {line: found.words(line_for(found, line)) for line in found.lines}
        env = {}
    known = release.variables()
    for line, given in lines.items():
        try:
            positional, _ = words.read(given, release.options(line), Source.RECIPE)
        except SparkwrightError as error:
            wrong.append((line, error.what))
        else:
            wrong += [(line, f"{word!r} belongs to no option") for word in positional]
        for name in found.environment(line) if isinstance(found, Recipe) else env:
            if name.startswith("VLLM_") and not known.knows(name, release.parse_release(line)):
                wrong.append((line, f"vLLM {line} does not read {name}"))
    return found.name, wrong


@app.command()
def check(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Recipe files, ours or spark-vllm-docker's; all of ours by default.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Check recipes against the schema and the parsers of their vLLM releases; ends with 78 when one fails."""
    results = []
    for path in files or [find(name) for name in names()]:
        name, wrong = _problems(path)
        found = read(path)
        ignored = list(map_recipe(found).ignored) if isinstance(found, ForeignRecipe) else []
        results.append({"file": str(path), "name": name, "problems": wrong, "ignored": ignored})
    if json:
        print_json(results)
    else:
        rows = []
        for result in results:
            said = [f"{line}: {one}" for line, one in result["problems"]] + [
                f"left out: {one}" for one in result["ignored"]
            ]
            rows.append((result["name"], "; ".join(said) or "all of it maps"))
        print_table("Recipes", ("name", "result"), rows)
    failed = [str(result["name"]) for result in results if result["problems"]]
    if failed:
        raise ConfigurationError(
            f"cannot be used as they are: {', '.join(failed)}", remedy="the table above says what does not map"
        )
