"""Named ranges around stages and layers, for profilers, behind one switch.

``with span("video"):`` marks a block, ``@span("prefill")`` every call of a function. Until :func:`enable` is
called a range does nothing, not even build its name. Ranges touch the host alone, so one may be open while a
CUDA graph is captured; but a replayed graph runs no Python, and of the ranges inside it a profiler sees only
those of the capture. Code that ``torch.compile`` traces has none, so the switch makes nothing compile again.
"""

import functools
import importlib
from collections.abc import Callable
from typing import ParamSpec, Protocol, TypeVar

import torch

__all__ = ["RangesUnavailableError", "Sink", "disable", "enable", "enabled", "span"]

P = ParamSpec("P")
R = TypeVar("R")


class RangesUnavailableError(RuntimeError):
    """Nothing on this machine takes NVTX ranges; the message says what to install."""


class Sink(Protocol):
    """Takes ranges. Those of one thread nest; every push is followed by its pop on the same thread."""

    def push(self, name: str) -> None:
        """Open a range."""

    def pop(self) -> None:
        """Close the range opened last."""


_sink: Sink | None = None


def enable(sink: Sink | None = None) -> None:
    """Record ranges from now on, in the whole process.

    Args:
        sink: where they go; by default NVTX, through PyTorch where it has a CUDA device and through the
            ``nvtx`` package elsewhere.

    Raises:
        RangesUnavailableError: no sink was given, and there is neither; nothing has changed.
    """
    global _sink
    _sink = sink or _nvtx()


def disable() -> None:
    """Record no ranges from now on; those open are still closed."""
    global _sink
    _sink = None


def enabled() -> bool:
    """Tell whether ranges are recorded."""
    return _sink is not None


def span(name: str, index: int | None = None) -> "_Span":
    """Return a range, as a context manager or a decorator.

    Args:
        name: of the range.
        index: appended to the name, apart from it so that no name is built while ranges are off.
    """
    return _Span(name, index)


class _Span:
    __slots__ = ("_index", "_name", "_sink")

    def __init__(self, name: str, index: int | None) -> None:
        self._name, self._index = name, index
        self._sink: Sink | None = None

    def __enter__(self) -> None:
        # In this order: a traced function that read the switch would be compiled again when it changes.
        if torch.compiler.is_compiling() or _sink is None:
            return
        # Kept, so that switching ranges off inside one leaves none open.
        self._sink = _sink
        self._sink.push(self._name if self._index is None else f"{self._name} {self._index}")

    def __exit__(self, *_: object) -> None:
        if self._sink is not None:
            self._sink.pop()
            self._sink = None

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


def _nvtx() -> Sink:
    if torch.cuda.is_available():
        return _TorchNvtx()
    try:
        return _PackageNvtx()
    except ImportError as error:
        raise RangesUnavailableError(
            "ranges need a CUDA device visible to PyTorch or the nvtx package, got neither; "
            "pip install 'streamchar[profile]', or give enable() a sink"
        ) from error
