"""The one comparison of a result with its reference, for tests and benchmarks alike."""

import torch

#: Distance between 1 and the next number, per dtype; e4m3 has 3 mantissa bits.
EPSILON = {
    torch.float64: 2.0**-52,
    torch.float32: 2.0**-23,
    torch.float16: 2.0**-10,
    torch.bfloat16: 2.0**-7,
    torch.float8_e4m3fn: 2.0**-3,
}


def relative_error(out: torch.Tensor, reference: torch.Tensor) -> float:
    """Return ``||out - reference|| / ||reference||`` in float64; NaN or infinity in ``out`` gives infinity.

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


def assert_close(out: torch.Tensor, reference: torch.Tensor, dtype: torch.dtype, growth: float = 1.0) -> None:
    """Assert that ``out`` is ``reference`` to ``growth`` epsilons of ``dtype``, in relative norm.

    Args:
        out: the result, any shape and dtype.
        reference: what it should be, same shape, float64 where it can be had.
        dtype: the narrowest dtype that the computation rounds to.
        growth: how many epsilons the roundings of this computation can add up to; say where it comes from.

    Raises:
        AssertionError: the error exceeds the bound, or ``out`` holds a NaN or an infinity.
    """
    error, bound = relative_error(out, reference), growth * EPSILON[dtype]
    assert error <= bound, f"relative error {error:.3e} exceeds {bound:.3e} ({growth} epsilons of {dtype})"
