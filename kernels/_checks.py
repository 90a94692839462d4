"""Argument checks shared by every kernel family.

A check runs before any work starts and says which argument is wrong, the value it has, the limit it
breaks and, where one exists, the remedy.
"""

from collections.abc import Sequence

import torch


class KernelArgumentError(ValueError):
    """An argument that a kernel cannot accept.

    Attributes:
        argument: name of the offending argument.
        limit: what is accepted.
        value: what was given.
    """

    def __init__(self, argument: str, limit: str, value: object, remedy: str = "") -> None:
        self.argument, self.limit, self.value, self.remedy = argument, limit, value, remedy
        super().__init__(f"{argument} must be {limit}, got {value}" + (f"; {remedy}" if remedy else ""))


class BackendUnavailableError(RuntimeError):
    """The requested backend cannot run here; the message says what is missing."""


def require(ok: bool, argument: str, limit: str, value: object, remedy: str = "") -> None:
    """Raise :class:`KernelArgumentError` unless ``ok``."""
    if not ok:
        raise KernelArgumentError(argument, limit, value, remedy)


def require_shape(argument: str, tensor: torch.Tensor, shape: Sequence[int | None], spelled: str) -> None:
    """Require ``tensor`` to have ``shape``; None matches any size.

    Args:
        argument: name used in the message.
        tensor: what was given.
        shape: expected sizes.
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
    """Require ``tensor`` to live on ``device``, which is that of the argument named ``like``."""
    if tensor.device != device:
        raise KernelArgumentError(argument, f"on {device} like {like}", f"a tensor on {tensor.device}")


def require_last_contiguous(argument: str, tensor: torch.Tensor) -> None:
    """Require elements of the last dimension to be adjacent in memory."""
    if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise KernelArgumentError(
            argument, "contiguous in its last dimension", f"stride {tensor.stride(-1)}", "call .contiguous()"
        )


def require_contiguous(argument: str, tensor: torch.Tensor) -> None:
    """Require ``tensor`` to be contiguous as a whole."""
    if not tensor.is_contiguous():
        raise KernelArgumentError(
            argument, "contiguous", f"strides {tuple(tensor.stride())}", "call .contiguous()"
        )


def require_aligned(argument: str, tensor: torch.Tensor) -> None:
    """Require ``tensor`` to start on a 16-byte boundary, as tensor descriptors need.

    Reads the address, which a traced tensor does not have: call it where a launch is built.
    """
    if tensor.data_ptr() % 16 != 0:
        raise KernelArgumentError(
            argument, "aligned to 16 bytes", f"address {tensor.data_ptr():#x}", "call .clone()"
        )
