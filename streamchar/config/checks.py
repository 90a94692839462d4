"""The error for an invalid size, and the checks that raise it."""

from ..errors import ArgumentError


class ConfigError(ArgumentError):
    """A config field has an invalid value."""


#: Raises :class:`ConfigError` unless its first argument is true.
require = ConfigError.require


def require_positive(config: object, *names: str) -> None:
    """Require the named fields of ``config`` to be positive integers.

    Raises:
        ConfigError: one of them is not.
    """
    for name in names:
        value = getattr(config, name)
        require(isinstance(value, int) and value > 0, name, "a positive integer", repr(value))
