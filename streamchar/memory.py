"""Keys and values of everything a chunk attends to, at addresses that never change.

Each layer has one buffer of slots, cut into regions ``[reference | sink | motion | video | audio]`` whose
starts are multiples of 16. What is written where, who sees what and where each token stands in time are
small tables, one set for each role that tokens play:

    role        writes           attends to
    reference   reference        reference
    sink        sink             reference, sink
    motion      motion           reference, sink, motion
    chunk       video, audio     everything

Block-causal: keys and values of conditioning tokens do not depend on the noisy chunk, so they are computed
once. Segment lengths live on the device; a sink or motion region that holds nothing yet has length 0 there,
and one captured graph serves the first chunk and all later ones. Positions are relative to the chunk that is
being made, so keys are stored rotated and never move, however long the session.
"""

import copy
from dataclasses import dataclass, replace
from typing import Literal

import torch

from .config import Preset
from .kernels import audio_positions, rope_tables, segment_table, slot_table, video_positions
from .kernels._checks import require

Role = Literal["reference", "sink", "motion", "chunk"]
#: Roles in block-causal order: each sees the regions of those before it.
ROLES: tuple[Role, ...] = ("reference", "sink", "motion", "chunk")
SEGMENTS = ("reference", "sink", "motion", "video", "audio")
#: Slots between possible region starts: 8-bit attention reads values in units of 16 bytes.
ALIGNMENT = 16


@dataclass(frozen=True)
class RoleTables:
    """What the kernels need to know of the tokens of one role.

    Attributes:
        slots: [batch, tokens] int32, the slot that each token's key and value are written to.
        segments: [batch, 5, 2] int32, (start, length) of the regions that the tokens attend to.
        cos: [tokens, head_dim / 2] fp32, see :func:`streamchar.kernels.rope_tables`.
        sin: as ``cos``.
    """

    slots: torch.Tensor
    segments: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor

    def where(self, due: torch.Tensor) -> "RoleTables":
        """Return these tables with nothing written in the rows where ``due``, [batch] bool, is false."""
        return replace(self, slots=torch.where(due[:, None], self.slots, -1))


class KVMemory:
    """The keys and values of ``batch`` sessions, for every layer of the diffusion transformer.

    Attributes:
        batch: rows, one a session; each stands at a point of its own.
        capacity: slots of a row.
        k: per layer [batch, capacity, heads, head_dim], roped keys.
        v: per layer, as ``k``.
        tables: per role, its :class:`RoleTables`.
        regions: per segment, its (start, length) in slots when it is filled.
    """

    def __init__(
        self,
        preset: Preset,
        batch: int = 1,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Allocate the memory, zeroed, with reference, sink and motion absent.

        Args:
            preset: sizes of regions, layers and heads.
            batch: rows, at least 1.
            device: where everything goes.
            dtype: of keys and values, the model's own.

        Raises:
            KernelArgumentError: ``batch`` is below 1 or ``dtype`` is no float that the kernels store.
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
        """Say which conditioning of a row may be attended to, by rewriting device tables in place.

        Work already queued on the current stream sees the old tables, what follows sees the new ones. A role
        always sees the tokens of its own that it is writing.

        Args:
            row: in [0, batch).
            reference: whether the reference has been committed; None leaves it as it is.
            sink: likewise.
            motion: likewise.

        Raises:
            KernelArgumentError: there is no such row.
        """
        self._require_row(row)
        for index, valid in enumerate((reference, sink, motion)):
            if valid is not None:
                length = self.regions[SEGMENTS[index]][1] if valid else 0
                for role in ROLES[index + 1 :]:
                    self.tables[role].segments[row, index, 1].fill_(length)

    def reset(self, row: int) -> None:
        """Forget a row: zero its keys and values, and make reference, sink and motion absent.

        Raises:
            KernelArgumentError: there is no such row.
        """
        self.set_valid(row, reference=False, sink=False, motion=False)
        with torch.no_grad():
            for buffer in (*self.k, *self.v):
                buffer[row].zero_()

    def row(self, index: int) -> "KVMemory":
        """Return a memory of batch 1 that shares the storage and the tables of one row.

        Raises:
            KernelArgumentError: there is no such row.
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
        """Cut the keys and values from the graph that autograd recorded when they were written.

        Training calls it between steps that shall not backpropagate into one another.
        """
        for buffer in (*self.k, *self.v):
            buffer.detach_()

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(buffer.nbytes for buffer in (*self.k, *self.v))

    def _require_row(self, row: int) -> None:
        require(0 <= row < self.batch, "row", f"between 0 and {self.batch - 1} (rows of this memory)", row)

    def _role_tables(self, role: Role, device: torch.device) -> RoleTables:
        written = ("video", "audio") if role == "chunk" else (role,)
        # A role sees what it writes; the conditioning of others starts absent, until set_valid.
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
        """List (time, height, width) of a role's tokens, [tokens, 3]; the chunk's first latent is time 0."""
        picture, chunk = self.preset.picture, self.preset.chunk
        height, width = (size // picture.patch for size in picture.latent_size)
        # Places of a whole sink and a whole motion, whatever part of them is kept: weights know no others.
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
        # One audio token a video frame, so simultaneous tokens share their time.
        return torch.cat((video, audio_positions(self.preset.audio_tokens, picture.temporal_stride)))
