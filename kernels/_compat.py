"""Optional imports and version differences, met once and nowhere else.

Triton ships for Linux only. Without it, or with one older than these kernels need, every ``@triton.jit``
function in this package becomes an inert placeholder, and ``backend="auto"`` serves the PyTorch path.
"""

import re
from typing import Any

import torch

__all__ = [
    "FP8",
    "FP8_MAX",
    "HAS_TRITON",
    "INTERPRETED",
    "MIN_TRITON",
    "TRITON_VERSION",
    "TensorDescriptor",
    "tl",
    "triton",
]

#: Oldest Triton that the kernels run on; an older one counts as not installed.
MIN_TRITON = (3, 6)

try:
    import triton
    import triton.language as tl
    from triton.tools.tensor_descriptor import TensorDescriptor

    _major, _minor = re.findall(r"\d+", triton.__version__)[:2]
    #: Triton's version as a comparable pair, (0, 0) when it is not installed.
    TRITON_VERSION: tuple[int, int] = (int(_major), int(_minor))
except ImportError:
    TRITON_VERSION = (0, 0)

HAS_TRITON: bool = TRITON_VERSION >= MIN_TRITON

if not HAS_TRITON:

    class _Absent:
        """Stand in for an absent module: attributes resolve, decorators return their function."""

        def __getattr__(self, name: str) -> Any:
            return self

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return args[0] if args else self

    triton = tl = _Absent()  # type: ignore[assignment]
    TensorDescriptor = None

#: True when kernels run on the CPU through Triton's interpreter (``TRITON_INTERPRET=1`` at import).
INTERPRETED: bool = bool(HAS_TRITON and triton.knobs.runtime.interpret)

#: The only 8-bit format of this package: 4 exponent bits, 3 mantissa bits, largest finite value 448.
FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
