"""Named profiling ranges around stages and layers, off by default.

``with span("video"):`` marks a block, ``@span("prefill")`` marks every call of a function. Until
:func:`enable` is called, a range does nothing and does not even build its name. Ranges run on the host only,
so a range may be open while a CUDA graph is captured. A replayed graph runs no Python, so a profiler sees the
ranges inside it only during capture. Code traced by ``torch.compile`` contains no ranges, so switching them
on or off triggers no recompilation.
"""

import functools
import importlib
from collections.abc import Callable
from typing import ParamSpec, Protocol, TypeVar

import torch

from .errors import StreamCharError

__all__ = ["RangeBackend", "RangesUnavailableError", "disable", "enable", "enabled", "span"]

P = ParamSpec("P")
R = TypeVar("R")


class RangesUnavailableError(StreamCharError, RuntimeError):
    """This machine has no NVTX; the message says what to install."""


class RangeBackend(Protocol):
    """Receives ranges. The ranges of a thread nest: each push is followed by its pop on the same thread."""

    def push(self, name: str) -> None:
        """Open a range."""

    def pop(self) -> None:
        """Close the most recent range of this thread."""


_backend: RangeBackend | None = None


def enable(backend: RangeBackend | None = None) -> None:
    """Record ranges from now on, in the whole process.

    Args:
        backend: receives the ranges. The default is NVTX: through PyTorch if it has a CUDA device, otherwise
            through the ``nvtx`` package.

    Raises:
        RangesUnavailableError: no backend was given, and PyTorch has no CUDA device and ``nvtx`` is not
            installed. The previous setting remains.
    """
    global _backend
    _backend = backend or _nvtx()


def disable() -> None:
    """Stop recording ranges. Open ranges are still closed."""
    global _backend
    _backend = None


def enabled() -> bool:
    """Return whether ranges are recorded."""
    return _backend is not None


def span(name: str, index: int | None = None) -> "_Span":
    """Return a range, as a context manager or a decorator.

    Args:
        name: name of the range.
        index: appended to the name. It is a separate argument so that no string is built while ranges are
            off.
    """
    return _Span(name, index)


class _Span:
    __slots__ = ("_backend", "_index", "_name")

    def __init__(self, name: str, index: int | None) -> None:
        self._name, self._index = name, index
        self._backend: RangeBackend | None = None

    def __enter__(self) -> None:
        # In this order: a traced function that reads _backend would be recompiled when it changes.
        if torch.compiler.is_compiling() or _backend is None:
            return
        # __exit__ must close this range even if ranges were disabled inside it.
        self._backend = _backend
        self._backend.push(self._name if self._index is None else f"{self._name} {self._index}")

    def __exit__(self, *_: object) -> None:
        if self._backend is not None:
            self._backend.pop()
            self._backend = None

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            with _Span(self._name, self._index):
                return function(*args, **kwargs)

        return wrapper


class _TorchNvtx:
    def push(self, name: str) -> None:
        torch.cuda.nvtx.range_push(name)

    def pop(self) -> None:
        torch.cuda.nvtx.range_pop()


class _PackageNvtx:
    def __init__(self) -> None:
        self._nvtx = importlib.import_module("nvtx")

    def push(self, name: str) -> None:
        self._nvtx.push_range(name)

    def pop(self) -> None:
        self._nvtx.pop_range()


def _nvtx() -> RangeBackend:
    if torch.cuda.is_available():
        return _TorchNvtx()
    try:
        return _PackageNvtx()
    except ImportError as error:
        raise RangesUnavailableError(
            "profiling ranges need a CUDA device visible to PyTorch or the nvtx package, got neither; "
            "pip install 'streamchar[profile]', or pass a backend to enable()"
        ) from error
