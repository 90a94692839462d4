"""Comparison of a result with its reference, for tests and benchmarks."""

import torch

#: Distance between 1 and the next larger number, per dtype.
EPSILON = {
    torch.float64: 2.0**-52,
    torch.float32: 2.0**-23,
    torch.float16: 2.0**-10,
    torch.bfloat16: 2.0**-7,
    torch.float8_e4m3fn: 2.0**-3,
}


def relative_error(out: torch.Tensor, reference: torch.Tensor) -> float:
    """Return ``||out - reference|| / ||reference||`` in float64, or infinity if ``out`` is not finite.

    Raises:
        ValueError: the shapes differ.
    """
    if out.shape != reference.shape:
        raise ValueError(
            f"out must have the reference's shape {list(reference.shape)}, got {list(out.shape)}"
        )
    reference = reference.detach().double()
    out = out.detach().to(reference.device).double()
    if not torch.isfinite(out).all():
        return float("inf")
    norm = torch.linalg.vector_norm(reference).item()
    return float(torch.linalg.vector_norm(out - reference).item() / (norm or 1.0))
