"""Distil the sampler: a student of four steps, by distribution matching against the many-step teacher.

The student starts from the teacher and is first trained to predict the clean data at its own four noise
levels (regression warm-up). Then it generates chunks as it will at inference, ending at a random step. The
frozen teacher and a copy of it, the score network, which is trained on the student's samples, give the
direction in which to move them. The teacher's audio prediction is guided by the text, so that the student
speaks more clearly than the recordings alone would teach it.

Student and score network are updated equally often and at the same rate: one update each per step (in a
rollout, per chunk). The papers' two time scales are for networks of their size: DMD2 (arXiv 2405.14867,
section 4.2) takes five score updates per generator update; StreamChar's stage II trains the score network at
a fifth of the student's rate.

Source: StreamChar (arXiv 2605.25659), distillation stage I; the method, see
:mod:`streamchar.train.losses.distribution_matching`.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ...config import Preset
from ...model.kv_cache import KVCache
from ...model.packing import Prefix
from ..batches import perturbed_prefix
from ..distributed.parallel import randint, randn
from ..joint import JointBatch, JointData, JointModel, velocities, without_text
from ..loop import LoopConfig, Trainable
from ..losses.distribution_matching import distribution_matching_loss, guided
from ..losses.flow import draw_sigmas, interpolate, to_clean
from .base import JointStage

CONFIG = LoopConfig(steps=180, lr=2e-4, batch=4, matrix_lr=0.002, warmup=20, ema=0.99)
#: Share of the run with the regression loss alone.
WARM_UP = 0.4
#: Learning rate of the score network relative to the student's.
SCORE_RATE = 1.0
#: Guidance scale of the teacher's audio prediction by the text; 1 is the plain prediction.
GUIDANCE = 2.0
#: Weight of the regression loss after the warm-up; it keeps the few steps of this stage from undoing it.
ANCHOR = 0.5

#: A video and an audio tensor.
Pair = tuple[Tensor, Tensor]


class StudentStage(JointStage):
    """Trains a copy of the teacher to generate a chunk in the few steps of the preset's sampler.

    Args:
        preset: sizes and schedule.
        data: recordings with their audio and video latents.
        teacher: the trained teacher; not changed.
        device: device to train on.
        config: settings of the loop.
        start: initial student and score network; copies of the teacher by default.
        trains_pointer: whether the student's pointer is trained; the rest of its orchestrator is frozen.
    """

    name = "student"

    def __init__(
        self,
        preset: Preset,
        data: JointData,
        teacher: JointModel,
        device: torch.device,
        config: LoopConfig = CONFIG,
        start: tuple[JointModel, JointModel] | None = None,
        trains_pointer: bool = False,
    ) -> None:
        super().__init__(preset, data, device, config)
        self.teacher = teacher.to(device).requires_grad_(False)
        self.student, self.score = JointModel(preset).to(device), JointModel(preset).to(device)
        for model, source in zip((self.student, self.score), start or (teacher, teacher), strict=True):
            model.load_state_dict(source.state_dict())
            model.orchestrator.requires_grad_(False)
        self.student.orchestrator.pointer.requires_grad_(trains_pointer)
        self.caches = {
            name: KVCache(preset, config.batch, device, torch.bfloat16)
            for name in ("student", "score", "teacher")
        }
        self.levels = (*preset.sampler.sigmas, 0.0)
        scores = replace(config, lr=config.lr * SCORE_RATE, matrix_lr=config.matrix_lr * SCORE_RATE)
        self.trainables = {"joint": Trainable(self.student, config), "score": Trainable(self.score, scores)}

    def update(self, step: int, generator: torch.Generator) -> dict[str, float]:
        """Take one step of the student and, after the warm-up, one of the score network."""
        batch = self.batch(generator)
        prefix = perturbed_prefix(batch.speech, generator)
        loss = anchor = self._regression(batch, prefix, generator)
        logged = {"anchor": float(anchor.detach())}
        if step >= WARM_UP * self.config.steps:
            made = self._generate(batch, prefix, generator)
            matching = self._matching(batch, prefix, made, generator)
            loss = matching + ANCHOR * anchor
            logged["matching"] = float(matching.detach())
        logged["norm"] = self.trainables["joint"].update(loss, step)
        self.caches["student"].detach_()
        if step >= WARM_UP * self.config.steps:
            score = self._score_loss(batch, prefix, (made[0].detach(), made[1].detach()), generator)
            self.trainables["score"].update(score, step)
            self.caches["score"].detach_()
            logged["score"] = float(score.detach())
        return logged

    def _velocity(
        self, name: str, batch: JointBatch, prefix: Prefix, x: Pair, sigma: Tensor, committed: bool = False
    ) -> Pair:
        model = {"student": self.student, "score": self.score, "teacher": self.teacher}[name]
        made = velocities(
            model, self.caches[name], batch, (x[0],), (x[1],), sigma[:, None], prefix, committed=committed
        )
        return made[0]

    def _clean(
        self, name: str, batch: JointBatch, prefix: Prefix, x: Pair, sigma: Tensor, committed: bool = False
    ) -> Pair:
        v = self._velocity(name, batch, prefix, x, sigma, committed)
        return to_clean(x[0], v[0], sigma), to_clean(x[1], v[1], sigma)

    def _noise(self, batch: JointBatch, generator: torch.Generator) -> Pair:
        video, audio = batch.video.shape, batch.speech.audio.shape
        noise = randn(video, generator), randn(audio, generator)
        return noise[0].to(self.device), noise[1].to(self.device)

    def _level(self, count: int, index: int) -> Tensor:
        return torch.full((count,), self.levels[index], device=self.device)

    def _regression(self, batch: JointBatch, prefix: Prefix, generator: torch.Generator) -> Tensor:
        """Return the flow-matching loss at the student's noise levels, one drawn per row.

        It is the sum over modalities, as in :func:`streamchar.train.stages.teacher.flow_losses`.
        """
        steps = self.preset.sampler.steps
        chosen = randint(steps, (len(batch.video),), generator)
        sigma = torch.tensor(self.levels)[chosen].to(self.device)
        noise, clean = self._noise(batch, generator), (batch.video, batch.speech.audio)
        x = interpolate(clean[0], noise[0], sigma), interpolate(clean[1], noise[1], sigma)
        v = self._velocity("student", batch, prefix, x, sigma)
        return F.mse_loss(v[0], noise[0] - clean[0]) + F.mse_loss(v[1], noise[1] - clean[1])

    def _generate(self, batch: JointBatch, prefix: Prefix, generator: torch.Generator) -> Pair:
        """Generate chunks as at inference, ending at a random step; only that step has a graph."""
        count = len(batch.video)
        last = int(torch.randint(self.preset.sampler.steps, (), generator=generator))
        x = self._noise(batch, generator)
        with torch.no_grad():
            for index in range(last):
                sigma = self._level(count, index)
                clean = self._clean("student", batch, prefix, x, sigma, committed=index > 0)
                following = self._level(count, index + 1)
                noise = self._noise(batch, generator)
                x = interpolate(clean[0], noise[0], following), interpolate(clean[1], noise[1], following)
        return self._clean("student", batch, prefix, x, self._level(count, last))

    def _matching(self, batch: JointBatch, prefix: Prefix, made: Pair, generator: torch.Generator) -> Tensor:
        """Return the distribution matching loss of generated chunks, summed over modalities.

        The score network predicts for the generator, the teacher for the data; the teacher's audio is guided
        by the text.
        """
        sigma = draw_sigmas((len(batch.video),), generator).clamp(0.02, 0.98).to(self.device)
        noise = self._noise(batch, generator)
        with torch.no_grad():
            x = interpolate(made[0], noise[0], sigma), interpolate(made[1], noise[1], sigma)
            own, real = (self._clean(name, batch, prefix, x, sigma) for name in ("score", "teacher"))
            silent = without_text(batch, torch.ones(len(sigma), dtype=torch.bool))
            blank = silent.speech.prefix(history=prefix.history)
            plain = self._clean("teacher", silent, blank, x, sigma, committed=True)
            real = real[0], guided(real[1], plain[1], GUIDANCE)
        losses = [distribution_matching_loss(m, r, o) for m, r, o in zip(made, real, own, strict=True)]
        return torch.stack(losses).sum()

    def _score_loss(
        self, batch: JointBatch, prefix: Prefix, made: Pair, generator: torch.Generator
    ) -> Tensor:
        """Return the flow-matching loss of the score network on generated chunks.

        Source: DMD, arXiv 2311.18828, equation 6, for velocities.
        """
        sigma = draw_sigmas((len(batch.video),), generator).to(self.device)
        noise = self._noise(batch, generator)
        x = interpolate(made[0], noise[0], sigma), interpolate(made[1], noise[1], sigma)
        v = self._velocity("score", batch, prefix, x, sigma)
        return F.mse_loss(v[0], noise[0] - made[0]) + F.mse_loss(v[1], noise[1] - made[1])
