"""Small device functions that several kernels share."""

from .compat import tl, triton

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def tanh(x):
    """Return tanh(x) for fp32 x, through ``exp2``: the interpreter has no libdevice, and this is one MUFU."""
    # exp2 of a large positive number is inf, and 1 - 2 / inf is 1, so both ends saturate without a branch.
    return 1.0 - 2.0 / (tl.exp2(x * (2.0 * LOG2_E)) + 1.0)


@triton.jit
def gelu_tanh(x):
    """Return the tanh form of GELU for fp32 x (torch's ``approximate="tanh"``)."""
    return 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
