"""What the stages of the joint model share: its data, its parts, and chunks denoised through the memory.

The memory that training writes and reads is the engine's own. Conditioning is committed once for a batch, and
several noisy versions of its chunks are denoised against it, which shares the cost of the longer part.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from rich.progress import track
from torch import Tensor, nn

from ..codecs.vae import Vae
from ..config import Preset
from ..data.character import Identity, neutral
from ..data.corpus import Corpus
from ..memory import KVMemory
from ..model import JointDiT, Modulation
from ..orchestrator import Orchestrator
from .batches import SpeechBatch, speech_batch
from .clips import draw, pose
from .parallel import own, world
from .sharding import Shardable, shard_layers

#: How often conditioning is left out, so that none is leant on alone.
DROP_REFERENCE, DROP_SINK, DROP_MOTION = 0.05, 0.1, 0.05
#: Noise on sink and motion, at most: at run time they are what the network itself made.
CONDITIONING_NOISE = 0.15
#: Share of chunks that open a session.
OPENING = 0.15
AUDIO_WEIGHT = 1.0


@dataclass(frozen=True)
class VideoLatents:
    """Video latents of the first recordings of a corpus, each drawn with an identity of its own.

    Attributes:
        latents: [latents, channels, height, width] fp16, of all recordings one after another, each with its
            reference in front.
        bounds: where each begins, and the end of the last.
        mean: [channels], of the posterior means.
        std: [channels].
    """

    latents: Tensor
    bounds: list[int]
    mean: Tensor
    std: Tensor

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def of(self, recording: int) -> tuple[Tensor, Tensor]:
        """Return the reference's latent and those of the recording, normalised, fp32."""
        part = self.latents[self.bounds[recording] : self.bounds[recording + 1]].float()
        part = (part - self.mean[:, None, None]) / self.std[:, None, None]
        return part[:1], part[1:]


@torch.no_grad()
def encode_video(vae: Vae, corpus: Corpus, recordings: int, size: tuple[int, int]) -> VideoLatents:
    """Draw and encode recordings of a corpus; recording i shows identity i."""
    parts, bounds = [], [0]
    device = vae.latents_mean.device
    for index in track(range(recordings), description="video latents"):
        identity = Identity.sample(index)
        motion = torch.cat((neutral(), pose(corpus[index], index)))
        frames = draw(identity, motion, size, device)
        with torch.autocast(device.type, torch.bfloat16):
            latents = vae.encode(frames[None])[0]
        parts.append(latents.half().cpu())
        bounds.append(bounds[-1] + len(latents))
    whole = torch.cat(parts)
    wide = whole.float()
    return VideoLatents(whole, bounds, wide.mean((0, 2, 3)), wide.std((0, 2, 3)))


class JointModel(Shardable):
    """Orchestrator and transformer, in the dtypes they are trained in."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.orchestrator = Orchestrator.from_preset(preset)
        self.dit = JointDiT(preset, backend="torch").bfloat16()
        self._narrow: torch.dtype | None = None

    @property
    def split(self) -> bool:
        """Whether the transformer's weights are split over processes."""
        return self._narrow is not None

    @property
    def dtype(self) -> torch.dtype:
        """What the transformer computes in, split or not."""
        return self._narrow or self.dit.table.dtype

    def shard(self) -> None:
        """Split the transformer's weights; each process keeps the orchestrator whole.

        It is frozen in the joint stages, but for the pointer in rollouts. Without gradients and moments there
        is little to split: 4 bytes a weight against the 22 of one that is trained.
        """
        self._narrow = self.dtype
        # A block writes its keys and values, which are its fifth and sixth argument.
        shard_layers(self.dit, self.dit.blocks, ("modulation", "commit", "step"), written=(4, 5))

    def start_from(self, orchestrator: Orchestrator, velocity: nn.Linear) -> None:
        """Take over a pretrained orchestrator, and begin with audio velocities that are its own.

        Audio tokens enter as conditions plus a little of the noisy audio, and leave through the map that read
        velocities off the conditions; what lies between starts near the identity.
        """
        self.orchestrator.load_state_dict(orchestrator.state_dict())
        with torch.no_grad():
            nn.init.eye_(self.dit.condition_in.weight)
            self.dit.audio_in.weight.mul_(0.2)
            self.dit.audio_out.weight.copy_(velocity.weight)
            self.dit.audio_out.bias.copy_(velocity.bias)


@dataclass(frozen=True)
class JointBatch:
    """Chunks with everything that conditions them, one a row.

    Attributes:
        speech: transcript, history and audio.
        reference: [batch, 1, channels, height, width] fp32.
        sink: [batch, sink_latents, ...], zeros where the chunk opens the session.
        motion: [batch, motion_latents, ...], likewise.
        video: [batch, latent_frames, ...], the clean chunk.
        valid: [batch, 3] bool, whether reference, sink and motion may be attended to.
    """

    speech: SpeechBatch
    reference: Tensor
    sink: Tensor
    motion: Tensor
    video: Tensor
    valid: Tensor

    def to(self, device: torch.device) -> "JointBatch":
        """Return the batch on a device."""
        return JointBatch(**{each.name: getattr(self, each.name).to(device) for each in fields(self)})

    def own(self) -> "JointBatch":
        """Return this process's rows of a batch that was drawn for all."""
        rows = {each.name: own(getattr(self, each.name)) for each in fields(self) if each.name != "speech"}
        return JointBatch(speech=self.speech.own(), **rows)


def joint_batch(
    preset: Preset,
    corpus: Corpus,
    audio: Tensor,
    video: VideoLatents,
    count: int,
    generator: torch.Generator,
) -> JointBatch:
    """Draw chunks of recordings that have video."""
    count *= world()
    chunk = preset.chunk
    frames, stride = chunk.latent_frames, preset.picture.temporal_stride
    lengths = torch.tensor(video.bounds).diff().double() - 1 - frames
    chosen = torch.multinomial(lengths.clamp(min=0), count, replacement=True, generator=generator).tolist()
    shape = (count, frames, preset.picture.channels, *preset.picture.latent_size)
    parts: dict[str, Tensor] = {name: torch.zeros(shape) for name in ("sink", "motion", "video")}
    parts["sink"], parts["motion"] = (
        parts[name][:, :size]
        for name, size in (("sink", chunk.sink_latents), ("motion", chunk.motion_latents))
    )
    references, places = [], []
    valid = torch.rand((count, 3), generator=generator) >= torch.tensor(
        [DROP_REFERENCE, DROP_SINK, DROP_MOTION]
    )
    for row, index in enumerate(chosen):
        first, latents = video.of(index)
        start = _start(len(latents), frames, generator)
        references.append(first)
        parts["video"][row] = latents[start : start + frames]
        if start:
            parts["sink"][row] = latents[: chunk.sink_latents]
            parts["motion"][row] = latents[start - chunk.motion_latents : start]
        else:
            valid[row, 1:] = False
        places.append((corpus[index], start * stride))
    for name in ("sink", "motion"):
        level = torch.rand((count, 1, 1, 1, 1), generator=generator) * CONDITIONING_NOISE
        parts[name] = parts[name] + level * torch.randn(parts[name].shape, generator=generator)
    kept = torch.randint(2, 7, (count,), generator=generator).tolist()
    speech = speech_batch(preset, places, audio, kept)
    batch = JointBatch(speech, torch.stack(references), parts["sink"], parts["motion"], parts["video"], valid)
    return batch.own()


def without_text(batch: JointBatch, rows: Tensor) -> JointBatch:
    """Return a batch that has nothing to say where ``rows``, [batch] bool, is true."""
    speech = batch.speech
    lengths, progress = (x.masked_fill(rows.to(x.device), 0) for x in (speech.text_lengths, speech.progress))
    return replace(batch, speech=replace(speech, text_lengths=lengths, progress=progress))


def _start(length: int, frames: int, generator: torch.Generator) -> int:
    """Draw the latent at which a chunk starts: 0, or any that leaves a whole chunk before it."""
    room = length - frames
    if room < frames or torch.rand((), generator=generator) < OPENING:
        return 0
    return int(torch.randint(frames, room + 1, (), generator=generator))


def commit(dit: JointDiT, memory: KVMemory, batch: JointBatch, modulation: Modulation) -> None:
    """Write a batch's conditioning into the memory, in block-causal order."""
    for index, role in enumerate(("reference", "sink", "motion")):
        dit.commit(role, getattr(batch, role), modulation, memory)  # type: ignore[arg-type]
        for row, valid in enumerate(batch.valid[:, index].tolist()):
            memory.set_valid(row, **{role: valid})


def velocities(
    model: JointModel,
    memory: KVMemory,
    batch: JointBatch,
    x_video: Sequence[Tensor],
    x_audio: Sequence[Tensor],
    sigmas: Tensor,
    progress: Tensor,
    history: Tensor,
    *,
    committed: bool = False,
) -> list[tuple[Tensor, Tensor]]:
    """Predict the velocities of several noisy versions of a batch's chunks.

    Args:
        model: whose.
        memory: as large as the batch; its graph is the caller's to cut.
        batch: what conditions the chunks.
        x_video: per draw [batch, latent_frames, channels, height, width].
        x_audio: per draw [batch, audio_tokens, channels].
        sigmas: [batch, draws].
        progress: [batch], tokens said.
        history: [batch, history_tokens, channels].
        committed: whether the memory holds this model's conditioning for this batch already.

    Returns:
        Per draw, video and audio velocity in fp32.
    """
    speech, device = batch.speech, sigmas.device
    count, draws = sigmas.shape
    with torch.autocast(device.type, torch.bfloat16):
        conditions, _ = model.orchestrator(
            speech.text_ids,
            speech.text_lengths,
            history,
            speech.history_lengths,
            torch.stack(list(x_audio), 1),
            sigmas,
            progress,
        )
    modulation = model.dit.modulation(sigmas.T.flatten())
    if not committed:
        commit(model.dit, memory, batch, modulation)
    made = []
    for index in range(draws):
        step = torch.arange(count, dtype=torch.int32, device=device) + index * count
        v = model.dit.step(x_video[index], x_audio[index], conditions[:, index], step, modulation, memory)
        made.append((v[0].float(), v[1].float()))
    return made
