"""A CUDA graph's promise kept on a CPU: a step's operations are recorded once and played back without it.

What is played back are operators on the tensors that they were recorded with. Python chose them at recording
and is not asked again: a number or an address that it baked in stays as it was, and shows in the result.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from streamchar.runtime.graphs import GraphPool

#: Operators whose result Python, or the shape of what follows, would depend on.
FORBIDDEN = {"_local_scalar_dense", "item", "nonzero", "equal", "is_nonzero", "masked_select", "unique"}


class _Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        self.operations.append((operator, args, kwargs or {}, result))
        return result


class RecordedStep:
    """Runs its work the first time, or in a live pool every time, and else the operators that it ran."""

    def __init__(self, work, pool):
        self._work, self._pool = work, pool
        self.operations = []

    def __call__(self):
        self._pool.replays += 1
        if not self.operations or self._pool.live:
            with _Recorder() as recorder:
                self._work()
            self._pool.captures += not self.operations
            self.operations = recorder.operations
            return
        made = {}
        for operator, args, kwargs, result in self.operations:
            args, kwargs = tree_map_only(
                torch.Tensor, lambda tensor: made.get(id(tensor), tensor), (args, kwargs)
            )
            again = operator(*args, **kwargs)
            for then, now in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(then, torch.Tensor):
                    made[id(then)] = now

    def outside(self):
        """Return the tensors that the operations read or write without having made them."""
        made, found = set(), []
        for _, args, kwargs, result in self.operations:
            for tensor in tree_leaves((args, kwargs)):
                if isinstance(tensor, torch.Tensor) and id(tensor) not in made:
                    found.append(tensor)
            made |= {id(tensor) for tensor in tree_leaves(result) if isinstance(tensor, torch.Tensor)}
        return found


class RecordingPool(GraphPool):
    """Stands in for the graphs of a GPU."""

    live = False

    def __init__(self, device):
        super().__init__(device)
        self.steps = []

    def step(self, name, work, queue="main"):
        self.steps.append(RecordedStep(work, self))
        return self.steps[-1]


class LivePool(RecordingPool):
    """Calls Python at every step, beneath the same recorder: under it PyTorch may choose other products."""

    live = True
