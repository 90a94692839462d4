"""Pretrain the orchestrator on speech: flow matching on audio latents, with supervised pointer and durations.

One linear map must read the velocity of the audio off the orchestrator's states at the chunk's positions,
which makes these states useful as conditions. The map is dropped after this stage.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...codecs.vocoder import Vocoder
from ...config import Preset
from ...data.corpus import Corpus
from ...model.orchestrator import Orchestrator
from ..batches import SpeechBatch, SpeechData, perturbed_prefix, random_speech
from ..distributed.parallel import all_reduce_, randn, world_size
from ..loop import LoopConfig, Trainable
from ..losses.flow import draw_sigmas, interpolate
from .base import SpeechStage

CONFIG = LoopConfig(steps=4000, lr=1e-3, batch=32, matrix_lr=0.01, warmup=200)
#: Noisy versions of a chunk that share one pass over its prefix.
DRAWS = 3
POINTER_WEIGHT, DURATION_WEIGHT = 0.2, 0.3


class SpeechModel(nn.Module):
    """The orchestrator and the linear map from its states to velocities."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.orchestrator = Orchestrator.from_preset(preset)
        self.velocity = nn.Linear(preset.orchestrator.dim, preset.dit.audio_channels)
        nn.init.normal_(self.velocity.weight, std=0.02)
        nn.init.zeros_(self.velocity.bias)


class OrchestratorStage(SpeechStage):
    """Trains the orchestrator to predict audio latents from transcript and history."""

    name = "orchestrator"

    def __init__(
        self, preset: Preset, data: SpeechData, device: torch.device, config: LoopConfig = CONFIG
    ) -> None:
        super().__init__(preset, data, device, config, orchestrator=repr(preset.orchestrator))
        self.model = SpeechModel(preset).to(device)
        self.trainables = {"speech": Trainable(self.model, config)}

    def update(self, step: int, generator: torch.Generator) -> dict[str, float]:
        """Take one step."""
        batch = random_speech(self.preset, self.data, self.config.batch, generator).to(self.device)
        losses = speech_losses(self.model, batch, generator)
        loss = losses["flow"] + POINTER_WEIGHT * losses["pointer"] + DURATION_WEIGHT * losses["durations"]
        norm = self.trainables["speech"].update(loss, step)
        return {**{name: value.item() for name, value in losses.items()}, "norm": norm}


def speech_losses(model: SpeechModel, batch: SpeechBatch, generator: torch.Generator) -> dict[str, Tensor]:
    """Return the flow-matching, pointer and duration losses of a batch.

    Args:
        model: orchestrator and velocity map.
        batch: chunks of speech with their true positions and durations.
        generator: for noise levels, noise, and the errors of progress and history.

    Returns:
        Scalars with a graph. "flow": mean of |v(x, sigma) - (eps - z)|^2, as in
        :func:`streamchar.train.stages.teacher.flow_losses`. "pointer": smooth L1 loss (beta 1 token) of the
        position at the end of each frame. "durations": smooth L1 loss (beta 0.25 frames), averaged over
        tokens, if the orchestrator predicts durations.

    Source: the pointer's smooth L1 on alignment times, StreamChar, arXiv 2605.25659; smooth L1, Fast R-CNN,
    arXiv 1504.08083, equation 3. The predicted durations are our own addition.
    """
    orchestrator = model.orchestrator
    count, device = len(batch.progress), batch.progress.device
    sigma = draw_sigmas((count, DRAWS), generator).to(device)
    noise = randn((count, DRAWS, *batch.audio.shape[1:]), generator).to(device)
    clean = batch.audio[:, None].expand_as(noise)
    prefix = perturbed_prefix(batch, generator)
    with torch.autocast(device.type, torch.bfloat16):
        states, position = orchestrator(prefix, interpolate(clean, noise, sigma), sigma)
        velocity = model.velocity(states)
        losses = {"flow": F.mse_loss(velocity.float(), noise - clean)}
    losses["pointer"] = F.smooth_l1_loss(position, batch.position[:, None].expand_as(position))
    if orchestrator.durations is not None:
        valid = torch.arange(batch.text_ids.shape[1], device=device) < batch.text_lengths[:, None]
        planned = orchestrator.durations(batch.text_ids, valid)
        summed = F.smooth_l1_loss(planned[valid], batch.durations[valid], beta=0.25, reduction="sum")
        # All tokens have equal weight, whichever process they are in.
        losses["durations"] = summed / all_reduce_(valid.sum()) * world_size()
    return losses


@torch.no_grad()
def audio_latents(vocoder: Vocoder, corpus: Corpus) -> Tensor:
    """Encode every recording; return [frames, channels] fp16 on the CPU."""
    parts = []
    device = vocoder.head.weight.device
    for recording in corpus:
        audio = torch.from_numpy(recording.audio.astype(np.float32))[None].to(device) / 32767
        parts.append(vocoder.encode(audio)[0].half().cpu())
    return torch.cat(parts)
