"""The KV cache: keys and values of all tokens that a chunk attends to, at fixed addresses.

Each layer has one buffer of slots, divided into regions ``[reference | sink | motion | video | audio]`` whose
starts are multiples of 16. Small tables define which slots a token writes, which regions it attends to and
its position. There is one set of tables per role:

    role        writes           attends to
    reference   reference        reference
    sink        sink             reference, sink
    motion      motion           reference, sink, motion
    chunk       video, audio     everything

Attention is block-causal: keys and values of conditioning tokens do not depend on the noisy chunk, so they
are computed once. Segment lengths are device tensors, and a region that is still empty has length 0, so one
captured graph serves the first chunk and all later ones. Positions are relative to the current chunk, so
stored keys are already rotated and never change, however long the session is.
"""

import copy
from dataclasses import dataclass, replace
from typing import Literal

import torch

from ..config import Preset
from ..kernels import audio_positions, rope_tables, segment_table, slot_table, video_positions
from ..kernels._shared.checks import require

Role = Literal["reference", "sink", "motion", "chunk"]
#: Roles in block-causal order: each sees the regions of those before it.
ROLES: tuple[Role, ...] = ("reference", "sink", "motion", "chunk")
SEGMENTS = ("reference", "sink", "motion", "video", "audio")
#: Region starts are multiples of this many slots, because 8-bit attention reads values in units of 16 bytes.
ALIGNMENT = 16


@dataclass(frozen=True)
class RoleTables:
    """Slots, segments and rotary tables of the tokens of one role, as the kernels read them.

    Attributes:
        slots: [batch, tokens] int32, slot to which each token's key and value are written; -1 for none.
        segments: [batch, 5, 2] int32, (start, length) of the regions that the tokens attend to.
        cos: [tokens, head_dim / 2] fp32, cosines from :func:`streamchar.kernels.rope_tables`.
        sin: [tokens, head_dim / 2] fp32, sines.
    """

    slots: torch.Tensor
    segments: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor

    def where(self, due: torch.Tensor) -> "RoleTables":
        """Return tables that write only the rows where ``due``, [batch] bool, is true."""
        return replace(self, slots=torch.where(due[:, None], self.slots, -1))


class KVCache:
    """Keys and values of ``batch`` sessions, for every layer of the diffusion transformer.

    Attributes:
        batch: number of rows, one per session; rows may be at different chunks.
        capacity: slots per row.
        k: one [batch, capacity, heads, head_dim] tensor per layer, keys after rotary embedding.
        v: one [batch, capacity, heads, head_dim] tensor per layer, values.
        tables: the :class:`RoleTables` of each role.
        regions: (start, length) of each segment in slots, when it is filled.
    """

    def __init__(
        self,
        preset: Preset,
        batch: int = 1,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Allocate the cache, zeroed, with reference, sink and motion marked as absent.

        Args:
            preset: sizes of regions, layers and heads.
            batch: number of rows, at least 1.
            device: device of keys, values and tables.
            dtype: dtype of keys and values, that of the model.

        Raises:
            KernelArgumentError: ``batch`` is below 1, or the kernels do not support ``dtype``.
        """
        require(batch >= 1, "batch", "at least 1", batch)
        floats = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
        require(dtype in floats, "dtype", "bfloat16, float16, float32 or float64", dtype)
        self.preset, self.batch = preset, batch
        lengths = (
            preset.reference_tokens,
            preset.sink_tokens,
            preset.motion_tokens,
            preset.video_tokens,
            preset.audio_tokens,
        )
        self.regions: dict[str, tuple[int, int]] = {}
        end = 0
        for name, length in zip(SEGMENTS, lengths):
            self.regions[name] = (end, length)
            end += -(-length // ALIGNMENT) * ALIGNMENT
        self.capacity = end
        shape = (batch, end, preset.dit.heads, preset.dit.head_dim)

        def buffers() -> list[torch.Tensor]:
            return [torch.zeros(shape, dtype=dtype, device=device) for _ in range(preset.dit.layers)]

        self.k, self.v = buffers(), buffers()
        self.tables = {role: self._role_tables(role, torch.device(device)) for role in ROLES}

    def set_valid(
        self,
        row: int,
        *,
        reference: bool | None = None,
        sink: bool | None = None,
        motion: bool | None = None,
    ) -> None:
        """Set which conditioning regions of a row later roles attend to, by updating device tables in place.

        The update is ordered on the current stream: work queued before it sees the old tables. A role always
        attends to its own region.

        Args:
            row: index of the row, in [0, batch).
            reference: whether the reference has been committed; None leaves it unchanged.
            sink: whether the sink has been committed; None leaves it unchanged.
            motion: whether the motion latents have been committed; None leaves it unchanged.

        Raises:
            KernelArgumentError: ``row`` is out of range.
        """
        self._require_row(row)
        for index, valid in enumerate((reference, sink, motion)):
            if valid is not None:
                length = self.regions[SEGMENTS[index]][1] if valid else 0
                for role in ROLES[index + 1 :]:
                    self.tables[role].segments[row, index, 1].fill_(length)

    def reset(self, row: int) -> None:
        """Clear a row: zero its keys and values and mark reference, sink and motion as absent.

        Raises:
            KernelArgumentError: ``row`` is out of range.
        """
        self.set_valid(row, reference=False, sink=False, motion=False)
        with torch.no_grad():
            for buffer in (*self.k, *self.v):
                buffer[row].zero_()

    def row(self, index: int) -> "KVCache":
        """Return a cache of batch 1 that shares keys, values and tables with one row.

        Raises:
            KernelArgumentError: ``index`` is out of range.
        """
        self._require_row(index)
        one = slice(index, index + 1)
        view = copy.copy(self)
        view.batch = 1
        view.k, view.v = [k[one] for k in self.k], [v[one] for v in self.v]
        view.tables = {
            role: replace(tables, slots=tables.slots[one], segments=tables.segments[one])
            for role, tables in self.tables.items()
        }
        return view

    def detach_(self) -> None:
        """Detach keys and values from the autograd graph that wrote them.

        Training calls this between steps, so that no step backpropagates into the previous one.
        """
        for buffer in (*self.k, *self.v):
            buffer.detach_()

    @property
    def nbytes(self) -> int:
        """Size of all keys and values, in bytes."""
        return sum(buffer.nbytes for buffer in (*self.k, *self.v))

    def _require_row(self, row: int) -> None:
        require(0 <= row < self.batch, "row", f"between 0 and {self.batch - 1} (rows of this cache)", row)

    def _role_tables(self, role: Role, device: torch.device) -> RoleTables:
        written = ("video", "audio") if role == "chunk" else (role,)
        # A role attends to its own region; the others are absent until set_valid().
        spans = [(start, size * (name in written)) for name, (start, size) in self.regions.items()]
        slots = [self.regions[name] for name in written]
        cos, sin = rope_tables(self._positions(role), self.preset.dit.head_dim)
        return RoleTables(
            slot_table([slots] * self.batch, self.capacity, device),
            segment_table([spans] * self.batch, self.capacity, device, alignment=ALIGNMENT),
            cos.to(device),
            sin.to(device),
        )

    def _positions(self, role: Role) -> torch.Tensor:
        """Return (time, height, width) per token, [tokens, 3]; time 0 is the chunk's first latent."""
        picture, chunk = self.preset.picture, self.preset.chunk
        height, width = (size // picture.patch for size in picture.latent_size)
        # Positions are those of a full sink and full motion even if only a part is kept, as seen in training.
        sink = -2 * chunk.latent_frames
        frames, first = {
            "reference": (chunk.reference_latents, sink - chunk.reference_latents),
            "sink": (chunk.sink_latents, sink),
            "motion": (chunk.motion_latents, -chunk.motion_latents),
            "chunk": (chunk.latent_frames, 0),
        }[role]
        video = video_positions(frames, height, width, first)
        if role != "chunk":
            return video
        # There is one audio token per video frame; simultaneous tokens share their time.
        return torch.cat((video, audio_positions(self.preset.audio_tokens, picture.temporal_stride)))
