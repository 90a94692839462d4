"""Stage II of the distillation: the student learns on its own rollouts, chunk after chunk.

Sessions are rolled out as at run time: sink, motion and audio history are the student's own, the transcript
is cut where its pointer stands. Every chunk is matched to what the frozen teacher would make of the same
context, which no recording has to provide; a recording keeps it from drifting off as a weak anchor. The
pointer learns from an alignment of the sound that was made. Rollouts grow longer as training goes on.

Source: StreamChar (arXiv 2605.25659), distillation stage II; self-rollouts, Self Forcing (arXiv 2506.08009).
"""

from typing import cast

import torch
from torch import Tensor

from ..config import Preset
from ..data.corpus import Corpus
from ..data.sentences import paragraphs
from ..pointer import pointer_loss
from ..tokenizers import default_tokenizer
from .aligner import FrameClassifier, align
from .joint import JointModel, VideoLatents, joint_batch
from .loop import LoopConfig
from .orchestrator import POINTER_WEIGHT, unsure
from .parallel import randint, share
from .sessions import RolledOut, SessionBatch
from .student import ANCHOR, StudentStage

CONFIG = LoopConfig(steps=36, lr=1e-4, batch=4, matrix_lr=1e-3, warmup=2, ema=0.97, log_steps=1)
#: Chunks of a rollout, at the start and from the middle of training on.
CHUNKS = (2, 8)
#: Frames at the end of a chunk whose alignment is left out: what follows them decides it.
UNSURE_FRAMES = 2
#: Words a second that no voice exceeds, so that a text outlasts its rollout.
WORDS_A_SECOND = 6
#: What a rollout may be trained without, to see what each part buys.
PARTS = ("sink", "pointer")


class RolloutStage(StudentStage):
    """The student of stage I, trained on rollouts of its own.

    Args:
        preset: sizes and schedule.
        corpus: recordings, for the anchor.
        audio: audio latents of the corpus, [frames, channels].
        video: video latents of some of its recordings, whose references the rollouts show.
        teacher: trained; not changed.
        student: of stage I, and ``score``, the denoiser of its samples.
        aligner: finds tokens in generated sound.
        device: where to train.
        config: of the loop; a step is a whole rollout, with an update after each of its chunks.
        without: one of :data:`PARTS` that is left out; None for the full system.
    """

    name = "rollout"

    def __init__(
        self,
        preset: Preset,
        corpus: Corpus,
        audio: Tensor,
        video: VideoLatents,
        teacher: JointModel,
        student: JointModel,
        score: JointModel,
        aligner: FrameClassifier,
        device: torch.device,
        config: LoopConfig = CONFIG,
        without: str | None = None,
    ) -> None:
        self.trains_pointer = trains_pointer = without != "pointer"
        start = student, score
        super().__init__(preset, corpus, audio, video, teacher, device, config, start, trains_pointer)
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
        """Return how many chunks the rollout of a step has."""
        first, most = CHUNKS
        return min(most, first + 2 * (most - first) * step // self.config.steps)

    def update(self, step: int, generator: torch.Generator) -> dict[str, float]:
        """Roll a batch of sessions out, and take a step of student and score after each chunk."""
        sums: dict[str, float] = {}
        count = self.chunks(step)
        self._begin(count, generator)
        for _ in range(count):
            for name, value in self._chunk(step, generator).items():
                sums[name] = sums.get(name, 0.0) + value
        return {**{name: value / count for name, value in sums.items()}, "chunks": float(count)}

    def _begin(self, chunks: int, generator: torch.Generator) -> None:
        count = self.config.batch
        words = int(WORDS_A_SECOND * self.preset.seconds * chunks) + WORDS_A_SECOND
        # Sessions of all processes follow one another in their noise too.
        seed = int(torch.randint(2**31, (), generator=generator)) + share(count).start
        seeds = randint(2**31, (count,), generator).tolist()
        texts = [paragraphs(words, each, held_out=False) for each in seeds]
        shown = randint(len(self.video), (count,), generator).tolist()
        self.sessions.begin(texts, torch.stack([self.video.of(index)[0] for index in shown]), seed)

    def _chunk(self, step: int, generator: torch.Generator) -> dict[str, float]:
        exit_step = int(torch.randint(self.preset.sampler.steps, (), generator=generator))
        rolled = self.sessions.make(exit_step)
        batch = rolled.batch
        given = batch.speech.progress, batch.speech.history
        made = self._clean("student", batch, given, rolled.x, self._level(len(batch.video), exit_step))
        matching = self._matching(batch, given, made, generator)
        anchor = self._anchor(generator)
        loss = matching + ANCHOR * anchor
        logged = {"matching": float(matching.detach()), "anchor": float(anchor.detach())}
        target = self._heard(rolled)
        logged["off"] = float((rolled.said - target).abs().mean())
        if self.trains_pointer:
            # The aligner is unsure of a sound whose end it has not heard.
            known = torch.ones_like(target, dtype=torch.bool)
            known[:, -UNSURE_FRAMES:] = False
            pointer = pointer_loss(self._pointed(rolled), target, known)
            loss = loss + POINTER_WEIGHT * pointer
            logged["pointer"] = float(pointer.detach())
        logged["norm"] = self.trained["joint"].update(loss, step)
        self.memory["student"].detach_()
        score = self._score_loss(batch, given, (made[0].detach(), made[1].detach()), generator)
        self.trained["score"].update(score, step)
        self.memory["score"].detach_()
        return {**logged, "score": float(score.detach())}

    def _anchor(self, generator: torch.Generator) -> Tensor:
        recorded = joint_batch(
            self.preset, self.corpus, self.audio, self.video, self.config.batch, generator
        ).to(self.device)
        return self._regression(recorded, unsure(recorded.speech, generator), generator)

    def _pointed(self, rolled: RolledOut) -> Tensor:
        """Return where the pointer stands in a chunk, [batch, audio_tokens] in tokens of the window."""
        speech = rolled.batch.speech
        sigma = self._level(len(rolled.said), self.preset.sampler.steps - 1)
        with torch.autocast(self.device.type, torch.bfloat16):
            _, position = self.student.orchestrator(
                speech.text_ids,
                speech.text_lengths,
                speech.history,
                speech.history_lengths,
                rolled.last,
                sigma,
                speech.progress,
            )
        return cast(Tensor, position)

    def _heard(self, rolled: RolledOut) -> Tensor:
        """Return where the sound that was made says that the pointer should stand, like :meth:`_pointed`."""
        with torch.no_grad():
            chances = self.aligner(self.sessions.heard()).float().cpu()
        tokens = self.preset.audio_tokens
        found = [
            align(chances[row], self.sessions.transcript(row))[-tokens:] - origin
            for row, origin in enumerate(rolled.origins)
        ]
        target = torch.stack(found).to(rolled.said).clamp(min=0)
        return target.minimum(rolled.batch.speech.text_lengths[:, None].to(target))
