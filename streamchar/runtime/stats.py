"""What an engine has done and holds, as counters that any thread may read at any time."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class EngineStats:
    """Counters and sizes of an engine.

    Attributes:
        sessions: open sessions.
        capacity: sessions that can be open together.
        waiting: requests for chunks that no pass has taken yet.
        chunks: chunks made.
        batched: chunks that shared their pass with another session's.
        captures: CUDA graphs captured; constant after warm-up; 0 on a CPU.
        replays: steps run, as graphs or as direct calls.
        compilations: programs that Triton and ``torch.compile`` compiled in this process; constant after
            warm-up.
        device_allocations: segments that PyTorch requested from the driver in this process; constant after
            warm-up as long as chunks are released; 0 on a CPU, where they are not counted.
        session_bytes: memory that one session holds, by part.
        working_bytes: memory that the steps of one session work in, by what they make; measured during
            warm-up.
    """

    sessions: int
    capacity: int
    waiting: int
    chunks: int
    batched: int
    captures: int
    replays: int
    compilations: int
    device_allocations: int
    session_bytes: Mapping[str, int]
    working_bytes: Mapping[str, int]

    @property
    def memory_bytes(self) -> int:
        """Memory of all sessions, open or not: an engine allocates it when it is built."""
        return self.capacity * sum(self.session_bytes.values())

    @property
    def peak_bytes(self) -> int:
        """Memory of all sessions and of a pass that computes all of them: the most in use at once."""
        return self.memory_bytes + self.capacity * sum(self.working_bytes.values())


def compilations() -> int:
    """Return how many programs were compiled in this process: our kernels by Triton, anything by PyTorch."""
    count = 0
    for name, module in list(sys.modules.items()):
        if name.startswith("streamchar.kernels."):
            for kernel in vars(module).values():
                # The compiled forms of a kernel come first in each device's caches; the interpreter has none.
                for caches in getattr(kernel, "device_caches", {}).values():
                    count += len(caches[0])
    # Importing dynamo takes seconds; if nobody has imported it, it has compiled nothing.
    dynamo = sys.modules.get("torch._dynamo.utils")
    if dynamo is not None:
        count += dynamo.counters["stats"]["unique_graphs"]
    return count


def device_allocations(device: torch.device) -> int:
    """Return how many segments of memory PyTorch has requested from a GPU's driver; 0 on a CPU."""
    if device.type != "cuda":
        return 0
    return int(torch.cuda.memory_stats(device)["segment.all.allocated"])
