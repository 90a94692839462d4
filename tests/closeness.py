"""The one comparison of a result with its reference in the tests."""

import torch

from streamchar.numerics import EPSILON, relative_error


def assert_close(out: torch.Tensor, reference: torch.Tensor, dtype: torch.dtype, growth: float = 1.0) -> None:
    """Assert that the relative error of ``out`` is at most ``growth`` epsilons of ``dtype``.

    Args:
        out: the result, any shape and dtype.
        reference: the expected result, same shape, in float64 if possible.
        dtype: the narrowest dtype that the computation rounds to.
        growth: number of epsilons to which the rounding errors can add up; callers state its derivation.

    Raises:
        AssertionError: the error exceeds the bound, or ``out`` contains NaN or infinity.
    """
    error, bound = relative_error(out, reference), growth * EPSILON[dtype]
    assert error <= bound, f"relative error {error:.3e} exceeds {bound:.3e} ({growth} epsilons of {dtype})"
