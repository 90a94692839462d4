"""Choose between the Triton kernel and the PyTorch path, and launch what was chosen."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ._checks import BackendUnavailableError, KernelArgumentError
from ._compat import HAS_TRITON, INTERPRETED

Backend = Literal["auto", "triton", "torch"]

#: Lowest CUDA compute capability that "auto" gives to Triton: Hopper's, with tensor memory access (TMA),
#: warp-group matrix instructions and fp8, which the kernels are written and gated for.
MIN_CAPABILITY = (9, 0)


def use_triton(backend: Backend, *tensors: torch.Tensor | None) -> bool:
    """Say whether the Triton kernel serves this call.

    Args:
        backend: ``"auto"`` takes Triton for CUDA tensors that need no gradient and are not float64, in which
            no kernel computes, and PyTorch for all else; ``"triton"`` and ``"torch"`` force the choice. Under
            ``TRITON_INTERPRET=1`` the forced Triton kernel runs on CPU tensors.
        tensors: the tensors of the call, those absent as None; the first, always there, is what is computed.

    Raises:
        KernelArgumentError: the backend has no such name, or Triton was asked for in float64.
        BackendUnavailableError: Triton was asked for where it cannot run.
    """
    if backend not in ("auto", "triton", "torch"):
        raise KernelArgumentError("backend", "'auto', 'triton' or 'torch'", repr(backend))
    if backend == "torch":
        return False
    given = [tensor for tensor in tensors if tensor is not None]
    wide = given[0].dtype == torch.float64
    needs_grad = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given)
    on_gpu = all(tensor.is_cuda for tensor in given)
    if backend == "auto":
        return HAS_TRITON and on_gpu and not wide and not needs_grad and _capable(given[0].device)
    if wide:
        raise KernelArgumentError("backend", "'auto' or 'torch' for float64", repr(backend))
    if not HAS_TRITON:
        raise BackendUnavailableError("backend='triton' needs the triton package (Linux); use backend='auto'")
    if needs_grad:
        raise BackendUnavailableError(
            "backend='triton' has no backward pass; use backend='torch' or run under torch.no_grad()"
        )
    if not on_gpu and not INTERPRETED:
        raise BackendUnavailableError(
            "backend='triton' needs CUDA tensors; use backend='auto', or set TRITON_INTERPRET=1 before the "
            "first import to run the kernels on the CPU"
        )
    return True


def _capable(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= MIN_CAPABILITY


@dataclass(frozen=True)
class Launch:
    """One kernel launch, decided but not yet made.

    The codegen gate compiles the same object that a call runs, so what it inspects is what ships.

    Attributes:
        kernel: the ``@triton.jit`` function.
        grid: number of programs along each axis.
        args: every kernel parameter by name, constexprs included.
        num_warps: warps per program.
        num_stages: depth of the software pipeline.
        device: where to launch; None for the CPU interpreter and for compilation alone.
    """

    kernel: Any
    grid: tuple[int, ...]
    args: dict[str, Any]
    num_warps: int
    num_stages: int = 1
    device: torch.device | None = None

    def run(self) -> None:
        """Launch on the current stream of ``device``."""
        on_gpu = self.device is not None and self.device.type == "cuda"
        with torch.cuda.device(self.device) if on_gpu else nullcontext():
            self.kernel[self.grid](**self.args, num_warps=self.num_warps, num_stages=self.num_stages)
