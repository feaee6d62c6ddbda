"""Read recipe files of spark-vllm-docker, version 1: a YAML file with a `vllm serve` command as a template."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, StringConstraints

from sparkwright.recipes.model import Text

_PLACE: Final = re.compile(r"\{\{|\}\}|\{([A-Za-z_][A-Za-z0-9_]*)\}")
_SHELL: Final = re.compile(r"[;|&<>`]|\$[({A-Za-z_]")
_IGNORED: Final = {
    "container": "this image is the container",
    "build_args": "nothing is built for a recipe",
}


class ForeignRecipe(BaseModel):
    """The fields of version 1."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Text
    recipe_version: Annotated[str, StringConstraints(pattern=r"^1$")] = "1"
    command: Text
    container: str | None = None
    description: str = ""
    model: str | None = None
    mods: list[str] = []
    defaults: dict[str, str | int | float | bool] = {}
    env: dict[str, str | int | float | bool] = {}
    build_args: list[str] = []
    solo_only: bool = False
    cluster_only: bool = False


@dataclass(frozen=True, kw_only=True)
class Mapped:
    """What a foreign recipe is here: its command, what was left out on purpose, and what cannot be carried over."""

    model: str = ""
    words: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    unmapped: tuple[str, ...] = ()


def fill(template: str, values: Mapping[str, object]) -> tuple[str, list[str]]:
    """The template with `{name}` filled and doubled braces made single, and the names that have no value."""
    missing: list[str] = []

    def one(match: re.Match[str]) -> str:
        if match[0] in ("{{", "}}"):
            return match[0][0]
        if match[1] not in values:
            missing.append(match[1])
            return match[0]
        return str(values[match[1]])

    return _PLACE.sub(one, template), missing


def _outside_quotes(command: str) -> str:
    return re.sub(r"'[^']*'|\"[^\"]*\"", "''", command)


def map_recipe(recipe: ForeignRecipe) -> Mapped:
    """Map it as far as it goes; `unmapped` says what stands in the way of using it."""
    ignored = [f"{key}: {why}" for key, why in _IGNORED.items() if getattr(recipe, key)]
    unmapped = [
        f"mods: {mod} changes files in the container when it starts; patches do that here" for mod in recipe.mods
    ]
    if recipe.cluster_only:
        unmapped.append("cluster_only: how many nodes is not said; use NNODES with a recipe of this project's own")
    command, missing = fill(recipe.command, recipe.defaults)
    unmapped += [f"command: {{{name}}} has no value under defaults" for name in missing]
    command = command.replace("\\\n", " ")
    if _SHELL.search(_outside_quotes(command)):
        unmapped.append("command: it is a shell program, not one command; no shell runs here")
        return Mapped(ignored=tuple(ignored), unmapped=tuple(unmapped))
    try:
        words = shlex.split(command, comments=True)
    except ValueError as error:
        return Mapped(ignored=tuple(ignored), unmapped=(*unmapped, f"command: {error}"))
    env = {name: str(value) for name, value in recipe.env.items()}
    while words and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*=.*", words[0], re.DOTALL):
        name, _, value = words.pop(0).partition("=")
        env[name] = value
    if words[:2] != ["vllm", "serve"] or len(words) < 3:
        unmapped.append("command: it does not begin with `vllm serve MODEL`")
        return Mapped(env=env, ignored=tuple(ignored), unmapped=tuple(unmapped))
    return Mapped(model=words[2], words=tuple(words[3:]), env=env, ignored=tuple(ignored), unmapped=tuple(unmapped))
