"""Old settings for the vLLM that is installed: variables that became options, and variables that it does not read.

The rows hold for the releases named; the tests compare them with the releases' own sources.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from sparkwright.entrypoint.release import Knowledge, Release, parse_release
from sparkwright.entrypoint.variables import BY_NAME
from sparkwright.entrypoint.words import Setting, Source

_ON: Final = ("1", "true", "yes", "on")


@dataclass(frozen=True, kw_only=True)
class Translation:
    """What a variable's value becomes from release `since` on, where vLLM has the options for it."""

    variable: str
    when: Callable[[str], bool]
    options: Callable[[str], dict[str, str]]
    since: Callable[[str], str]


def _same(release: str) -> Callable[[str], str]:
    return lambda _: release


def _gemm_since(value: str) -> str:
    return "0.24.0" if value in ("flashinfer-b12x", "flashinfer-cutedsl") else "0.22.0"


# In the order in which vLLM 0.16 to 0.23 looked at them: the first that names an option decides.
TRANSLATIONS: Final[tuple[Translation, ...]] = (
    Translation(
        variable="VLLM_NVFP4_GEMM_BACKEND",
        when=bool,
        options=lambda value: {"--linear-backend": value.replace("-", "_")},
        since=_gemm_since,
    ),
    Translation(
        variable="VLLM_USE_FLASHINFER_MOE_FP4",
        when=lambda value: value in _ON,
        options=lambda _: {"--moe-backend": "flashinfer_cutlass"},
        since=_same("0.17.0"),
    ),
    Translation(
        variable="VLLM_TEST_FORCE_FP8_MARLIN",
        when=lambda value: value in _ON,
        options=lambda _: {"--moe-backend": "marlin", "--linear-backend": "marlin"},
        since=_same("0.22.0"),
    ),
    Translation(
        variable="VLLM_MXFP4_USE_MARLIN",
        when=lambda value: value in _ON,
        options=lambda _: {"--moe-backend": "marlin", "--linear-backend": "marlin"},
        since=_same("0.22.0"),
    ),
    # "Not FlashInfer" leaves CUTLASS and Marlin. Marlin it is: layers that are not quantized, such as an MTP head,
    # keep their own kernel beside it, while --moe-backend cutlass refuses them after the whole model is loaded.
    Translation(
        variable="VLLM_USE_FLASHINFER_MOE_FP4",
        when=lambda value: value not in _ON,
        options=lambda _: {"--moe-backend": "marlin"},
        since=_same("0.17.0"),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Translated:
    """Settings that replace variables, the variables that go, and what to tell."""

    settings: tuple[Setting, ...]
    unset: tuple[str, ...]
    notices: tuple[str, ...]


def translate(environment: Mapping[str, str], version: str, known: Knowledge) -> Translated:
    """Turn old backend variables into options where vLLM has them, and warn of VLLM_* variables it does not read."""
    release = parse_release(version)
    settings: dict[str, Setting] = {}
    unset: list[str] = []
    notices: list[str] = []
    for row in TRANSLATIONS:
        value = environment.get(row.variable, "").strip().lower()
        if not value or not row.when(value) or release < parse_release(row.since(value)):
            continue
        options = row.options(value)
        for option, chosen in options.items():
            settings.setdefault(
                option,
                Setting(key=option, words=(option, chosen), source=Source.VARIABLE, variable=row.variable),
            )
        unset.append(row.variable)
        words = " ".join(f"{option} {chosen}" for option, chosen in options.items())
        gone = known.removed_in(row.variable, release)
        why = f"which vLLM removed in {gone}" if gone else "which is deprecated"
        notices.append(f"{row.variable}={environment[row.variable]}, {why}, is passed on as {words}")
    notices += _unknown(environment, release, known, frozenset(unset))
    return Translated(settings=tuple(settings.values()), unset=tuple(dict.fromkeys(unset)), notices=tuple(notices))


def _unknown(environment: Mapping[str, str], release: Release, known: Knowledge, done: frozenset[str]) -> list[str]:
    notices = []
    for name in sorted(environment):
        ours = name in BY_NAME or name.removesuffix("_FILE") in BY_NAME
        if not name.startswith("VLLM_") or ours or name in done or known.knows(name, release):
            continue
        text = f"{name} has no effect: vLLM {'.'.join(map(str, release))} does not read it"
        if gone := known.removed_in(name, release):
            text += f" (removed in {gone})"
        else:
            import difflib

            if near := difflib.get_close_matches(name, known.names(release), n=1):
                text += f"; did you mean {near[0]}?"
        notices.append(text)
    return notices
