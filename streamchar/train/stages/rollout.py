"""Stage II of the distillation: the student learns on its own rollouts, chunk after chunk.

Sessions are rolled out as at inference: sink, motion and audio history are the student's own output, and the
transcript window follows its pointer. Every chunk is matched to the frozen teacher's distribution for the
same context, which requires no recording. A loss on recordings, with a low weight, keeps the student from
drifting. The pointer learns from an alignment of the generated audio. Rollouts get longer during training.

Source: StreamChar (arXiv 2605.25659), distillation stage II; self-rollouts, Self Forcing (arXiv 2506.08009).
"""

from typing import cast

import torch
from torch import Tensor

from ...config import Preset
from ...data.text.sentences import paragraphs
from ...model.pointer import pointer_loss
from ...text.tokenizers import default_tokenizer
from ..batches import perturbed_prefix
from ..distributed.parallel import local_range, randint
from ..joint import JointData, JointModel
from ..loop import LoopConfig
from ..rollout_sessions import RolledOutChunk, SessionBatch
from .aligner import FrameClassifier, align
from .orchestrator import POINTER_WEIGHT
from .student import ANCHOR, StudentStage

CONFIG = LoopConfig(steps=36, lr=1e-4, batch=4, matrix_lr=1e-3, warmup=2, ema=0.97, log_steps=1)
#: Chunks of a rollout at the start of training, and from the middle of training on.
CHUNKS = (2, 8)
#: Frames at the end of a chunk without a pointer target: their alignment depends on the audio after them.
UNALIGNED_FRAMES = 2
#: Words per second that no voice exceeds, so that a text outlasts its rollout.
MAX_WORDS_PER_SECOND = 6
#: Parts of the system that an ablation can train without.
ABLATIONS = ("sink", "pointer")


class RolloutStage(StudentStage):
    """Trains the student of stage I on its own rollouts.

    Args:
        preset: sizes and schedule.
        data: recordings with audio and video latents, for the regression loss and the reference images.
        teacher: the trained teacher; not changed.
        student: the student of stage I.
        score: the score network of stage I.
        aligner: recognises tokens in generated audio.
        device: device to train on.
        config: settings of the loop. A step is a whole rollout, with an update after each of its chunks.
        without: one of :data:`ABLATIONS` to leave out; None for the full system.
    """

    name = "rollout"

    def __init__(
        self,
        preset: Preset,
        data: JointData,
        teacher: JointModel,
        student: JointModel,
        score: JointModel,
        aligner: FrameClassifier,
        device: torch.device,
        config: LoopConfig = CONFIG,
        without: str | None = None,
    ) -> None:
        self.trains_pointer = trains_pointer = without != "pointer"
        super().__init__(preset, data, teacher, device, config, (student, score), trains_pointer)
        if without is not None:
            self.name = f"rollout-without-{without}"
        self.about["without"] = without
        self.aligner = aligner.to(device).requires_grad_(False)
        self.sessions = SessionBatch(
            self.student,
            preset,
            default_tokenizer(preset.orchestrator.tokenizer),
            config.batch,
            device,
            sink=without != "sink",
            pointer=trains_pointer,
        )

    def chunks(self, step: int) -> int:
        """Return the number of chunks in the rollout of a step."""
        first, most = CHUNKS
        return min(most, first + 2 * (most - first) * step // self.config.steps)

    def update(self, step: int, generator: torch.Generator) -> dict[str, float]:
        """Roll out a batch of sessions; update student and score network after each chunk."""
        sums: dict[str, float] = {}
        count = self.chunks(step)
        self._begin(count, generator)
        for _ in range(count):
            for name, value in self._chunk(step, generator).items():
                sums[name] = sums.get(name, 0.0) + value
        return {**{name: value / count for name, value in sums.items()}, "chunks": float(count)}

    def _begin(self, chunks: int, generator: torch.Generator) -> None:
        count = self.config.batch
        words = int(MAX_WORDS_PER_SECOND * self.preset.seconds * chunks) + MAX_WORDS_PER_SECOND
        # The sessions of all processes have consecutive noise seeds.
        seed = int(torch.randint(2**31, (), generator=generator)) + local_range(count).start
        seeds = randint(2**31, (count,), generator).tolist()
        texts = [paragraphs(words, each, held_out=False) for each in seeds]
        shown = randint(len(self.data.video), (count,), generator).tolist()
        self.sessions.begin(texts, torch.stack([self.data.video.of(index)[0] for index in shown]), seed)

    def _chunk(self, step: int, generator: torch.Generator) -> dict[str, float]:
        exit_step = int(torch.randint(self.preset.sampler.steps, (), generator=generator))
        rolled = self.sessions.make(exit_step)
        batch = rolled.batch
        prefix = batch.speech.prefix()
        made = self._clean("student", batch, prefix, rolled.x, self._level(len(batch.video), exit_step))
        matching = self._matching(batch, prefix, made, generator)
        anchor = self._anchor(generator)
        loss = matching + ANCHOR * anchor
        logged = {"matching": float(matching.detach()), "anchor": float(anchor.detach())}
        target = self._aligned_position(rolled)
        logged["off"] = float((rolled.position - target).abs().mean())
        if self.trains_pointer:
            aligned = torch.ones_like(target, dtype=torch.bool)
            aligned[:, -UNALIGNED_FRAMES:] = False
            pointer = pointer_loss(self._pointer_position(rolled), target, aligned)
            loss = loss + POINTER_WEIGHT * pointer
            logged["pointer"] = float(pointer.detach())
        logged["norm"] = self.trainables["joint"].update(loss, step)
        self.caches["student"].detach_()
        score = self._score_loss(batch, prefix, (made[0].detach(), made[1].detach()), generator)
        self.trainables["score"].update(score, step)
        self.caches["score"].detach_()
        return {**logged, "score": float(score.detach())}

    def _anchor(self, generator: torch.Generator) -> Tensor:
        recorded = self.batch(generator)
        return self._regression(recorded, perturbed_prefix(recorded.speech, generator), generator)

    def _pointer_position(self, rolled: RolledOutChunk) -> Tensor:
        """Return the pointer's positions in the window, with their graph, [batch, audio_tokens]."""
        speech = rolled.batch.speech
        sigma = self._level(len(rolled.position), self.preset.sampler.steps - 1)
        with torch.autocast(self.device.type, torch.bfloat16):
            _, position = self.student.orchestrator(speech.prefix(), rolled.x_audio_last, sigma)
        return cast(Tensor, position)

    def _aligned_position(self, rolled: RolledOutChunk) -> Tensor:
        """Return the positions in the window that the generated audio aligns to, [batch, audio_tokens]."""
        with torch.no_grad():
            log_probs = self.aligner(self.sessions.audio()).float().cpu()
        tokens = self.preset.audio_tokens
        found = [
            align(log_probs[row], self.sessions.transcript(row))[-tokens:] - origin
            for row, origin in enumerate(rolled.origins)
        ]
        target = torch.stack(found).to(rolled.position).clamp(min=0)
        return target.minimum(rolled.batch.speech.text_lengths[:, None].to(target))
