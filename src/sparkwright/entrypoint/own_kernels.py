"""GB10_KERNELS: the switch of this project's own kernels, which their plugin reads in each of vLLM's processes."""

from typing import Final

from sparkwright.entrypoint.release import Release, parse_release
from sparkwright.entrypoint.variables import Values
from sparkwright.errors import ConfigurationError

_NAME: Final = "GB10_KERNELS"
_OLDEST: Final[Release] = (0, 32, 0)
"""The oldest vLLM whose registries the plugin uses."""


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
