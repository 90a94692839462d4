"""What sessions take of a device's memory: what they hold, and what their steps work in.

The first is known before any of it is allocated. Steps make intermediate results and let go of them; how much
of these lives at once is measured on one row while it warms up, before the steps of all rows are captured.
Every row that is computed takes as much again.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .codecs.vae import Vae
from .codecs.vocoder import Vocoder
from .config import Preset
from .decode import MediaBuffers
from .lane import ChunkBuffers
from .memory import KVMemory
from .orchestrator import Orchestrator

_GIB = 2**30
_MEMINFO = Path("/proc/meminfo")


class EngineMemoryError(RuntimeError):
    """The device cannot hold the sessions asked for; nothing stays allocated for them.

    Attributes:
        needed: bytes that the sessions asked for take, or None where memory ran out before it was known what
            steps work in.
        available: bytes that were free.
        sessions: how many would fit.
    """

    def __init__(
        self, asked: int, session: int, available: int, needed: int | None, working: int = 0
    ) -> None:
        self.needed, self.available = needed, available
        self.sessions = min(available // (session + working), asked - 1)
        each = f"a session takes {session / _GIB:.2f} GiB"
        if working:
            each += f" and {working / _GIB:.2f} GiB to work in"
        what = f"{asked} take {needed / _GIB:.2f} GiB" if needed else "and steps need memory to work in"
        super().__init__(
            f"max_sessions must be at most {self.sessions} on this device, got {asked}: "
            f"{each}, {what}, {available / _GIB:.2f} GiB are free; build a smaller engine"
        )


def session_bytes(
    preset: Preset, orchestrator: Orchestrator, vae: Vae, vocoder: Vocoder, dtype: torch.dtype
) -> dict[str, int]:
    """Return the bytes that one session holds, by part; what steps work in is :func:`working_memory`'s.

    Args:
        preset: every size.
        orchestrator: whose state is counted.
        vae: likewise.
        vocoder: likewise.
        dtype: of keys, values and decoded frames.
    """
    # Tensors of the meta device have sizes and take no memory.
    meta = torch.device("meta")
    frames = MediaBuffers.zeros(preset, 1, meta, dtype)
    return {
        "keys and values": KVMemory(preset, 1, meta, dtype).nbytes,
        "orchestrator": _bytes_of(orchestrator.new_state(1, meta)),
        "video decoder": Vae(vae.config, meta, dtype).new_state(1, preset.picture.latent_size).nbytes,
        "audio decoder": _bytes_of(vocoder.new_state(1, meta)),
        "latents": _bytes_of(ChunkBuffers.zeros(preset, 1, meta)),
        "media": _bytes_of(frames),
    }


class WeightsMemoryError(RuntimeError):
    """The device cannot hold the weights; none were made."""


def require_weights(available: int | None, needed: int) -> None:
    """Refuse weights that the device cannot hold.

    Args:
        available: bytes that are free; None where that is not known.
        needed: bytes of the weights.

    Raises:
        WeightsMemoryError: naming both.
    """
    if available is not None and needed > available:
        raise WeightsMemoryError(
            f"weights must fit the device, got {needed / _GIB:.1f} GiB of them for {available / _GIB:.1f} "
            "GiB that are free; take a smaller preset, or a device with more memory"
        )


def available_bytes(device: torch.device) -> int | None:
    """Return what may still be allocated on a device; None where it is not known."""
    if device.type == "cpu":
        return _available_on_host()
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _available_on_host() -> int | None:
    """Return what Linux says may be allocated without swapping."""
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kibibytes = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return 1024 * kibibytes[0] if kibibytes else None


def require_room(available: int | None, session: int, sessions: int, working: int = 0) -> None:
    """Refuse more sessions than the device can hold.

    Args:
        available: bytes that were free before any session had its own; None where that is not known.
        session: bytes that one holds.
        sessions: how many.
        working: bytes that the steps of one work in; 0 until that is known.

    Raises:
        EngineMemoryError: naming what they need, what is free and how many would fit.
    """
    needed = (session + working) * sessions
    if available is not None and needed > available:
        raise EngineMemoryError(sessions, session, available, needed, working)


@dataclass
class Working:
    """The most bytes of intermediate results that lived at once."""

    bytes: int = 0


@contextmanager
def working_memory(device: torch.device) -> Iterator[Working]:
    """Measure what the work in the block needs beside the tensors that were there before it.

    On a GPU it is what PyTorch's allocator gave out, workspaces of libraries included, so the block must have
    the device to itself. Elsewhere it is the tensors that operators of this thread made: what they allocate
    and free within themselves does not show.
    """
    found = Working()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield found
        found.bytes = torch.cuda.max_memory_allocated(device) - before
    else:
        with _Alive() as alive:
            yield found
        found.bytes = alive.most


class _Alive(TorchDispatchMode):
    """Counts the bytes of storages that operators have made, as long as they live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # Views and results written in place share the storage of an argument.
        given = {_storage(each) for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)}
        result = func(*args, **kwargs)
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if _storage(tensor) not in given and storage not in self._known:
                    self._known.add(storage)
                    self._count(storage.nbytes())
                    weakref.finalize(storage, self._count, -storage.nbytes())
        return result

    def _count(self, size: int) -> None:
        self.now += size
        self.most = max(self.most, self.now)


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _bytes_of(buffers: object) -> int:
    values = (getattr(buffers, field.name) for field in fields(buffers))  # type: ignore[arg-type]
    return sum(value.nbytes for value in values if isinstance(value, torch.Tensor))
