"""Text goes in, a character speaks it: voice and picture generated together, chunk by chunk, in real time."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine import StreamCharEngine
    from .errors import StreamCharError
    from .session import Session, Speech
    from .types import Chunk, Interruption, Media, SpokenWord

__version__ = "0.1.0"
__all__ = [
    "Chunk",
    "Interruption",
    "Media",
    "Session",
    "Speech",
    "SpokenWord",
    "StreamCharEngine",
    "StreamCharError",
]

_MODULES = {
    "StreamCharEngine": ".engine",
    "StreamCharError": ".errors",
    "Session": ".session",
    "Speech": ".session",
    "Chunk": ".types",
    "Interruption": ".types",
    "Media": ".types",
    "SpokenWord": ".types",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that commands without an engine start at once."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name], __name__), name)
