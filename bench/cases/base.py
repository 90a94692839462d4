"""What a case is, and where it runs.

A case builds one input set from a seed and returns its contenders as calls without arguments. The first
contender is ours; the others are peers. :func:`bench.h100.time_case` checks that all compute the same.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from streamchar import kernels as K
from streamchar.config import Preset
from streamchar.tools.costs import Unit

Call = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """One operation at one shape.

    Attributes:
        name: family, shape and dtype.
        family: kernel family.
        build: returns the contenders for a seed, ours first.
        flop: floating-point operations per call.
        bytes: bytes that a call must move.
        unit: arithmetic unit that bounds the operation; ``"fp32"`` marks a memory-bound pass.
        comparable: whether all contenders return the same values up to rounding; random noise does not.
        targets: by name of a peer, the target for the ratio peer / ours.
        product: for expert products, the key of the table of measured choices.
    """

    name: str
    family: str
    build: Callable[[int], dict[str, Call]]
    flop: float
    bytes: float
    unit: Unit = "fp32"
    comparable: bool = True
    targets: dict[str, float] = field(default_factory=dict)
    product: dict[str, Any] | None = None

    @property
    def least_share(self) -> float | None:
        """Target for the share of the measured copy bandwidth; None unless the pass is memory-bound."""
        return 0.85 if self.unit == "fp32" else None


@dataclass(frozen=True)
class Setting:
    """Sizes, device and dtype of the cases.

    Attributes:
        preset: the preset whose shapes are used.
        device: device that runs the cases.
        dtype: dtype of the activations; bf16 on a GPU.
        compiled: whether to build ``torch.compile`` peers.
    """

    preset: Preset
    device: torch.device
    dtype: torch.dtype
    compiled: bool

    @property
    def ours(self) -> K.Backend:
        """The backend that is timed as ours: the Triton kernel on a GPU, the PyTorch path on a CPU."""
        return "triton" if self.device.type == "cuda" else "torch"

    def random(self, seed: int) -> Callable[..., torch.Tensor]:
        """Return a function that draws normally distributed tensors of a shape on the device."""
        generator = torch.Generator(self.device).manual_seed(seed)

        def draw(*shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
            return torch.randn(shape, generator=generator, device=self.device).to(dtype or self.dtype)

        return draw

    def peers(self, function: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
        """Return the function as the eager peer and, if requested, as the compiled peer."""
        found = {"eager": function}
        if self.compiled:
            found["compiled"] = torch.compile(
                function, mode="max-autotune-no-cudagraphs", dynamic=False, fullgraph=True
            )
        return found


def bind(function: Callable[..., Any], *arguments: Any) -> Call:
    """Return a call of ``function`` with fixed arguments."""
    return lambda: function(*arguments)
