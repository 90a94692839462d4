"""Compress the sampler: a student of four steps, by distribution matching against the many-step teacher.

The student starts from the teacher and is first told the clean data at its own four noise levels (the
regression warm-up). Then it makes chunks as it will at run time, with a random step as the last; the frozen
teacher and a copy of it that learns the student's own samples say which way to move them. The teacher's word
on the sound is guided by the text, so that the student speaks more clearly than the recordings alone ask for.

Student and score go at one pace: for each update of the student there is one of its score, at the same rate
(in a rollout, one of each a chunk). The two time scales of the papers are for networks of their size: DMD2
(arXiv 2405.14867, section 4.2) takes five updates of the score for each of the generator, StreamChar's stage
II gives it a fifth of the student's rate.

Source: StreamChar (arXiv 2605.25659), distillation stage I; :mod:`.dmd` for the method.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Preset
from ..data.corpus import Corpus
from ..memory import KVMemory
from .dmd import distribution_matching_loss, guided
from .flow import draw_sigmas, interpolate, to_clean
from .joint import JointBatch, JointModel, VideoLatents, joint_batch, velocities, without_text
from .loop import LoopConfig, Stage, Trained
from .orchestrator import unsure
from .parallel import randint, randn

CONFIG = LoopConfig(steps=180, lr=2e-4, batch=4, matrix_lr=0.002, warmup=20, ema=0.99)
#: Share of the run that is regression alone.
WARM_UP = 0.4
#: Learning rate of the student's own score against the student's, with one update of each a step.
SCORE_RATE = 1.0
#: Of what the teacher predicts for the sound, by the text: 1 is its plain prediction.
GUIDANCE = 2.0
#: Weight of the regression once distributions are matched, so that few steps cannot undo what was learned.
ANCHOR = 0.5

Pair = tuple[Tensor, Tensor]


class StudentStage(Stage):
    """The teacher's network, trained to make a chunk in the preset's few steps.

    Args:
        preset: sizes and schedule.
        corpus: recordings.
        audio: audio latents of the corpus, [frames, channels].
        video: video latents of some of its recordings.
        teacher: trained; not changed.
        device: where to train.
        config: of the loop.
        start: what student and score start from, instead of the teacher.
        trains_pointer: whether the student's pointer is trained, alone of its orchestrator.
    """

    name = "student"

    def __init__(
        self,
        preset: Preset,
        corpus: Corpus,
        audio: Tensor,
        video: VideoLatents,
        teacher: JointModel,
        device: torch.device,
        config: LoopConfig = CONFIG,
        start: tuple[JointModel, JointModel] | None = None,
        trains_pointer: bool = False,
    ) -> None:
        about = {"corpus": corpus.digest, "dit": repr(preset.dit), "videos": len(video)}
        super().__init__(config, about)
        self.preset, self.corpus, self.audio, self.video, self.device = preset, corpus, audio, video, device
        self.teacher = teacher.to(device).requires_grad_(False)
        self.student, self.score = JointModel(preset).to(device), JointModel(preset).to(device)
        for model, source in zip((self.student, self.score), start or (teacher, teacher), strict=True):
            model.load_state_dict(source.state_dict())
            model.orchestrator.requires_grad_(False)
        self.student.orchestrator.pointer.requires_grad_(trains_pointer)
        self.memory = {
            name: KVMemory(preset, config.batch, device, torch.bfloat16)
            for name in ("student", "score", "teacher")
        }
        self.levels = (*preset.sampler.sigmas, 0.0)
        scores = replace(config, lr=config.lr * SCORE_RATE, matrix_lr=config.matrix_lr * SCORE_RATE)
        self.trained = {"joint": Trained(self.student, config), "score": Trained(self.score, scores)}

    def update(self, step: int, generator: torch.Generator) -> dict[str, float]:
        """Take one step of the student and, once distributions are matched, one of its score."""
        batch = joint_batch(
            self.preset, self.corpus, self.audio, self.video, self.config.batch, generator
        ).to(self.device)
        given = unsure(batch.speech, generator)
        loss = anchor = self._regression(batch, given, generator)
        logged = {"anchor": float(anchor.detach())}
        if step >= WARM_UP * self.config.steps:
            made = self._generate(batch, given, generator)
            matching = self._matching(batch, given, made, generator)
            loss = matching + ANCHOR * anchor
            logged["matching"] = float(matching.detach())
        logged["norm"] = self.trained["joint"].update(loss, step)
        self.memory["student"].detach_()
        if step >= WARM_UP * self.config.steps:
            score = self._score_loss(batch, given, (made[0].detach(), made[1].detach()), generator)
            self.trained["score"].update(score, step)
            self.memory["score"].detach_()
            logged["score"] = float(score.detach())
        return logged

    def _velocity(
        self, name: str, batch: JointBatch, given: Pair, x: Pair, sigma: Tensor, committed: bool = False
    ) -> Pair:
        model = {"student": self.student, "score": self.score, "teacher": self.teacher}[name]
        made = velocities(
            model, self.memory[name], batch, (x[0],), (x[1],), sigma[:, None], *given, committed=committed
        )
        return made[0]

    def _clean(
        self, name: str, batch: JointBatch, given: Pair, x: Pair, sigma: Tensor, committed: bool = False
    ) -> Pair:
        v = self._velocity(name, batch, given, x, sigma, committed)
        return to_clean(x[0], v[0], sigma), to_clean(x[1], v[1], sigma)

    def _noise(self, batch: JointBatch, generator: torch.Generator) -> Pair:
        video, audio = batch.video.shape, batch.speech.audio.shape
        noise = randn(video, generator), randn(audio, generator)
        return noise[0].to(self.device), noise[1].to(self.device)

    def _level(self, count: int, index: int) -> Tensor:
        return torch.full((count,), self.levels[index], device=self.device)

    def _regression(self, batch: JointBatch, given: Pair, generator: torch.Generator) -> Tensor:
        """Return the flow-matching loss at the student's own noise levels, one drawn for each row.

        The sum of both modalities, as in :func:`.teacher.flow_losses`.
        """
        steps = self.preset.sampler.steps
        chosen = randint(steps, (len(batch.video),), generator)
        sigma = torch.tensor(self.levels)[chosen].to(self.device)
        noise, clean = self._noise(batch, generator), (batch.video, batch.speech.audio)
        x = interpolate(clean[0], noise[0], sigma), interpolate(clean[1], noise[1], sigma)
        v = self._velocity("student", batch, given, x, sigma)
        return F.mse_loss(v[0], noise[0] - clean[0]) + F.mse_loss(v[1], noise[1] - clean[1])

    def _generate(self, batch: JointBatch, given: Pair, generator: torch.Generator) -> Pair:
        """Make chunks as at run time, ended at a random step; only that step has a graph."""
        count = len(batch.video)
        last = int(torch.randint(self.preset.sampler.steps, (), generator=generator))
        x = self._noise(batch, generator)
        with torch.no_grad():
            for index in range(last):
                sigma = self._level(count, index)
                clean = self._clean("student", batch, given, x, sigma, committed=index > 0)
                following = self._level(count, index + 1)
                noise = self._noise(batch, generator)
                x = interpolate(clean[0], noise[0], following), interpolate(clean[1], noise[1], following)
        return self._clean("student", batch, given, x, self._level(count, last))

    def _matching(self, batch: JointBatch, given: Pair, made: Pair, generator: torch.Generator) -> Tensor:
        """Return the loss of :func:`.dmd.distribution_matching_loss`, summed over modalities.

        The score's prediction stands for what was made, the teacher's for the data, its sound guided by the
        text.
        """
        sigma = draw_sigmas((len(batch.video),), generator).clamp(0.02, 0.98).to(self.device)
        noise = self._noise(batch, generator)
        with torch.no_grad():
            x = interpolate(made[0], noise[0], sigma), interpolate(made[1], noise[1], sigma)
            own, real = (self._clean(name, batch, given, x, sigma) for name in ("score", "teacher"))
            silent = without_text(batch, torch.ones(len(sigma), dtype=torch.bool))
            blank = silent.speech.progress, given[1]
            plain = self._clean("teacher", silent, blank, x, sigma, committed=True)
            real = real[0], guided(real[1], plain[1], GUIDANCE)
        losses = [distribution_matching_loss(m, r, o) for m, r, o in zip(made, real, own, strict=True)]
        return torch.stack(losses).sum()

    def _score_loss(self, batch: JointBatch, given: Pair, made: Pair, generator: torch.Generator) -> Tensor:
        """Return the flow-matching loss of the score on what was made.

        Source: DMD, arXiv 2311.18828, equation 6, for velocities.
        """
        sigma = draw_sigmas((len(batch.video),), generator).to(self.device)
        noise = self._noise(batch, generator)
        x = interpolate(made[0], noise[0], sigma), interpolate(made[1], noise[1], sigma)
        v = self._velocity("score", batch, given, x, sigma)
        return F.mse_loss(v[0], noise[0] - made[0]) + F.mse_loss(v[1], noise[1] - made[1])
