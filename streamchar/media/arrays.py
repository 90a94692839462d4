"""Convert tensors to NumPy arrays."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch


def as_array(values: torch.Tensor | npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return values as a NumPy array on the CPU; floating-point tensors become fp32."""
    if not isinstance(values, torch.Tensor):
        return np.asarray(values)
    # NumPy has neither bf16 nor 8-bit floats.
    values = values.detach().cpu()
    return (values.float() if values.is_floating_point() else values).numpy()
