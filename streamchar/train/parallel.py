"""Training by one process or by several, started with ``torchrun``, each on its own part of a step's rows.

A step's random numbers are drawn for the rows of all processes, everywhere from the same generator, and each
process keeps those of its own rows: two processes see what one with the doubled batch would. Without a
process group every function here is that of one process.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor


@contextmanager
def processes(device: torch.device) -> Iterator[torch.device]:
    """Join the processes that ``torchrun`` started, where it did, and yield this one's device.

    Args:
        device: what to train on; of several GPUs, each process takes the one of its local rank.
    """
    if "WORLD_SIZE" not in os.environ:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    # Flags and logged figures lie on the CPU also where gradients do not.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def world() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process; 0 is the one that logs and saves."""
    return dist.get_rank() if dist.is_initialized() else 0


def meet() -> None:
    """Wait until all processes are here."""
    if world() > 1:
        dist.barrier()


@contextmanager
def one_by_one() -> Iterator[None]:
    """Let process 0 through first, so that the others find the files it leaves."""
    if rank() > 0:
        meet()
    yield
    if rank() == 0:
        meet()


def share(count: int) -> range:
    """Return which rows of ``count`` for each process are this one's."""
    return range(rank() * count, (rank() + 1) * count)


def own(rows: Tensor) -> Tensor:
    """Return this process's share of a tensor whose first dimension is the rows of all of them."""
    mine = share(len(rows) // world())
    return rows[mine.start : mine.stop]


def rand(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw from [0, 1) for this process's rows, the first dimension, as part of a draw for all rows."""
    return own(torch.rand((shape[0] * world(), *shape[1:]), generator=generator))


def randn(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw from the normal distribution, as :func:`rand`."""
    return own(torch.randn((shape[0] * world(), *shape[1:]), generator=generator))


def randint(high: int, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw integers from [0, high), as :func:`rand`."""
    return own(torch.randint(high, (shape[0] * world(), *shape[1:]), generator=generator))


def total_(tensor: Tensor) -> Tensor:
    """Add up a tensor over all processes, in place, and return it."""
    if world() > 1:
        dist.all_reduce(tensor)
    return tensor


def average_(tensors: Sequence[Tensor]) -> None:
    """Average tensors of one dtype over all processes, in place, in one message."""
    if world() == 1 or not tensors:
        return
    flat = total_(torch.cat([each.flatten() for each in tensors])) / world()
    parts = flat.split([each.numel() for each in tensors])
    torch._foreach_copy_(list(tensors), [part.view_as(each) for part, each in zip(parts, tensors)])


def means(values: Sequence[float]) -> list[float]:
    """Return the averages of figures over all processes."""
    return (total_(torch.tensor(values, dtype=torch.float64)) / world()).tolist()


def anywhere(*flags: bool) -> tuple[bool, ...]:
    """Say of each flag whether any process has it set: clocks and signals differ between them."""
    counts = total_(torch.tensor(flags, dtype=torch.int32))
    return tuple(bool(count) for count in counts)
