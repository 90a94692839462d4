"""What an engine has done and holds, as counters that anyone may read at any time."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class EngineStats:
    """Counters and sizes of an engine.

    Attributes:
        sessions: open sessions.
        capacity: sessions that may be open together.
        chunks: chunks made.
        batched: chunks of these that shared their pass with another session's.
        captures: CUDA graphs captured, constant after warm-up; 0 on a CPU.
        replays: steps run, as graphs or as calls.
        compilations: programs that Triton and ``torch.compile`` made in this process; constant after warm-up.
        device_allocations: requests for memory made of the driver, in this process; constant after warm-up
            while chunks are let go of; 0 on a CPU, which counts none.
        session_bytes: memory that one session holds, by part.
        working_bytes: memory that steps work in for one session, by what they make, as measured while they
            were warmed up.
    """

    sessions: int
    capacity: int
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
        """Memory of all sessions, open or not: an engine holds it from the start."""
        return self.capacity * sum(self.session_bytes.values())

    @property
    def peak_bytes(self) -> int:
        """Memory of all sessions and of a pass that computes all of them, the most that is in use at once."""
        return self.memory_bytes + self.capacity * sum(self.working_bytes.values())


def compilations() -> int:
    """Return how many programs were compiled in this process: our kernels by Triton, anything by PyTorch."""
    count = 0
    for name, module in list(sys.modules.items()):
        if name.startswith("streamchar.kernels."):
            for kernel in vars(module).values():
                # By device, the compiled forms of a kernel come first; the interpreter has no such caches.
                for caches in getattr(kernel, "device_caches", {}).values():
                    count += len(caches[0])
    # Importing it takes seconds, and where nobody has, nothing was compiled.
    dynamo = sys.modules.get("torch._dynamo.utils")
    if dynamo is not None:
        count += dynamo.counters["stats"]["unique_graphs"]
    return count


def device_allocations(device: torch.device) -> int:
    """Return how many segments of memory PyTorch has asked a GPU's driver for; 0 on a CPU."""
    if device.type != "cuda":
        return 0
    return int(torch.cuda.memory_stats(device)["segment.all.allocated"])
