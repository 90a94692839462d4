"""Weights, gradients and optimiser state split over processes (FSDP2), for networks too large for one device.

A layer's weights are gathered in the network's own dtype where a step first needs them, and stay until its
gradients are taken: a step passes each layer many times, and keys and values reach it through the memory,
behind the hooks that would otherwise gather weights again for the backward pass. What lies split throughout
is the larger part: fp32 weights, their average, gradients and moments, 20 bytes a weight against 2.
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

from .parallel import world


class Shardable(nn.Module):
    """A module that says how its trained weights are split."""

    @abstractmethod
    def shard(self) -> None:
        """Split them; parameters that require a gradient become DTensors in fp32."""


class Sealed:
    """Holds what shall pass the hooks of FSDP as it is: a tensor that is written in place."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


def shard_layers(
    module: nn.Module, layers: Iterable[nn.Module], methods: Iterable[str], written: Iterable[int]
) -> None:
    """Split the weights of a network of one dtype over all processes, in place.

    Args:
        module: on its device; computes in its dtype, while the split weights are fp32.
        layers: parts of it that are called as modules, each gathered by itself; the rest is gathered at once.
        methods: of ``module``, through which it is called.
        written: positions of those of a layer's arguments that it writes in place.
    """
    first = next(module.parameters())
    narrow = first.dtype
    mesh = init_device_mesh(first.device.type, (world(),))
    module.float()
    policy = MixedPrecisionPolicy(narrow, torch.float32, cast_forward_inputs=False)
    # What it says of views in place holds of those that its hooks return, which no caller here writes to.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
        _seal(layer, frozenset(written))
    whole = fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    whole.set_reshard_after_backward(False)
    for name in methods:
        register_fsdp_forward_method(module, name)


def _seal(layer: nn.Module, written: frozenset[int]) -> None:
    """Hide arguments from FSDP's hook, which hands on views of those with a graph, not to be written."""

    def seal(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(Sealed(each) if index in written else each for index, each in enumerate(args))

    def unseal(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(each.value if isinstance(each, Sealed) else each for each in args)

    layer.register_forward_pre_hook(seal, prepend=True)
    layer.register_forward_pre_hook(unseal)


def release(module: nn.Module) -> None:
    """Let go of gathered weights."""
    for each in module.modules():
        if isinstance(each, FSDPModule):
            each.reshard()


def local(tensor: Tensor) -> Tensor:
    """Return what this process holds of a parameter or a gradient, sharing its storage."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor


class Part:
    """What a process holds of a parameter: all of it, or some of its rows.

    Args:
        parameter: plain, or a DTensor.
    """

    def __init__(self, parameter: Tensor) -> None:
        self._whole = parameter if isinstance(parameter, DTensor) else None

    @property
    def split(self) -> bool:
        """Whether other processes hold the rest."""
        return self._whole is not None

    def gather(self, rows: Tensor) -> Tensor:
        """Return the whole of a tensor that lies as the parameter does; all processes call it together."""
        if self._whole is None:
            return rows
        mesh, placements = self._whole.device_mesh, self._whole.placements
        shape, stride = self._whole.shape, self._whole.stride()
        return DTensor.from_local(rows, mesh, placements, shape=shape, stride=stride).full_tensor()

    def take(self, whole: Tensor) -> Tensor:
        """Return this process's rows of a tensor shaped as the whole parameter."""
        if self._whole is None:
            return whole
        mesh, placements = self._whole.device_mesh, self._whole.placements
        taken = distribute_tensor(whole.to(mesh.device_type), mesh, placements, src_data_rank=None)
        return local(taken)
