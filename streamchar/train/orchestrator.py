"""Pretrain the orchestrator on speech: flow matching on audio latents, pointer and durations supervised.

The states at the chunk's positions must tell the velocity of the audio through one linear map, which is what
makes them conditions worth having; the map itself is dropped afterwards.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..codecs.vocoder import Vocoder
from ..config import Preset
from ..data.corpus import Corpus
from ..orchestrator import Orchestrator
from .batches import SpeechBatch, random_recordings, speech_batch
from .flow import draw_sigmas, interpolate
from .loop import LoopConfig, Stage, Trained
from .parallel import rand, randint, randn, share, total_, world

CONFIG = LoopConfig(steps=4000, lr=1e-3, batch=32, matrix_lr=0.01, warmup=200)
#: Noisy versions of a chunk that share one pass over its prefix.
DRAWS = 3
POINTER_WEIGHT, DURATION_WEIGHT = 0.2, 0.3
#: Words of the window already said: at run time four, or fewer at the start.
KEPT_WORDS = (2, 6)
#: Error of the place that the chunk is told it starts at, in tokens: the pointer is not exact either.
PROGRESS_NOISE = 0.4
#: Noise on the history, at most: at run time it is what the network itself said.
HISTORY_NOISE = 0.3
#: Share of chunks without history, as after an interruption of a voice not heard before.
NO_HISTORY = 0.05


class SpeechModel(nn.Module):
    """The orchestrator with the linear map from its states to velocities."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.orchestrator = Orchestrator.from_preset(preset)
        self.velocity = nn.Linear(preset.orchestrator.dim, preset.dit.audio_channels)
        nn.init.normal_(self.velocity.weight, std=0.02)
        nn.init.zeros_(self.velocity.bias)


class OrchestratorStage(Stage):
    """Transcript and history to audio latents.

    Args:
        preset: sizes.
        corpus: recordings.
        latents: [frames, channels], of all recordings one after another.
        device: where to train.
        config: of the loop.
    """

    name = "orchestrator"

    def __init__(
        self,
        preset: Preset,
        corpus: Corpus,
        latents: Tensor,
        device: torch.device,
        config: LoopConfig = CONFIG,
    ) -> None:
        about = {"corpus": corpus.digest, "orchestrator": repr(preset.orchestrator)}
        super().__init__(config, about)
        torch.manual_seed(config.seed)
        self.preset, self.corpus, self.latents, self.device = preset, corpus, latents, device
        self.model = SpeechModel(preset).to(device)
        self.trained = {"speech": Trained(self.model, config)}

    def update(self, step: int, generator: torch.Generator) -> dict[str, float]:
        """Take one step."""
        batch = random_speech(self.preset, self.corpus, self.latents, self.config.batch, generator)
        batch = batch.to(self.device)
        losses = speech_losses(self.model, batch, generator)
        loss = losses["flow"] + POINTER_WEIGHT * losses["pointer"] + DURATION_WEIGHT * losses["durations"]
        norm = self.trained["speech"].update(loss, step)
        return {**{name: value.item() for name, value in losses.items()}, "norm": norm}


def speech_losses(model: SpeechModel, batch: SpeechBatch, generator: torch.Generator) -> dict[str, Tensor]:
    """Return the flow-matching, pointer and duration losses of a batch.

    Args:
        model: orchestrator and velocity map.
        batch: chunks of speech with their true places and durations.
        generator: of levels, noise, and errors of place and history.

    Returns:
        Scalars with a graph. "flow": mean of |v(x, sigma) - (eps - z)|^2, as in :func:`.teacher.flow_losses`;
        "pointer": smooth L1 (beta 1 token) of the position at the end of each frame; "durations": smooth L1
        (beta 0.25 frames), a mean over tokens, where the orchestrator plans them.

    Source: the pointer's smooth L1 on alignment times, StreamChar, arXiv 2605.25659; smooth L1, Fast R-CNN,
    arXiv 1504.08083, equation 3. Planned durations are ours.
    """
    orchestrator = model.orchestrator
    count, device = len(batch.progress), batch.progress.device
    sigma = draw_sigmas((count, DRAWS), generator).to(device)
    noise = randn((count, DRAWS, *batch.audio.shape[1:]), generator).to(device)
    clean = batch.audio[:, None].expand_as(noise)
    progress, history = unsure(batch, generator)
    with torch.autocast(device.type, torch.bfloat16):
        states, position = orchestrator(
            batch.text_ids,
            batch.text_lengths,
            history,
            batch.history_lengths,
            interpolate(clean, noise, sigma),
            sigma,
            progress,
        )
        velocity = model.velocity(states)
        losses = {"flow": F.mse_loss(velocity.float(), noise - clean)}
    losses["pointer"] = F.smooth_l1_loss(position, batch.position[:, None].expand_as(position))
    if orchestrator.durations is not None:
        valid = torch.arange(batch.text_ids.shape[1], device=device) < batch.text_lengths[:, None]
        planned = orchestrator.durations(batch.text_ids, valid)
        summed = F.smooth_l1_loss(planned[valid], batch.durations[valid], beta=0.25, reduction="sum")
        # Every token counts alike, whichever process it is in.
        losses["durations"] = summed / total_(valid.sum()) * world()
    return losses


def unsure(batch: SpeechBatch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return progress, [batch], and history, as in the batch, as a session knows them: not quite right."""
    count, device = len(batch.progress), batch.progress.device
    jitter = randn((count,), generator).to(device) * PROGRESS_NOISE
    progress = (batch.progress + jitter).clamp(min=0).minimum(batch.text_lengths.float())
    level = rand((count, 1, 1), generator) * HISTORY_NOISE
    return progress, batch.history + (level * randn(batch.history.shape, generator)).to(device)


def random_speech(
    preset: Preset, corpus: Corpus, latents: Tensor, count: int, generator: torch.Generator
) -> SpeechBatch:
    """Draw chunks of a corpus, some at the start of a recording and some past its last word."""
    places = []
    for recording in random_recordings(corpus, count * world(), generator):
        room = max(recording.frames - preset.audio_tokens // 2, 1)
        # Starts are what a listener notices first, and as many as one chunk in eight of a short text.
        early = torch.rand((), generator=generator) < 0.15
        place = torch.randint(1 if early else room, (), generator=generator)
        places.append((recording, int(place)))
    kept = KEPT_WORDS[0] + randint(KEPT_WORDS[1] + 1 - KEPT_WORDS[0], (count,), generator)
    batch = speech_batch(preset, [places[row] for row in share(count)], latents, kept.tolist())
    forgotten = rand((count,), generator) < NO_HISTORY
    batch.history_lengths.masked_fill_(forgotten, 0)
    return batch


@torch.no_grad()
def audio_latents(vocoder: Vocoder, corpus: Corpus) -> Tensor:
    """Encode every recording, [frames, channels] fp16 on the CPU."""
    parts = []
    device = vocoder.head.weight.device
    for recording in corpus:
        audio = torch.from_numpy(recording.audio.astype(np.float32))[None].to(device) / 32767
        parts.append(vocoder.encode(audio)[0].half().cpu())
    return torch.cat(parts)
