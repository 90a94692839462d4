"""The stages in the order they are trained, each built from what those before it left in a directory."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..codecs.vae import Vae
from ..codecs.vocoder import Vocoder
from ..config import Preset
from ..data.corpus import Corpus, CorpusConfig, build_corpus
from .joint import JointModel, VideoLatents, encode_video
from .loop import LoopConfig, Stage, TrainingError, averaged
from .orchestrator import OrchestratorStage, SpeechModel, audio_latents
from .student import StudentStage
from .teacher import TeacherStage
from .vae import VaeStage
from .vocoder import VocoderStage, fit_encoder

#: Recordings that are drawn and encoded, each with an identity of its own.
VIDEOS = 400


class Workshop:
    """A directory of training: corpus, latents and one folder a stage.

    Args:
        root: the directory, made where it is missing.
        preset: sizes.
        device: where to train.
        hours: of speech, where the corpus is still to be built.
        videos: recordings with pictures, where they are still to be drawn.
    """

    def __init__(
        self, root: Path, preset: Preset, device: torch.device, hours: float = 8.0, videos: int = VIDEOS
    ) -> None:
        self.root, self.preset, self.device, self.videos = root, preset, device, videos
        self.runs = root / "train"
        self._corpus_config = CorpusConfig(hours)
        self._builders: dict[str, Callable[[], Stage]] = {
            "vocoder": lambda: VocoderStage(self.preset, self.corpus(), self.device),
            "vae": lambda: VaeStage(self.preset, self.corpus(), self.device),
            "orchestrator": self._orchestrator,
            "teacher": self._teacher,
            "student": self._student,
        }

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages."""
        return tuple(self._builders)

    def corpus(self) -> Corpus:
        """Return the corpus, built first where it is missing."""
        return build_corpus(self.root / "corpus", self._corpus_config)

    def stage(self, name: str, loop: Callable[[LoopConfig], LoopConfig] | None = None) -> Stage:
        """Return a stage, ready to run.

        Args:
            name: of the stage.
            loop: changes its config, such as the number of steps.

        Raises:
            TrainingError: there is no such stage, or one that it builds on has not been trained.
        """
        if name not in self._builders:
            raise TrainingError(f"stage must be one of {', '.join(self.stages)}, got {name!r}")
        stage = self._builders[name]()
        if loop is not None:
            stage.config = loop(stage.config)
        return stage

    def vocoder(self) -> Vocoder:
        """Return the trained vocoder."""
        vocoder = Vocoder.from_preset(self.preset)
        averaged(self.runs, "vocoder", {"vocoder": vocoder})
        return vocoder

    def vae(self) -> Vae:
        """Return the trained VAE, its latents not yet normalised."""
        vae = Vae(self.preset.vae, self.device)
        averaged(self.runs, "vae", {"vae": vae})
        return vae

    def joint(self, stage: str) -> JointModel:
        """Return the joint model of a trained stage, ``"teacher"`` or ``"student"``."""
        model = JointModel(self.preset)
        averaged(self.runs, stage, {"joint": model})
        return model

    def audio(self) -> Tensor:
        """Return the audio latents of the corpus, encoded once."""
        file = self.root / "audio_latents.pt"
        if not file.is_file():
            vocoder = Vocoder.from_preset(self.preset).to(self.device)
            fit_encoder(vocoder, self.corpus())
            torch.save(audio_latents(vocoder, self.corpus()), file)
        latents: Tensor = torch.load(file, weights_only=True)
        return latents

    def video(self) -> VideoLatents:
        """Return video latents, encoded once."""
        file = self.root / "video_latents.pt"
        if not file.is_file():
            picture = self.preset.picture
            encoded = encode_video(self.vae(), self.corpus(), self.videos, (picture.height, picture.width))
            torch.save(vars(encoded), file)
        return VideoLatents(**torch.load(file, weights_only=True))

    def normalised(self) -> Preset:
        """Return the preset whose VAE gives latents of mean 0 and variance 1."""
        video = self.video()
        vae = replace(
            self.preset.vae, latents_mean=tuple(video.mean.tolist()), latents_std=tuple(video.std.tolist())
        )
        return replace(self.preset, vae=vae)

    def _orchestrator(self) -> Stage:
        return OrchestratorStage(self.preset, self.corpus(), self.audio(), self.device)

    def _teacher(self) -> Stage:
        speech = SpeechModel(self.preset)
        averaged(self.runs, "orchestrator", {"speech": speech})
        pretrained = speech.orchestrator, speech.velocity
        return TeacherStage(self.preset, self.corpus(), self.audio(), self.video(), pretrained, self.device)

    def _student(self) -> Stage:
        teacher = self.joint("teacher")
        return StudentStage(self.preset, self.corpus(), self.audio(), self.video(), teacher, self.device)
