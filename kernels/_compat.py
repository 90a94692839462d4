"""Optional imports and version differences, met once and nowhere else.

Triton ships for Linux only. Without it every ``@triton.jit`` function in this package becomes an inert
placeholder, and ``backend="auto"`` serves the PyTorch path.
"""

import re
from typing import Any

import torch

try:
    import triton
    import triton.language as tl
    from triton.tools.tensor_descriptor import TensorDescriptor

    HAS_TRITON = True
except ImportError:
    HAS_TRITON = False

    class _Absent:
        """Stand in for a module that is not installed: attributes resolve, decorators return their function."""

        def __getattr__(self, name: str) -> Any:
            return self

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return args[0] if args else self

    triton = tl = _Absent()
    TensorDescriptor = None

#: True when kernels run on the CPU through Triton's interpreter (``TRITON_INTERPRET=1`` at import).
INTERPRETED: bool = bool(HAS_TRITON and triton.knobs.runtime.interpret)

#: Triton's version as a comparable pair, (0, 0) when it is not installed.
TRITON_VERSION: tuple[int, int] = (
    tuple(int(part) for part in re.findall(r"\d+", triton.__version__)[:2])  # type: ignore[assignment]
    if HAS_TRITON
    else (0, 0)
)

#: The only 8-bit format of this package: 4 exponent bits, 3 mantissa bits, largest finite value 448.
FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
