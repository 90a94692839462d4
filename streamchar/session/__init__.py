"""A session: one character with one voice on one clock, and the texts it speaks."""

from .pacer import Pacer, PacingError
from .session import Session, SessionBusyError, SessionClosedError
from .speech import Speech

__all__ = ["Pacer", "PacingError", "Session", "SessionBusyError", "SessionClosedError", "Speech"]
