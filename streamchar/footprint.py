"""What sessions take of a device's memory, known before any of it is allocated."""

from dataclasses import fields

import torch

from .codecs.vae import Vae
from .codecs.vocoder import Vocoder
from .config import Preset
from .decode import MediaBuffers
from .lane import ChunkBuffers
from .memory import KVMemory
from .orchestrator import Orchestrator

_GIB = 2**30


class EngineMemoryError(RuntimeError):
    """The device cannot hold the sessions asked for; nothing has been allocated for them.

    Attributes:
        needed: bytes that the sessions asked for take, or None where the steps' own memory ran out.
        available: bytes that were free.
        sessions: how many would fit.
    """

    def __init__(self, asked: int, session: int, available: int, needed: int | None) -> None:
        self.needed, self.available = needed, available
        self.sessions = min(available // session, asked - 1)
        each = f"a session takes {session / _GIB:.2f} GiB"
        what = f"{asked} take {needed / _GIB:.2f} GiB" if needed else "and steps need memory to work in"
        super().__init__(
            f"max_sessions must be at most {self.sessions} on this device, got {asked}: "
            f"{each}, {what}, {available / _GIB:.2f} GiB are free; build a smaller engine"
        )


def session_bytes(
    preset: Preset, orchestrator: Orchestrator, vae: Vae, vocoder: Vocoder, dtype: torch.dtype
) -> dict[str, int]:
    """Return the bytes that one session takes, by part.

    Memory that steps work in belongs to no session and is not counted.

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


def available_bytes(device: torch.device) -> int | None:
    """Return what may still be allocated on a device; None where it is not known, as on a CPU."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def require_room(device: torch.device, session: int, sessions: int) -> None:
    """Refuse more sessions than the device can hold.

    Args:
        device: where they would lie.
        session: bytes of one.
        sessions: how many.

    Raises:
        EngineMemoryError: naming what they need, what is free and how many would fit.
    """
    available = available_bytes(device)
    if available is not None and session * sessions > available:
        raise EngineMemoryError(sessions, session, available, session * sessions)


def _bytes_of(buffers: object) -> int:
    values = (getattr(buffers, field.name) for field in fields(buffers))  # type: ignore[arg-type]
    return sum(value.nbytes for value in values if isinstance(value, torch.Tensor))
