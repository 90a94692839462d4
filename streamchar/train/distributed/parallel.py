"""Data-parallel training in one process or, started with ``torchrun``, in several.

The random numbers of a step are drawn for the rows of all processes, from the same generator in every
process, and each process keeps those of its own rows. Two processes therefore see the same rows as one
process with twice the batch. Without a process group, every function here does what one process needs.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Join the processes that ``torchrun`` started, if it did, and yield the device of this process.

    Args:
        device: device to train on; with several GPUs, each process takes the one of its local rank.
    """
    if "WORLD_SIZE" not in os.environ:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    # Flags and logged values are CPU tensors even when gradients are on a GPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the rank of this process; rank 0 logs and saves."""
    return dist.get_rank() if dist.is_initialized() else 0


def barrier() -> None:
    """Wait until every process has called this function."""
    if world_size() > 1:
        dist.barrier()


@contextmanager
def rank_zero_first() -> Iterator[None]:
    """Run the block in process 0 first, so that the other processes find the files it writes."""
    if rank() > 0:
        barrier()
    yield
    if rank() == 0:
        barrier()


def local_range(count: int) -> range:
    """Return the row indices of this process if every process has ``count`` rows."""
    return range(rank() * count, (rank() + 1) * count)


def local_rows(rows: Tensor) -> Tensor:
    """Return this process's rows of a tensor whose first dimension is the rows of all processes."""
    mine = local_range(len(rows) // world_size())
    return rows[mine.start : mine.stop]


def rand(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw uniformly from [0, 1) for the rows of all processes and return those of this process.

    Args:
        shape: shape of the result; its first dimension is the rows of this process.
        generator: in the same state in every process.
    """
    return local_rows(torch.rand((shape[0] * world_size(), *shape[1:]), generator=generator))


def randn(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw from the standard normal distribution; see :func:`rand` for the arguments."""
    return local_rows(torch.randn((shape[0] * world_size(), *shape[1:]), generator=generator))


def randint(high: int, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw integers from [0, high); see :func:`rand` for the other arguments."""
    return local_rows(torch.randint(high, (shape[0] * world_size(), *shape[1:]), generator=generator))


def all_reduce_(tensor: Tensor) -> Tensor:
    """Sum a tensor over all processes, in place, and return it."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def average_(tensors: Sequence[Tensor]) -> None:
    """Average tensors of one dtype over all processes, in place, with a single all-reduce."""
    if world_size() == 1 or not tensors:
        return
    flat = all_reduce_(torch.cat([each.flatten() for each in tensors])) / world_size()
    parts = flat.split([each.numel() for each in tensors])
    torch._foreach_copy_(list(tensors), [part.view_as(each) for part, each in zip(parts, tensors)])


def mean_over_ranks(values: Sequence[float]) -> list[float]:
    """Return the mean of each value over all processes."""
    return (all_reduce_(torch.tensor(values, dtype=torch.float64)) / world_size()).tolist()


def any_rank(*flags: bool) -> tuple[bool, ...]:
    """Return for each flag whether it is set in any process; clocks and signals differ between processes."""
    counts = all_reduce_(torch.tensor(flags, dtype=torch.int32))
    return tuple(bool(count) for count in counts)
