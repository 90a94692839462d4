"""The training stages in their order, and the directory that holds their data and checkpoints."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..codecs.vae import Vae
from ..codecs.vocoder import Vocoder
from ..config import Preset
from ..data.corpus import Corpus, CorpusConfig, build_corpus
from ..data.digest import digest
from .batches import SpeechData
from .distributed.parallel import rank_zero_first
from .files import read, write
from .joint import JointData, JointModel, VideoLatents, encode_video
from .loop import LoopConfig, Stage, TrainingError, finished_checkpoint, load_averaged
from .stages import aligner, decoder, orchestrator, rollout, student, teacher, vae, vocoder
from .stages.aligner import FrameClassifier

_M = TypeVar("_M", bound=nn.Module)

#: Stages whose weights ship, in training order; the ablations of the rollout stage do not ship.
SHIPPED = ("vocoder", "vae", "decoder", "orchestrator", "aligner", "teacher", "student", "rollout")
ROLLOUTS = ("rollout", *(f"rollout-without-{part}" for part in rollout.ABLATIONS))
#: Stages of the joint model; each makes an engine together with vocoder and decoder.
JOINT = ("teacher", "student", *ROLLOUTS)
#: Stages that a stage starts from; "vae" is also a parent if only its latents are used.
PARENTS = {
    "decoder": ("vae",),
    "teacher": ("orchestrator", "vae"),
    "student": ("teacher", "vae"),
    **dict.fromkeys(ROLLOUTS, ("student", "teacher", "aligner", "vae")),
}
#: Recordings with video, each with a different identity.
VIDEOS = 700


class Workshop:
    """A training directory: corpus, latents and one folder per stage.

    Args:
        root: the directory; created if it does not exist.
        preset: sizes. The trained models read phonemes, the tokens of the corpus, whatever the preset's
            tokenizer is.
        device: device to train on.
        hours: hours of speech, if the corpus has not been built.
        videos: number of recordings with video, if their latents have not been encoded.
    """

    def __init__(
        self, root: Path, preset: Preset, device: torch.device, hours: float = 8.0, videos: int = VIDEOS
    ) -> None:
        self.root, self.device, self.videos = root, device, videos
        # The corpus has phoneme tokens, and the statistics of its latents have not been measured yet.
        text = replace(preset.orchestrator, tokenizer="phonemes")
        channels = preset.vae.z_dim
        plain = replace(preset.vae, latents_mean=(0.0,) * channels, latents_std=(1.0,) * channels)
        self.preset = replace(preset, orchestrator=text, vae=plain)
        self.runs = root / "train"
        self._corpus_config = CorpusConfig(hours)
        self._builders: dict[str, tuple[LoopConfig, Callable[[LoopConfig], Stage]]] = {
            "vocoder": (vocoder.CONFIG, self._vocoder),
            "vae": (vae.CONFIG, self._vae),
            "decoder": (decoder.CONFIG, self._decoder),
            "orchestrator": (orchestrator.CONFIG, self._orchestrator),
            "aligner": (aligner.CONFIG, self._aligner),
            "teacher": (teacher.CONFIG, self._teacher),
            "student": (student.CONFIG, self._student),
            "rollout": (rollout.CONFIG, self._rollout),
            **{
                f"rollout-without-{part}": (rollout.CONFIG, partial(self._rollout, without=part))
                for part in rollout.ABLATIONS
            },
        }

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages."""
        return tuple(self._builders)

    def corpus(self) -> Corpus:
        """Return the corpus; builds it first if it does not exist."""
        with rank_zero_first():
            return self._corpus()

    def stage(self, name: str, loop: Callable[[LoopConfig], LoopConfig] | None = None) -> Stage:
        """Build a stage.

        Args:
            name: one of :attr:`stages`.
            loop: maps the default config of the stage to the one to use.

        Raises:
            TrainingError: the stage does not exist, a stage that it starts from is not finished, or it needs
                planned durations and the preset has none.
        """
        if name not in self._builders:
            raise TrainingError(f"stage must be one of {', '.join(self.stages)}, got {name!r}")
        if name == "rollout-without-pointer" and not self.preset.orchestrator.duration_dim:
            raise TrainingError(
                "duration_dim must be above 0 to replace the pointer by planned durations, got 0; "
                "train another stage, or a preset that predicts durations, such as tiny"
            )
        parents = PARENTS.get(name, ())
        # Checked before the corpus is built, which takes minutes.
        for parent in parents:
            finished_checkpoint(self.runs, parent)
        config, build = self._builders[name]
        stage = build(config if loop is None else loop(config))
        stage.about["parents"] = {parent: self._digest(parent) for parent in parents}
        return stage

    def vocoder(self) -> Vocoder:
        """Return the trained vocoder."""
        return self._averaged("vocoder", "vocoder", Vocoder.from_preset(self.preset))

    def vae(self, stage: str) -> Vae:
        """Return the trained VAE; it does not normalise its latents.

        Args:
            stage: "vae", or "decoder" for the same latents and sharper pictures.
        """
        return self._averaged(stage, "vae", Vae(self.preset.vae, self.device))

    def aligner(self) -> FrameClassifier:
        """Return the trained network that recognises tokens in audio latents."""
        return self._averaged("aligner", "aligner", FrameClassifier.from_preset(self.preset))

    def joint(self, stage: str) -> JointModel:
        """Return the joint model of a trained stage: teacher, student, or one of the rollouts."""
        return self._averaged(stage, "joint", JointModel(self.preset))

    def audio(self) -> Tensor:
        """Return the audio latents of the corpus; encodes them again if the corpus or a size has changed."""

        def encode() -> dict[str, Any]:
            codec = Vocoder.from_preset(self.preset).to(self.device)
            vocoder.fit_encoder(codec, self._corpus())
            return {"latents": orchestrator.audio_latents(codec, self._corpus())}

        # The encoder is fitted to the corpus in closed form; training the vocoder does not change it.
        sources = {"vocoder": repr(self.preset.vocoder)}
        latents: Tensor = self._latents("audio_latents.pt", sources, encode)["latents"]
        return latents

    def video(self) -> VideoLatents:
        """Return the video latents; encodes them again if the corpus or the VAE has changed."""
        size = self.preset.picture.height, self.preset.picture.width

        def encode() -> dict[str, Any]:
            return vars(encode_video(self.vae("vae"), self._corpus(), self.videos, size))

        finished_checkpoint(self.runs, "vae")
        sources = {"vae": self._digest("vae"), "videos": self.videos, "size": list(size)}
        return VideoLatents(**self._latents("video_latents.pt", sources, encode))

    def normalised(self) -> Preset:
        """Return the preset whose VAE normalises its latents to mean 0 and variance 1."""
        video = self.video()
        mean, std = tuple(video.mean.tolist()), tuple(video.std.tolist())
        return replace(self.preset, vae=replace(self.preset.vae, latents_mean=mean, latents_std=std))

    def _corpus(self) -> Corpus:
        directory = self.root / "corpus"
        if (directory / "corpus.json").is_file():
            return Corpus(directory)
        return build_corpus(directory, self._corpus_config)

    def _latents(
        self, name: str, sources: dict[str, Any], encode: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Return the contents of a file of latents; encodes them first if it is not of these sources."""
        file = self.root / name
        with rank_zero_first():
            sources = {"corpus": self._corpus().digest, **sources}
            saved = read(file, "run the same command again") if file.is_file() else None
            if not isinstance(saved, dict) or saved.get("sources") != sources:
                saved = {"sources": sources, "latents": encode()}
                write(saved, file)
        latents: dict[str, Any] = saved["latents"]
        return latents

    def _digest(self, stage: str) -> str:
        return digest(self.runs / stage / "checkpoint.pt")

    def _averaged(self, stage: str, name: str, module: _M) -> _M:
        """Load the averaged weights of a finished stage into a module and return it."""
        load_averaged(self.runs, stage, {name: module})
        return module

    def _speech_data(self) -> SpeechData:
        return SpeechData(self.corpus(), self.audio())

    def _joint_data(self) -> JointData:
        return JointData(self.corpus(), self.audio(), self.video())

    def _vocoder(self, config: LoopConfig) -> Stage:
        return vocoder.VocoderStage(self.preset, self.corpus(), self.device, config)

    def _vae(self, config: LoopConfig) -> Stage:
        return vae.VaeStage(self.preset, self.corpus(), self.device, config)

    def _decoder(self, config: LoopConfig) -> Stage:
        return decoder.DecoderStage(self.preset, self.corpus(), self.vae("vae"), self.device, config)

    def _orchestrator(self, config: LoopConfig) -> Stage:
        return orchestrator.OrchestratorStage(self.preset, self._speech_data(), self.device, config)

    def _aligner(self, config: LoopConfig) -> Stage:
        return aligner.AlignerStage(self.preset, self._speech_data(), self.device, config)

    def _teacher(self, config: LoopConfig) -> Stage:
        speech = self._averaged("orchestrator", "speech", orchestrator.SpeechModel(self.preset))
        pretrained = speech.orchestrator, speech.velocity
        return teacher.TeacherStage(self.preset, self._joint_data(), pretrained, self.device, config)

    def _student(self, config: LoopConfig) -> Stage:
        return student.StudentStage(
            self.preset, self._joint_data(), self.joint("teacher"), self.device, config
        )

    def _rollout(self, config: LoopConfig, without: str | None = None) -> Stage:
        score = self._averaged("student", "score", JointModel(self.preset))
        models = self.joint("teacher"), self.joint("student"), score, self.aligner()
        return rollout.RolloutStage(self.preset, self._joint_data(), *models, self.device, config, without)
