"""Triton as mypy sees it: the body of a ``@triton.jit`` function is another language and is left alone."""

from typing import Any
from typing import no_type_check as jit

__all__ = ["jit"]

def __getattr__(name: str) -> Any: ...
