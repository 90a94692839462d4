"""Optional imports and version differences, which are handled only here.

Triton is available for Linux only. Without it, or with a version older than :data:`MIN_TRITON`, every
``@triton.jit`` function in this package becomes an inert placeholder, and ``backend="auto"`` uses PyTorch.
"""

import re
from typing import Any

import torch

try:
    from ...errors import StreamCharError
except ImportError:
    # The folder was loaded by itself, without the package around it, so it needs a root of its own.
    class StreamCharError(Exception):  # type: ignore[no-redef]
        """Base class of all public errors."""


__all__ = [
    "FP8",
    "FP8_MAX",
    "HAS_TRITON",
    "INTERPRETED",
    "MIN_TRITON",
    "TRITON_VERSION",
    "StreamCharError",
    "TensorDescriptor",
    "tl",
    "triton",
]

#: Oldest Triton that the kernels run on. An older one counts as not installed.
MIN_TRITON = (3, 6)

try:
    import triton
    import triton.language as tl
    from triton.tools.tensor_descriptor import TensorDescriptor

    _major, _minor = re.findall(r"\d+", triton.__version__)[:2]
    #: Triton's version as a comparable pair; (0, 0) if it is not installed.
    TRITON_VERSION: tuple[int, int] = (int(_major), int(_minor))
except ImportError:
    TRITON_VERSION = (0, 0)

HAS_TRITON: bool = TRITON_VERSION >= MIN_TRITON

if not HAS_TRITON:

    class _Absent:
        """Replaces an absent module: any attribute resolves, and decorators return their function."""

        def __getattr__(self, name: str) -> Any:
            return self

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return args[0] if args else self

    triton = tl = _Absent()  # type: ignore[assignment]
    TensorDescriptor = None

#: Whether kernels run on the CPU in Triton's interpreter (``TRITON_INTERPRET=1`` at import).
INTERPRETED: bool = bool(HAS_TRITON and triton.knobs.runtime.interpret)

#: The only 8-bit format of this package: 4 exponent bits, 3 mantissa bits, largest finite value 448.
FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
