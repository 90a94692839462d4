"""Choose between the Triton kernel and the PyTorch path, and launch the kernel."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch

from .checks import BackendUnavailableError, KernelArgumentError
from .compat import HAS_TRITON, INTERPRETED

Backend = Literal["auto", "triton", "torch"]

#: Lowest CUDA compute capability for which "auto" chooses Triton. The kernels are written and gated for
#: Hopper: they use tensor memory access (TMA), warp-group matrix instructions and fp8.
MIN_CAPABILITY = (9, 0)


def use_triton(backend: Backend, *tensors: torch.Tensor | None) -> bool:
    """Return whether the Triton kernel serves this call.

    Args:
        backend: ``"auto"`` chooses Triton for CUDA tensors that need no gradient and are not float64, and
            PyTorch otherwise; ``"triton"`` and ``"torch"`` force the choice. With ``TRITON_INTERPRET=1``,
            ``"triton"`` also runs on CPU tensors.
        tensors: the tensors of the call, None for absent ones. The first must be present; its dtype is the
            dtype of the computation.

    Raises:
        KernelArgumentError: ``backend`` is not one of the three names, or is ``"triton"`` for float64.
        BackendUnavailableError: ``backend="triton"`` where Triton cannot run.
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
    """The parameters of one kernel launch.

    The codegen gate compiles the same object that a call runs, so it inspects the code that ships.

    Attributes:
        kernel: the ``@triton.jit`` function.
        grid: number of programs along each axis.
        args: every kernel parameter by name, including constexprs.
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
