"""The error of a size that does not fit, and the checks that raise it."""


class ConfigError(ValueError):
    """A size that the system cannot have.

    Attributes:
        argument: name of the offending field.
        limit: what is accepted.
        value: what was given.
    """

    def __init__(self, argument: str, limit: str, value: object, remedy: str = "") -> None:
        self.argument, self.limit, self.value, self.remedy = argument, limit, value, remedy
        super().__init__(f"{argument} must be {limit}, got {value}" + (f"; {remedy}" if remedy else ""))


def require(ok: bool, argument: str, limit: str, value: object, remedy: str = "") -> None:
    """Raise :class:`ConfigError` unless ``ok``."""
    if not ok:
        raise ConfigError(argument, limit, value, remedy)


def require_positive(config: object, *names: str) -> None:
    """Require the named fields of ``config`` to be positive integers."""
    for name in names:
        value = getattr(config, name)
        require(isinstance(value, int) and value > 0, name, "a positive integer", repr(value))
