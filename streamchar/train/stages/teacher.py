"""Train the joint audio-video transformer by flow matching: the many-step teacher."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import Preset
from ...model.kv_cache import KVCache
from ...model.orchestrator import Orchestrator
from ..batches import perturbed_prefix
from ..distributed.parallel import rand, randn
from ..joint import AUDIO_WEIGHT, JointBatch, JointData, JointModel, velocities, without_text
from ..loop import LoopConfig, Trainable
from ..losses.flow import draw_sigmas, interpolate
from .base import JointStage

CONFIG = LoopConfig(steps=1500, lr=1e-3, batch=4, matrix_lr=0.02, warmup=20, ema=0.99)
#: Noisy versions of a chunk that share its conditioning.
DRAWS = 3
#: Share of chunks without text. The network learns from them the unconditional prediction that the guidance
#: of the student stage needs.
DROP_TEXT = 0.1


class TeacherStage(JointStage):
    """Trains the joint model to predict velocities of noisy chunks from all their conditioning.

    Args:
        preset: sizes.
        data: recordings with their audio and video latents.
        pretrained: orchestrator and velocity map of the orchestrator stage.
        device: device to train on.
        config: settings of the loop.
    """

    name = "teacher"

    def __init__(
        self,
        preset: Preset,
        data: JointData,
        pretrained: tuple[Orchestrator, nn.Linear],
        device: torch.device,
        config: LoopConfig = CONFIG,
    ) -> None:
        super().__init__(preset, data, device, config)
        self.model = JointModel(preset)
        self.model.start_from(*pretrained)
        self.model.to(device)
        # Frozen: the orchestrator stage has seen far more text than there is video for.
        self.model.orchestrator.requires_grad_(False)
        self.cache = KVCache(preset, config.batch, device, torch.bfloat16)
        self.trainables = {"joint": Trainable(self.model, config)}

    def update(self, step: int, generator: torch.Generator) -> dict[str, float]:
        """Take one step."""
        losses = flow_losses(self.model, self.cache, self.batch(generator), generator)
        norm = self.trainables["joint"].update(losses["video"] + AUDIO_WEIGHT * losses["audio"], step)
        self.cache.detach_()
        return {**{name: value.item() for name, value in losses.items()}, "norm": norm}


def flow_losses(
    model: JointModel, cache: KVCache, batch: JointBatch, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return the flow-matching losses of both modalities: the mean of |v(x, sigma) - (eps - z)|^2.

    Args:
        model: the joint model.
        cache: KV cache with the batch size of ``batch``.
        batch: clean chunks with their conditioning.
        generator: for noise levels, noise, dropped text, and the errors of progress and history.

    Returns:
        "video" and "audio", scalars with a graph, averaged over rows, draws and elements.

    Source: conditional flow matching, arXiv 2210.02747, equation 9, on the straight path of rectified flow,
    arXiv 2209.03003, equation 1; summed over modalities as in StreamChar, arXiv 2605.25659.
    """
    count = len(batch.video)
    sigmas = draw_sigmas((count, DRAWS), generator).to(batch.video.device)
    batch = without_text(batch, rand((count,), generator) < DROP_TEXT)
    prefix = perturbed_prefix(batch.speech, generator)
    targets: list[tuple[Tensor, Tensor]] = []
    noisy: list[tuple[Tensor, Tensor]] = []
    for draw in range(DRAWS):
        clean = batch.video, batch.speech.audio
        noise = tuple(randn(each.shape, generator).to(each.device) for each in clean)
        targets.append((noise[0] - clean[0], noise[1] - clean[1]))
        noisy.append(
            (
                interpolate(clean[0], noise[0], sigmas[:, draw]),
                interpolate(clean[1], noise[1], sigmas[:, draw]),
            )
        )
    x_video, x_audio = zip(*noisy, strict=True)
    made = velocities(model, cache, batch, x_video, x_audio, sigmas, prefix)
    losses = [
        torch.stack(
            [F.mse_loss(v[part], target[part]) for v, target in zip(made, targets, strict=True)]
        ).mean()
        for part in range(2)
    ]
    return {"video": losses[0], "audio": losses[1]}
