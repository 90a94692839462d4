"""Argument checks shared by every kernel family.

Checks run before any work starts. Their messages name the argument, its limit, its value and, if there is
one, the remedy.
"""

from collections.abc import Sequence
from typing import Literal

import torch

from .compat import StreamCharError


class KernelArgumentError(StreamCharError, ValueError):
    """An argument that a kernel cannot accept.

    Attributes:
        argument: name of the argument.
        limit: the accepted values.
        value: the value given.
        remedy: what to do instead; may be empty.
    """

    def __init__(self, argument: str, limit: str, value: object, remedy: str = "") -> None:
        self.argument, self.limit, self.value, self.remedy = argument, limit, value, remedy
        super().__init__(f"{argument} must be {limit}, got {value}" + (f"; {remedy}" if remedy else ""))


class BackendUnavailableError(StreamCharError, RuntimeError):
    """The requested backend cannot run here. The message says what is missing."""


def require(ok: bool, argument: str, limit: str, value: object, remedy: str = "") -> None:
    """Raise :class:`KernelArgumentError` unless ``ok``."""
    if not ok:
        raise KernelArgumentError(argument, limit, value, remedy)


def require_shape(argument: str, tensor: torch.Tensor, shape: Sequence[int | None], spelled: str) -> None:
    """Require ``tensor`` to have ``shape``.

    Args:
        argument: name used in the message.
        tensor: the tensor to check.
        shape: expected sizes; None matches any size.
        spelled: the shape in words, such as ``[batch, tokens, dim]``.

    Raises:
        KernelArgumentError: naming the argument, the expected and the actual shape.
    """
    ok = tensor.dim() == len(shape) and all(
        want is None or have == want for have, want in zip(tensor.shape, shape, strict=True)
    )
    if not ok:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise KernelArgumentError(argument, f"{spelled} = [{wanted}]", list(tensor.shape))


def require_dtype(argument: str, tensor: torch.Tensor, allowed: Sequence[torch.dtype]) -> None:
    """Require ``tensor.dtype`` to be one of ``allowed``."""
    if tensor.dtype not in allowed:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise KernelArgumentError(argument, names, str(tensor.dtype).removeprefix("torch."))


def require_device(argument: str, tensor: torch.Tensor, device: torch.device, like: str) -> None:
    """Require ``tensor`` to be on ``device``, the device of the argument named ``like``."""
    if tensor.device != device:
        raise KernelArgumentError(argument, f"on {device} like {like}", f"a tensor on {tensor.device}")


def require_last_contiguous(argument: str, tensor: torch.Tensor) -> None:
    """Require the elements of the last dimension to be adjacent in memory."""
    if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise KernelArgumentError(
            argument, "contiguous in its last dimension", f"stride {tensor.stride(-1)}", "call .contiguous()"
        )


def require_contiguous(argument: str, tensor: torch.Tensor) -> None:
    """Require ``tensor`` to be contiguous."""
    if not tensor.is_contiguous():
        raise KernelArgumentError(
            argument, "contiguous", f"strides {tuple(tensor.stride())}", "call .contiguous()"
        )


def require_tensor(
    argument: str,
    tensor: torch.Tensor | None,
    shape: tuple[Sequence[int | None], str],
    dtypes: Sequence[torch.dtype],
    like: tuple[str, torch.Tensor],
    contiguous: Literal["all", "last"] = "all",
) -> None:
    """Require a tensor of this shape and dtype, contiguous, and on the device of another argument.

    Args:
        argument: name used in the message.
        tensor: the tensor to check; must not be None.
        shape: expected sizes, and the shape in words; see :func:`require_shape`.
        dtypes: accepted dtypes.
        like: name and tensor of the argument whose device is required.
        contiguous: whether all dimensions must be contiguous or only the last one.
    """
    assert tensor is not None, argument
    require_shape(argument, tensor, *shape)
    require_dtype(argument, tensor, dtypes)
    if contiguous == "all":
        require_contiguous(argument, tensor)
    else:
        require_last_contiguous(argument, tensor)
    require_device(argument, tensor, like[1].device, like[0])


def require_aligned(argument: str, tensor: torch.Tensor) -> None:
    """Require ``tensor`` to start on a 16-byte boundary, as tensor descriptors need.

    Reads the address, which a traced tensor does not have: call it only where a launch is built.
    """
    if tensor.data_ptr() % 16 != 0:
        raise KernelArgumentError(
            argument, "aligned to 16 bytes", f"address {tensor.data_ptr():#x}", "call .clone()"
        )
