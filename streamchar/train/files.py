"""Files that training leaves behind: written whole or not at all, and named where they cannot be read."""

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from .trained import TrainingError


def write(value: Any, file: Path) -> None:
    """Write what :func:`torch.save` can; a kill on the way leaves the file as it was before."""
    partial = file.with_suffix(".partial")
    torch.save(value, partial)
    os.replace(partial, file)


def read(file: Path, remedy: str, mmap: bool = False) -> Any:
    """Return what :func:`write` wrote, on the CPU.

    Args:
        file: that is there.
        remedy: how it is made again once it is removed.
        mmap: read tensors only where they are used.

    Raises:
        TrainingError: it is cut short, or something else.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise TrainingError(
            f"{file} must be a whole file of training, got one that cannot be read ({reason}); "
            f"remove it and {remedy}"
        ) from error
