"""Shared parts of the joint stages: their data, their model, and the denoising of chunks against a KV cache.

Training writes and reads the same kind of cache as the engine. A batch's conditioning is committed once, and
several noisy versions of its chunks are denoised against it, which shares the cost of the longer part.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from rich.progress import track
from torch import Tensor, nn

from ..codecs.vae import Vae
from ..config import Preset
from ..data.corpus import Corpus
from ..data.renderer.character import Identity, neutral
from ..model.dit import JointDiT, Modulation
from ..model.kv_cache import KVCache
from ..model.orchestrator import Orchestrator
from ..model.packing import Prefix
from .batches import SpeechBatch, SpeechData, TensorBatch, speech_batch
from .clips import draw, pose
from .distributed.parallel import world_size
from .distributed.sharding import Shardable, shard_layers

#: Shares of chunks without each kind of conditioning, so that the network does not rely on one alone.
DROP_REFERENCE, DROP_SINK, DROP_MOTION = 0.05, 0.1, 0.05
#: Highest level of noise on sink and motion, which the network itself generates at run time.
CONDITIONING_NOISE = 0.15
#: Share of chunks that open a session.
OPENING = 0.15
#: Weight of the audio loss relative to the video loss.
AUDIO_WEIGHT = 1.0


@dataclass(frozen=True)
class VideoLatents:
    """Video latents of the first recordings of a corpus; recording i shows identity i.

    Attributes:
        latents: [latents, channels, height, width] fp16, all recordings concatenated; the first latent of
            each recording is its reference image.
        bounds: [recordings + 1], index of each recording's first latent, and the total.
        mean: [channels], mean of the latents.
        std: [channels], standard deviation of the latents.
    """

    latents: Tensor
    bounds: list[int]
    mean: Tensor
    std: Tensor

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def of(self, recording: int) -> tuple[Tensor, Tensor]:
        """Return the normalised latents of a recording, fp32.

        Returns:
            The reference image, [1, channels, height, width], and the video, [latents, ...].
        """
        part = self.latents[self.bounds[recording] : self.bounds[recording + 1]].float()
        part = (part - self.mean[:, None, None]) / self.std[:, None, None]
        return part[:1], part[1:]


@torch.no_grad()
def encode_video(vae: Vae, corpus: Corpus, recordings: int, size: tuple[int, int]) -> VideoLatents:
    """Draw and encode the first ``recordings`` recordings of a corpus; recording i shows identity i."""
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


@dataclass(frozen=True)
class JointData(SpeechData):
    """A corpus with its audio latents, and the video latents of some of its recordings."""

    video: VideoLatents


class JointModel(Shardable):
    """The orchestrator in fp32 and the transformer in bf16, their dtypes during training."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.orchestrator = Orchestrator.from_preset(preset)
        self.dit = JointDiT(preset, backend="torch").bfloat16()
        self._dtype_before_sharding: torch.dtype | None = None

    @property
    def sharded(self) -> bool:
        """Whether the transformer's weights are sharded over processes."""
        return self._dtype_before_sharding is not None

    @property
    def dtype(self) -> torch.dtype:
        """Dtype that the transformer computes in, sharded or not."""
        return self._dtype_before_sharding or self.dit.table.dtype

    def shard(self) -> None:
        """Shard the transformer's weights; every process keeps the whole orchestrator.

        The joint stages freeze the orchestrator, except for its pointer in rollouts. Without gradients and
        moments there is little to save: it takes 4 bytes per weight, a trained weight takes 22.
        """
        self._dtype_before_sharding = self.dtype
        # A block writes to its fifth and sixth argument, the keys and values.
        shard_layers(self.dit, self.dit.blocks, ("modulation", "commit", "step"), written=(4, 5))

    def start_from(self, orchestrator: Orchestrator, velocity: nn.Linear) -> None:
        """Start from a pretrained orchestrator, with audio velocities that are close to its own.

        Audio tokens enter the transformer as conditions plus a small share of the noisy audio, and leave
        through the map that read velocities off the conditions. The blocks between start near the identity.
        """
        self.orchestrator.load_state_dict(orchestrator.state_dict())
        with torch.no_grad():
            nn.init.eye_(self.dit.condition_in.weight)
            self.dit.audio_in.weight.mul_(0.2)
            self.dit.audio_out.weight.copy_(velocity.weight)
            self.dit.audio_out.bias.copy_(velocity.bias)


@dataclass(frozen=True)
class JointBatch(TensorBatch):
    """Chunks with all their conditioning, one chunk per row.

    Attributes:
        speech: transcript, history and audio.
        reference: [batch, 1, channels, height, width] fp32, latents of the reference image.
        sink: [batch, sink_latents, channels, height, width] fp32, zeros in a chunk that opens a session.
        motion: [batch, motion_latents, channels, height, width] fp32, zeros in a chunk that opens a session.
        video: [batch, latent_frames, channels, height, width] fp32, clean video latents of the chunk.
        valid: [batch, 3] bool, whether the chunk attends to reference, sink and motion.
    """

    speech: SpeechBatch
    reference: Tensor
    sink: Tensor
    motion: Tensor
    video: Tensor
    valid: Tensor


def joint_batch(preset: Preset, data: JointData, count: int, generator: torch.Generator) -> JointBatch:
    """Draw ``count`` chunks of recordings that have video."""
    count *= world_size()
    video = data.video
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
        places.append((data.corpus[index], start * stride))
    for name in ("sink", "motion"):
        level = torch.rand((count, 1, 1, 1, 1), generator=generator) * CONDITIONING_NOISE
        parts[name] = parts[name] + level * torch.randn(parts[name].shape, generator=generator)
    kept = torch.randint(2, 7, (count,), generator=generator).tolist()
    speech = speech_batch(preset, places, data.audio, kept)
    batch = JointBatch(speech, torch.stack(references), parts["sink"], parts["motion"], parts["video"], valid)
    return batch.local()


def without_text(batch: JointBatch, rows: Tensor) -> JointBatch:
    """Return the batch with empty transcripts in the rows where ``rows``, [batch] bool, is true."""
    speech = batch.speech
    lengths, progress = (x.masked_fill(rows.to(x.device), 0) for x in (speech.text_lengths, speech.progress))
    return replace(batch, speech=replace(speech, text_lengths=lengths, progress=progress))


def _start(length: int, frames: int, generator: torch.Generator) -> int:
    """Draw the first latent of a chunk: 0, or one that has at least a whole chunk before it."""
    room = length - frames
    if room < frames or torch.rand((), generator=generator) < OPENING:
        return 0
    return int(torch.randint(frames, room + 1, (), generator=generator))


def commit(dit: JointDiT, cache: KVCache, batch: JointBatch, modulation: Modulation) -> None:
    """Write a batch's conditioning into the cache, in block-causal order."""
    for index, role in enumerate(("reference", "sink", "motion")):
        dit.commit(role, getattr(batch, role), modulation, cache)  # type: ignore[arg-type]
        for row, valid in enumerate(batch.valid[:, index].tolist()):
            cache.set_valid(row, **{role: valid})


def velocities(
    model: JointModel,
    cache: KVCache,
    batch: JointBatch,
    x_video: Sequence[Tensor],
    x_audio: Sequence[Tensor],
    sigmas: Tensor,
    prefix: Prefix,
    *,
    committed: bool = False,
) -> list[tuple[Tensor, Tensor]]:
    """Predict the velocities of several noisy versions ("draws") of a batch's chunks.

    Args:
        model: the joint model.
        cache: KV cache with the batch size of ``batch``. The caller detaches it after the backward pass.
        batch: chunks with their reference, sink and motion.
        x_video: per draw, [batch, latent_frames, channels, height, width], noisy video latents.
        x_audio: per draw, [batch, audio_tokens, channels], noisy audio latents.
        sigmas: [batch, draws], noise levels.
        prefix: transcript, history and progress of the chunks.
        committed: whether ``cache`` already holds this model's conditioning of this batch.

    Returns:
        Per draw, the video and the audio velocity, fp32.
    """
    device = sigmas.device
    count, draws = sigmas.shape
    with torch.autocast(device.type, torch.bfloat16):
        conditions, _ = model.orchestrator(prefix, torch.stack(list(x_audio), 1), sigmas)
    modulation = model.dit.modulation(sigmas.T.flatten())
    if not committed:
        commit(model.dit, cache, batch, modulation)
    made = []
    for index in range(draws):
        step = torch.arange(count, dtype=torch.int32, device=device) + index * count
        v = model.dit.step(x_video[index], x_audio[index], conditions[:, index], step, modulation, cache)
        made.append((v[0].float(), v[1].float()))
    return made
