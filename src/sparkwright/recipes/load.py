"""Find a recipe by name or path, check it, and resolve it for a release line."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from sparkwright.errors import ConfigurationError, InputUnreadableError
from sparkwright.paths import RECIPES
from sparkwright.recipes.foreign import ForeignRecipe, Mapped, map_recipe
from sparkwright.recipes.model import Recipe


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """What a recipe gives to `serve` for one vLLM."""

    name: str
    model: str
    words: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    nodes: int = 1
    notices: tuple[str, ...] = ()
    backend_required: str = ""


def names() -> tuple[str, ...]:
    """The recipes that come with this project."""
    return tuple(sorted(path.stem for path in RECIPES.glob("*.yaml")))


def find(name: str) -> Path:
    """The file of a recipe: a path when it looks like one, else a name of ours.

    Raises:
        ConfigurationError: there is no such recipe.
    """
    if "/" in name or name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise ConfigurationError(
                f"RECIPE={name} does not exist in this container", remedy=f"mount it: -v FILE:{name}:ro"
            )
        return path
    path = RECIPES / f"{name}.yaml"
    if name not in names():
        import difflib

        near = difflib.get_close_matches(name, names(), n=1)
        raise ConfigurationError(
            f"there is no recipe {name!r}",
            remedy=(f"did you mean {near[0]}? " if near else "") + "`sparkwright recipe list` names them all",
        )
    return path


def read(path: Path) -> Recipe | ForeignRecipe:
    """The checked content of a recipe file.

    Raises:
        InputUnreadableError: the file cannot be read.
        ConfigurationError: it is no YAML mapping, or not of the schema.
    """
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputUnreadableError(f"{path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path} is not a recipe: it holds no mapping")
    try:
        if "command" in content or "recipe_version" in content:
            version = content.get("recipe_version", "1")
            return ForeignRecipe.model_validate({**content, "recipe_version": str(version)})
        return Recipe.model_validate(content)
    except ValidationError as error:
        wrong = "\n".join(f"{'.'.join(map(str, one['loc'])) or 'recipe'}: {one['msg']}" for one in error.errors())
        raise ConfigurationError(
            f"{path} is not a valid recipe\n{wrong}", remedy="recipes/README.md explains every key"
        ) from error


def load(name: str) -> Recipe:
    """A recipe of this project's own schema, by name or path."""
    found = read(find(name))
    if isinstance(found, ForeignRecipe):
        raise ConfigurationError(f"{name} is a spark-vllm-docker recipe; `sparkwright recipe check` says what maps")
    return found


def line_for(recipe: Recipe, version: str) -> str:
    """The recipe's line that fits a vLLM version: that very release.

    Raises:
        ConfigurationError: the recipe was not written for this release.
    """
    for line in recipe.lines:
        if version == line or version.startswith((f"{line}+", f"{line}.", f"{line}-")):
            return line
    raise ConfigurationError(
        f"the recipe {recipe.name} is for vLLM {', '.join(recipe.lines)}, and this is {version}",
        remedy="use the image of that line, or MODEL and VLLM_EXTRA_ARGS without a recipe",
    )


def resolve(name: str, version: str) -> Resolved:
    """What a recipe, by name or path, gives to the installed vLLM.

    Raises:
        ConfigurationError: no such recipe, a wrong one, one for another release, or a foreign one that does not map.
    """
    found = read(find(name))
    if isinstance(found, Recipe):
        line = line_for(found, version)
        return Resolved(
            name=found.name,
            model=found.model,
            words=found.words(line),
            env=found.environment(line),
            nodes=found.node_count,
            backend_required=found.backend.required or "",
        )
    mapped: Mapped = map_recipe(found)
    if mapped.unmapped:
        reasons = "\n".join(mapped.unmapped)
        raise ConfigurationError(
            f"the recipe {found.name} cannot be used here as it is:\n{reasons}",
            remedy="write what is left of it as MODEL and VLLM_EXTRA_ARGS; `sparkwright recipe show` prints them",
        )
    notices = tuple(f"the recipe {found.name}: {one}" for one in mapped.ignored)
    return Resolved(name=found.name, model=mapped.model, words=mapped.words, env=mapped.env, notices=notices)
