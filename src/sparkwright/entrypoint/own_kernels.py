"""GB10_KERNELS: the switch of this project's own kernels, which their plugin reads in each of vLLM's processes."""

from collections.abc import Sequence
from typing import Final

from sparkwright.entrypoint.release import Release, parse_release
from sparkwright.entrypoint.variables import Values
from sparkwright.entrypoint.words import Setting, Source
from sparkwright.errors import ConfigurationError

_NAME: Final = "GB10_KERNELS"
_OLDEST: Final[Release] = (0, 32, 0)
"""The oldest vLLM whose registries the plugin uses."""
LEAVE_ROOM: Final = {
    "--linear-backend": ("linear layers", ("auto",)),
    "--moe-backend": ("experts", ("auto", "cutlass", "flashinfer_cutlass", "emulation")),
}
"""By option, which layers it is about, and the choices beside which the kernels are used.

Any named backend takes the plugin out of vLLM's choice for linear layers; experts are read where the backend keeps them
in a layout that the plugin knows.
"""


def switched(values: Values) -> dict[str, str]:
    """The switch as the plugin understands it, where the user's word for it is another.

    Raises:
        ConfigurationError: it is neither on nor off.
    """
    wanted = "1" if values.switch(_NAME) else "0"
    return {_NAME: wanted} if values.given(_NAME) and values.environment[_NAME] != wanted else {}


def require_of(version: str, values: Values) -> None:
    """Make sure that the plugin works with this vLLM, where it is switched on.

    Raises:
        ConfigurationError: it does not.
    """
    if values.switch(_NAME) and parse_release(version) < _OLDEST:
        raise ConfigurationError(
            f"{_NAME}={values.text(_NAME)} with vLLM {version}: the kernels' plugin needs 0.32 or later",
            remedy=f"leave {_NAME} unset; vLLM's own kernels are used then",
        )


def make_room(settings: Sequence[Setting], values: Values, required: str) -> tuple[list[Setting], list[str]]:
    """Where the kernels are switched on, the settings without the recipe's backends that shut them out; what to tell.

    A backend that the user named stays, and so does a recipe's where `required` says why its answers need it.
    """
    left = list(settings)
    notices: list[str] = []
    for option, (layers, choices) in LEAVE_ROOM.items() if values.switch(_NAME) else ():
        named = [each for each in left if each.key == option]
        winner = max(reversed(named), key=lambda each: each.source, default=None)
        if winner is None or winner.value in choices:
            continue
        said = f"{option} {winner.value} ({winner.origin})"
        if winner.source is not Source.RECIPE:
            notices.append(f"{said} keeps {_NAME} from {layers}; leave it out to use them")
        elif required:
            notices.append(f"{said} keeps {_NAME} from {layers}, and it has to: {required}")
        else:
            left = [each for each in left if each.key != option]
            notices.append(
                f"{said} is left out, so that {_NAME} can take {layers} beside what vLLM chooses; name a backend "
                "yourself to keep it"
            )
    return left, notices
