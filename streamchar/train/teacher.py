"""Train the joint audio-video transformer by flow matching: the many-step teacher."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import Preset
from ..data.corpus import Corpus
from ..memory import KVMemory
from ..orchestrator import Orchestrator
from .flow import draw_sigmas, interpolate
from .joint import AUDIO_WEIGHT, JointBatch, JointModel, VideoLatents, joint_batch, velocities, without_text
from .loop import LoopConfig, Stage, Trained
from .orchestrator import unsure
from .parallel import rand, randn

CONFIG = LoopConfig(steps=1500, lr=1e-3, batch=4, matrix_lr=0.02, warmup=20, ema=0.99)
#: Noisy versions of a chunk that share its conditioning.
DRAWS = 3
#: Share of chunks whose text is kept from the network, so that it knows speech that says nothing in
#: particular: the student is led away from that.
DROP_TEXT = 0.1


class TeacherStage(Stage):
    """Noisy chunks to velocities, given transcript, history, reference, sink and motion.

    Args:
        preset: sizes.
        corpus: recordings.
        audio: audio latents of the corpus, [frames, channels].
        video: video latents of some of its recordings.
        pretrained: orchestrator and velocity map of the speech stage.
        device: where to train.
        config: of the loop.
    """

    name = "teacher"

    def __init__(
        self,
        preset: Preset,
        corpus: Corpus,
        audio: Tensor,
        video: VideoLatents,
        pretrained: tuple[Orchestrator, nn.Linear],
        device: torch.device,
        config: LoopConfig = CONFIG,
    ) -> None:
        about = {"corpus": corpus.digest, "dit": repr(preset.dit), "videos": len(video)}
        super().__init__(config, about)
        torch.manual_seed(config.seed)
        self.preset, self.corpus, self.audio, self.video, self.device = preset, corpus, audio, video, device
        self.model = JointModel(preset)
        self.model.start_from(*pretrained)
        self.model.to(device)
        # The speech stage has seen far more text than there is video for.
        self.model.orchestrator.requires_grad_(False)
        self.memory = KVMemory(preset, config.batch, device, torch.bfloat16)
        self.trained = {"joint": Trained(self.model, config)}

    def update(self, step: int, generator: torch.Generator) -> dict[str, float]:
        """Take one step."""
        batch = joint_batch(
            self.preset, self.corpus, self.audio, self.video, self.config.batch, generator
        ).to(self.device)
        losses = flow_losses(self.model, self.memory, batch, generator)
        norm = self.trained["joint"].update(losses["video"] + AUDIO_WEIGHT * losses["audio"], step)
        self.memory.detach_()
        return {**{name: value.item() for name, value in losses.items()}, "norm": norm}


def flow_losses(
    model: JointModel, memory: KVMemory, batch: JointBatch, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return the flow-matching losses of both modalities: the mean of |v(x, sigma) - (eps - z)|^2.

    Args:
        model: whose velocities are judged.
        memory: as large as the batch.
        batch: clean chunks with what conditions them.
        generator: of levels, noise, and what is left out.

    Returns:
        "video" and "audio", scalars with a graph, means over rows, draws and elements.

    Source: conditional flow matching, arXiv 2210.02747, equation 9, on the straight path of rectified flow,
    arXiv 2209.03003, equation 1; summed over modalities as in StreamChar, arXiv 2605.25659.
    """
    count = len(batch.video)
    sigmas = draw_sigmas((count, DRAWS), generator).to(batch.video.device)
    batch = without_text(batch, rand((count,), generator) < DROP_TEXT)
    progress, history = unsure(batch.speech, generator)
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
    made = velocities(model, memory, batch, x_video, x_audio, sigmas, progress, history)
    losses = [
        torch.stack(
            [F.mse_loss(v[part], target[part]) for v, target in zip(made, targets, strict=True)]
        ).mean()
        for part in range(2)
    ]
    return {"video": losses[0], "audio": losses[1]}
