"""Device memory that sessions need: what they hold, and what their steps work in.

What a session holds is known before any of it is allocated. The intermediate results of its steps are
measured on one row while it warms up, before the steps of all rows are captured; every row that is computed
needs as much again.
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

from ..codecs.vae import Vae
from ..config import Preset
from ..errors import StreamCharError
from ..model.kv_cache import KVCache
from .buffers import ChunkBuffers, MediaBuffers
from .modules import Modules

_GIB = 2**30
_MEMINFO = Path("/proc/meminfo")


class EngineMemoryError(StreamCharError, RuntimeError):
    """The device cannot hold the requested sessions; nothing stays allocated for them.

    Attributes:
        needed: bytes that the requested sessions need; None if memory ran out before the working memory of
            steps was known.
        available: bytes that were free.
        sessions: how many sessions would fit.
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


class WeightsMemoryError(StreamCharError, RuntimeError):
    """The device cannot hold the weights; none were allocated."""


def session_bytes(preset: Preset, modules: Modules) -> dict[str, int]:
    """Return the bytes that one session holds, by part; see :func:`working_memory` for what steps work in."""
    # Tensors of the meta device have sizes and take no memory.
    meta, dtype = torch.device("meta"), modules.dtype
    decoder = Vae(modules.vae.config, meta, dtype)
    return {
        "keys and values": KVCache(preset, 1, meta, dtype).nbytes,
        "orchestrator": _bytes_of(modules.orchestrator.new_state(1, meta)),
        "video decoder": decoder.new_state(1, preset.picture.latent_size).nbytes,
        "audio decoder": _bytes_of(modules.vocoder.new_state(1, meta)),
        "latents": _bytes_of(ChunkBuffers.zeros(preset, 1, meta)),
        "media": _bytes_of(MediaBuffers.zeros(preset, 1, meta, dtype)),
    }


def require_weights(available: int | None, needed: int) -> None:
    """Refuse weights that the device cannot hold.

    Args:
        available: free bytes; None if unknown.
        needed: bytes of the weights.

    Raises:
        WeightsMemoryError: the weights do not fit; the message names both sizes.
    """
    if available is not None and needed > available:
        raise WeightsMemoryError(
            f"weights must fit the device, got {needed / _GIB:.1f} GiB of them for {available / _GIB:.1f} "
            "GiB that are free; take a smaller preset, or a device with more memory"
        )


def require_room(available: int | None, session: int, sessions: int, working: int = 0) -> None:
    """Refuse more sessions than the device can hold.

    Args:
        available: bytes that were free before the first session was allocated; None if unknown.
        session: bytes that one session holds.
        sessions: number of sessions.
        working: bytes that the steps of one session work in; 0 until that is known.

    Raises:
        EngineMemoryError: naming what they need, what is free and how many would fit.
    """
    needed = (session + working) * sessions
    if available is not None and needed > available:
        raise EngineMemoryError(sessions, session, available, needed, working)


def available_bytes(device: torch.device) -> int | None:
    """Return the bytes that can still be allocated on a device; None if unknown."""
    if device.type == "cpu":
        return _available_on_host()
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _available_on_host() -> int | None:
    """Return what Linux says can be allocated without swapping."""
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kibibytes = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return 1024 * kibibytes[0] if kibibytes else None


@dataclass
class WorkingMemory:
    """The most bytes of intermediate results that were alive at once."""

    bytes: int = 0


@contextmanager
def working_memory(device: torch.device) -> Iterator[WorkingMemory]:
    """Measure what the work in the block allocates beside the tensors that existed before it.

    On a GPU this is what PyTorch's allocator handed out, library workspaces included, so nothing else may use
    the device meanwhile. On other devices it counts the tensors that operators of this thread returned; what
    an operator allocates and frees internally is not counted.
    """
    found = WorkingMemory()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield found
        found.bytes = torch.cuda.max_memory_allocated(device) - before
    else:
        with _LiveBytes() as live:
            yield found
        found.bytes = live.peak


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that operators allocated, as long as they live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # Views and in-place results share the storage of an argument.
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
        self.peak = max(self.peak, self.now)


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _bytes_of(buffers: object) -> int:
    values = (getattr(buffers, field.name) for field in fields(buffers))  # type: ignore[arg-type]
    return sum(value.nbytes for value in values if isinstance(value, torch.Tensor))
