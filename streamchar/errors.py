"""The root of every error that this package raises on purpose."""


class StreamCharError(Exception):
    """Base class of all public errors; each also derives from the fitting built-in exception."""


class ArgumentError(StreamCharError, ValueError):
    """An argument outside its limit.

    Attributes:
        argument: name of the argument.
        limit: what is accepted.
        value: what was given.
        remedy: what to do about it, or "".
    """

    def __init__(self, argument: str, limit: str, value: object, remedy: str = "") -> None:
        self.argument, self.limit, self.value, self.remedy = argument, limit, value, remedy
        super().__init__(f"{argument} must be {limit}, got {value}" + (f"; {remedy}" if remedy else ""))

    @classmethod
    def require(cls, ok: bool, argument: str, limit: str, value: object, remedy: str = "") -> None:
        """Raise this error unless ``ok``."""
        if not ok:
            raise cls(argument, limit, value, remedy)


class SessionClosedError(StreamCharError, RuntimeError):
    """The session was closed or lost a chunk; open a new one."""


class ArgumentTypeError(StreamCharError, TypeError):
    """An argument of a type that is not accepted."""
