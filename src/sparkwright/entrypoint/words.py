"""The words of a `vllm serve` command line: split into options, merged by precedence, written again."""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from sparkwright.entrypoint.release import Option, Options
from sparkwright.errors import ConfigurationError


class Source(IntEnum):
    """Where a setting comes from; the higher one wins."""

    DEFAULT = 0
    RECIPE = 1
    VARIABLE = 2
    EXTRA = 3
    ARGUMENT = 4


_CALLED = {
    Source.DEFAULT: "the default",
    Source.RECIPE: "the recipe",
    Source.VARIABLE: "the variable",
    Source.EXTRA: "VLLM_EXTRA_ARGS",
    Source.ARGUMENT: "the arguments",
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One option with its words, as they are written, and where it came from."""

    key: str
    words: tuple[str, ...]
    source: Source
    variable: str = ""
    repeats: bool = False

    @property
    def value(self) -> str:
        """The first value, or nothing for a switch."""
        return self.words[1] if len(self.words) > 1 else ""

    @property
    def origin(self) -> str:
        """Where it came from, in words."""
        return self.variable or _CALLED[self.source]


def split(text: str) -> list[str]:
    """VLLM_EXTRA_ARGS as a shell would split it, without expanding anything."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigurationError(
            f"VLLM_EXTRA_ARGS cannot be split into words: {error}",
            cause="a quote or a backslash is not closed",
            remedy='write it as in a shell, JSON in single quotes: --speculative-config \'{"method": "mtp"}\'',
        ) from error


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _is_option(word: str) -> bool:
    return len(word) > 1 and word.startswith("-") and not _is_number(word)


def _spelled(name: str, table: Options) -> Option | None:
    """The option that a word names: as it is, with underscores, or abbreviated as argparse allows."""
    dashed = "--" + name[2:].replace("_", "-") if name.startswith("--") else name
    if found := table.by_name.get(name) or table.by_name.get(dashed):
        return found
    if dashed.startswith("--") and "." not in dashed:
        candidates = {id(option): option for spelling, option in table.by_name.items() if spelling.startswith(dashed)}
        if len(candidates) == 1:
            return next(iter(candidates.values()))
    return None


def _refuse_unknown(name: str, table: Options, source: Source) -> None:
    import difflib

    dashed = "--" + name[2:].replace("_", "-")
    near = difflib.get_close_matches(dashed, [each for each in table.by_name if each.startswith("--")], n=1)
    raise ConfigurationError(
        f"vLLM {table.release} has no option {name} (from {_CALLED[source]})",
        cause="it was renamed or removed, or belongs to another release",
        remedy=f"did you mean {near[0]}?" if near else f"see `vllm serve --help=all` of vLLM {table.release}",
    )


def _count(option: Option | None, following: Sequence[str]) -> int:
    """How many of the following words belong to the option."""
    values = 0
    for word in following:
        if _is_option(word):
            break
        values += 1
    if option is None or option.takes == "many":
        return values
    return min(values, {"none": 0, "one": 1, "maybe": 1}[option.takes])


def read(words: Sequence[str], table: Options, source: Source) -> tuple[list[str], list[Setting]]:
    """The positional words and the options of a command line.

    Raises:
        ConfigurationError: an option that this very release does not have, without its value, or outside its choices.
    """
    positional: list[str] = []
    settings: list[Setting] = []
    index = 0
    while index < len(words):
        word = words[index]
        index += 1
        if not _is_option(word):
            positional.append(word)
            continue
        name, equals, value = word.partition("=")
        option = _spelled(name, table)
        if option is None and _structured(name):
            option = Option(names=(name,), takes="one")
        if option is None and table.exact and name.startswith("--"):
            _refuse_unknown(name, table, source)
        if equals and _is_option(value):
            key = option.name if option else name
            settings.append(
                Setting(key=key, words=(word,), source=source)
            )  # apart, the value would look like an option
            continue
        if equals:
            values = [value]
        else:
            count = _count(option, words[index:])
            values = list(words[index : index + count])
            index += count
        settings.append(_setting(name, option, values, table, source))
    return positional, settings


def _structured(name: str) -> bool:
    """`--speculative-config.method`, `-cc.mode` and `-O3`: parts of one option, which vLLM itself takes apart."""
    return "." in name or (name.startswith("-O") and name[2:3].isdigit())


def _setting(name: str, option: Option | None, values: list[str], table: Options, source: Source) -> Setting:
    if option is None or _structured(name):
        if name.startswith("-O") and name[2:3].isdigit():
            return Setting(key="-O", words=(name,), source=source)
        return Setting(key=name, words=(name, *values), source=source)
    if option.takes == "one" and not values:
        raise ConfigurationError(f"{name} (from {_CALLED[source]}) needs a value", remedy=f"write {option.name} VALUE")
    written = option.name
    if option.takes == "none":
        # The two spellings of a switch are one option: --enable-prefix-caching, --no-enable-prefix-caching.
        written = name if name in option.names else "--" + name[2:].replace("_", "-")
    for value in values:
        _check_json(option.name, value, source)
    if option.choices and option.takes == "one" and table.exact and values[0] not in option.choices:
        raise ConfigurationError(
            f"{option.name} {values[0]} (from {_CALLED[source]}) is not a choice of vLLM {table.release}",
            remedy=f"one of: {', '.join(option.choices)}",
        )
    return Setting(key=option.name, words=(written, *values), source=source, repeats=option.repeats)


def _check_json(name: str, value: str, source: Source) -> None:
    """Refuse JSON whose quotes a shell has eaten; braces that begin a chat template are left alone."""
    if not value.startswith("{") or value[1:2] in ("%", "{", "#"):
        return
    import json

    try:
        json.loads(value)
    except ValueError as error:
        raise ConfigurationError(
            f"{name} {value} (from {_CALLED[source]}) is not JSON: {error}",
            cause="the shell took its double quotes away",
            remedy=f'put the JSON in single quotes: {name} \'{{"key": "value"}}\'',
        ) from error


def merge(settings: Iterable[Setting]) -> tuple[list[Setting], list[str]]:
    """One setting per option, by precedence and then by order; and a notice for each that lost to another value."""
    chosen: dict[str, Setting] = {}
    repeated: list[Setting] = []
    notices: list[str] = []
    for setting in settings:
        if setting.repeats:
            repeated.append(setting)
            continue
        other = chosen.get(setting.key)
        if other is None:
            chosen[setting.key] = setting
            continue
        winner, loser = (setting, other) if setting.source >= other.source else (other, setting)
        chosen[setting.key] = winner
        if loser.source is not Source.DEFAULT and loser.words != winner.words:
            notices.append(
                f"{shlex.join(winner.words)} ({winner.origin}) wins over {shlex.join(loser.words)} ({loser.origin})"
            )
    return [*chosen.values(), *repeated], notices
