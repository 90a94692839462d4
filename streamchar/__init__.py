"""Text goes in, a character speaks it: voice and picture generated together, chunk by chunk, in real time."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine import StreamCharEngine
    from .session import Chunk, Interruption, Session

__version__ = "0.1.0"
__all__ = ["Chunk", "Interruption", "Session", "StreamCharEngine"]

_HOMES = {
    "StreamCharEngine": ".engine",
    "Chunk": ".session",
    "Interruption": ".session",
    "Session": ".session",
}


def __getattr__(name: str) -> Any:
    """Import the engine when it is first asked for: commands that need none of it start at once."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
