"""Weights, gradients and optimizer state sharded over processes (FSDP2), for networks too large for one GPU.

The weights of a layer are gathered in the network's own dtype when a step first needs them, and stay gathered
until their gradients have been computed. A step runs each layer many times, and keys and values reach it
through the cache, behind the hooks that would otherwise gather the weights again for the backward pass. The
larger part always stays sharded: fp32 weights, their average, gradients and moments take 20 bytes per weight,
the gathered copy takes 2.
"""

import warnings
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from .parallel import world_size


class Shardable(nn.Module):
    """A module that can shard its trained weights."""

    @abstractmethod
    def shard(self) -> None:
        """Shard the weights; parameters that require a gradient become fp32 DTensors."""


class _Opaque:
    """Wraps a tensor so that FSDP's hooks pass it on unchanged."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


def shard_layers(
    module: nn.Module, layers: Iterable[nn.Module], methods: Iterable[str], written: Iterable[int]
) -> None:
    """Shard the weights of a network over all processes, in place.

    Args:
        module: a network of one dtype, on its device. It keeps computing in this dtype; the sharded weights
            are fp32.
        layers: submodules that are called as modules; each is gathered on its own, the rest all at once.
        methods: names of the methods of ``module`` that run its forward pass.
        written: positions of the layer arguments that a layer writes in place.
    """
    first = next(module.parameters())
    narrow = first.dtype
    mesh = init_device_mesh(first.device.type, (world_size(),))
    module.float()
    policy = MixedPrecisionPolicy(narrow, torch.float32, cast_forward_inputs=False)
    # FSDP warns about writing in place to views that its hooks return; no caller here writes to those.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
        _hide_written(layer, frozenset(written))
    whole = fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    whole.set_reshard_after_backward(False)
    for name in methods:
        register_fsdp_forward_method(module, name)


def _hide_written(layer: nn.Module, written: frozenset[int]) -> None:
    """Hide arguments from FSDP's hook, which replaces tensors with a graph by views that are read-only."""

    def hide(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(_Opaque(each) if index in written else each for index, each in enumerate(args))

    def reveal(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(each.value if isinstance(each, _Opaque) else each for each in args)

    layer.register_forward_pre_hook(hide, prepend=True)
    layer.register_forward_pre_hook(reveal)


def reshard(module: nn.Module) -> None:
    """Free the gathered weights of a module and its submodules."""
    for each in module.modules():
        if isinstance(each, FSDPModule):
            each.reshard()


def local_tensor(tensor: Tensor) -> Tensor:
    """Return this process's part of a parameter or a gradient, sharing its storage."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor


class ParameterShard:
    """The rows of a parameter that this process holds: all of them, or a part if the parameter is sharded.

    Args:
        parameter: a plain tensor or a DTensor.
    """

    def __init__(self, parameter: Tensor) -> None:
        self._whole = parameter if isinstance(parameter, DTensor) else None

    @property
    def sharded(self) -> bool:
        """Whether other processes hold the remaining rows."""
        return self._whole is not None

    def gather(self, rows: Tensor) -> Tensor:
        """Return the whole of a tensor that is sharded like the parameter; a collective call."""
        if self._whole is None:
            return rows
        mesh, placements = self._whole.device_mesh, self._whole.placements
        shape, stride = self._whole.shape, self._whole.stride()
        return DTensor.from_local(rows, mesh, placements, shape=shape, stride=stride).full_tensor()

    def local_rows(self, whole: Tensor) -> Tensor:
        """Return this process's rows of a tensor that has the shape of the whole parameter."""
        if self._whole is None:
            return whole
        mesh, placements = self._whole.device_mesh, self._whole.placements
        taken = distribute_tensor(whole.to(mesh.device_type), mesh, placements, src_data_rank=None)
        return local_tensor(taken)
