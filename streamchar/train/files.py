"""Files of training: written atomically, and reported by name if they cannot be read."""

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from .optim.trainable import TrainingError


def write(value: Any, file: Path) -> None:
    """Write a value with :func:`torch.save`, atomically: a killed write leaves the previous file intact."""
    partial = file.with_suffix(".partial")
    torch.save(value, partial)
    os.replace(partial, file)


def read(file: Path, remedy: str, mmap: bool = False) -> Any:
    """Read a value that :func:`write` wrote, with tensors on the CPU.

    Args:
        file: an existing file.
        remedy: for the error message, how to make the file again after removing it.
        mmap: map the tensors into memory instead of reading them.

    Raises:
        TrainingError: the file is truncated or not of training.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise TrainingError(
            f"{file} must be a complete file of training, got one that cannot be read ({reason}); "
            f"remove it and {remedy}"
        ) from error
