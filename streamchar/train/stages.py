"""The stages in the order they are trained, each built from what those before it left in a directory."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..codecs.vae import Vae
from ..codecs.vocoder import Vocoder
from ..config import Preset
from ..data.corpus import Corpus, CorpusConfig, build_corpus
from ..data.digest import digest
from . import aligner, decoder, orchestrator, rollout, student, teacher, vae, vocoder
from .aligner import FrameClassifier
from .files import read, write
from .joint import JointModel, VideoLatents, encode_video
from .loop import LoopConfig, Stage, TrainingError, averaged, finished
from .parallel import one_by_one

#: Stages whose weights ship, in the order they are trained; the ablations of the last are not among them.
SHIPPED = ("vocoder", "vae", "decoder", "orchestrator", "aligner", "teacher", "student", "rollout")
ROLLOUTS = ("rollout", *(f"rollout-without-{part}" for part in rollout.PARTS))
#: Stages of the joint model, which make an engine together with vocoder and decoder.
JOINT = ("teacher", "student", *ROLLOUTS)
#: Stages that one is built from; "vae" also where it is for its latents.
PARENTS = {
    "decoder": ("vae",),
    "teacher": ("orchestrator", "vae"),
    "student": ("teacher", "vae"),
    **dict.fromkeys(ROLLOUTS, ("student", "teacher", "aligner", "vae")),
}
#: Recordings that are drawn and encoded, each with an identity of its own.
VIDEOS = 700


class Workshop:
    """A directory of training: corpus, latents and one folder a stage.

    Args:
        root: the directory, made where it is missing.
        preset: sizes; what is trained speaks the corpus's phonemes, whatever the preset's tokens are.
        device: where to train.
        hours: of speech, where the corpus is still to be built.
        videos: recordings with pictures, where they are still to be drawn.
    """

    def __init__(
        self, root: Path, preset: Preset, device: torch.device, hours: float = 8.0, videos: int = VIDEOS
    ) -> None:
        self.root, self.device, self.videos = root, device, videos
        # The corpus is of phonemes, and the statistics of its latents are still to be measured.
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
                for part in rollout.PARTS
            },
        }

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages."""
        return tuple(self._builders)

    def corpus(self) -> Corpus:
        """Return the corpus, built first where it is missing."""
        with one_by_one():
            return self._corpus()

    def stage(self, name: str, loop: Callable[[LoopConfig], LoopConfig] | None = None) -> Stage:
        """Return a stage, ready to run.

        Args:
            name: of the stage.
            loop: changes its config, such as the number of steps.

        Raises:
            TrainingError: there is no such stage, one that it builds on has not been trained to its end, or
                it goes by a plan of durations that the preset does not make.
        """
        if name not in self._builders:
            raise TrainingError(f"stage must be one of {', '.join(self.stages)}, got {name!r}")
        if name == "rollout-without-pointer" and not self.preset.orchestrator.duration_dim:
            raise TrainingError(
                "duration_dim must be above 0 to go without the pointer, by planned durations, got 0; "
                "train another stage or a preset with durations, such as tiny"
            )
        parents = PARENTS.get(name, ())
        # Before the corpus, which takes minutes.
        for parent in parents:
            finished(self.runs, parent)
        config, build = self._builders[name]
        stage = build(config if loop is None else loop(config))
        stage.about["parents"] = {parent: self._digest(parent) for parent in parents}
        return stage

    def vocoder(self) -> Vocoder:
        """Return the trained vocoder."""
        codec = Vocoder.from_preset(self.preset)
        averaged(self.runs, "vocoder", {"vocoder": codec})
        return codec

    def vae(self, stage: str) -> Vae:
        """Return the trained VAE, its latents not yet normalised.

        Args:
            stage: "vae", or "decoder" for the same latents and sharper pictures.
        """
        codec = Vae(self.preset.vae, self.device)
        averaged(self.runs, stage, {"vae": codec})
        return codec

    def aligner(self) -> FrameClassifier:
        """Return the trained network that tells tokens from audio latents."""
        classifier = FrameClassifier.from_preset(self.preset)
        averaged(self.runs, "aligner", {"aligner": classifier})
        return classifier

    def joint(self, stage: str) -> JointModel:
        """Return the joint model of a trained stage: the teacher, the student, or one of the rollouts."""
        model = JointModel(self.preset)
        averaged(self.runs, stage, {"joint": model})
        return model

    def audio(self) -> Tensor:
        """Return the audio latents of the corpus, encoded anew where it or the preset's vocoder changed."""

        def encode() -> dict[str, Any]:
            codec = Vocoder.from_preset(self.preset).to(self.device)
            vocoder.fit_encoder(codec, self._corpus())
            return {"latents": orchestrator.audio_latents(codec, self._corpus())}

        # The encoder is fitted in closed form: it is that of the corpus, trained vocoder or not.
        sources = {"vocoder": repr(self.preset.vocoder)}
        latents: Tensor = self._latents("audio_latents.pt", sources, encode)["latents"]
        return latents

    def video(self) -> VideoLatents:
        """Return video latents, encoded anew where the corpus or the VAE has changed."""
        size = self.preset.picture.height, self.preset.picture.width

        def encode() -> dict[str, Any]:
            return vars(encode_video(self.vae("vae"), self._corpus(), self.videos, size))

        finished(self.runs, "vae")
        sources = {"vae": self._digest("vae"), "videos": self.videos, "size": list(size)}
        return VideoLatents(**self._latents("video_latents.pt", sources, encode))

    def normalised(self) -> Preset:
        """Return the preset whose VAE gives latents of mean 0 and variance 1."""
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
        """Return what a file of latents holds, made first where it was not made from these sources."""
        file = self.root / name
        with one_by_one():
            sources = {"corpus": self._corpus().digest, **sources}
            saved = read(file, "run the same command again") if file.is_file() else None
            if not isinstance(saved, dict) or saved.get("sources") != sources:
                saved = {"sources": sources, "latents": encode()}
                write(saved, file)
        latents: dict[str, Any] = saved["latents"]
        return latents

    def _digest(self, stage: str) -> str:
        return digest(self.runs / stage / "checkpoint.pt")

    def _vocoder(self, config: LoopConfig) -> Stage:
        return vocoder.VocoderStage(self.preset, self.corpus(), self.device, config)

    def _vae(self, config: LoopConfig) -> Stage:
        return vae.VaeStage(self.preset, self.corpus(), self.device, config)

    def _decoder(self, config: LoopConfig) -> Stage:
        return decoder.DecoderStage(self.preset, self.corpus(), self.vae("vae"), self.device, config)

    def _orchestrator(self, config: LoopConfig) -> Stage:
        return orchestrator.OrchestratorStage(self.preset, self.corpus(), self.audio(), self.device, config)

    def _aligner(self, config: LoopConfig) -> Stage:
        return aligner.AlignerStage(self.preset, self.corpus(), self.audio(), self.device, config)

    def _teacher(self, config: LoopConfig) -> Stage:
        speech = orchestrator.SpeechModel(self.preset)
        averaged(self.runs, "orchestrator", {"speech": speech})
        pretrained = speech.orchestrator, speech.velocity
        data = self.corpus(), self.audio(), self.video()
        return teacher.TeacherStage(self.preset, *data, pretrained, self.device, config)

    def _student(self, config: LoopConfig) -> Stage:
        data = self.corpus(), self.audio(), self.video()
        return student.StudentStage(self.preset, *data, self.joint("teacher"), self.device, config)

    def _rollout(self, config: LoopConfig, without: str | None = None) -> Stage:
        data = self.corpus(), self.audio(), self.video()
        score = JointModel(self.preset)
        averaged(self.runs, "student", {"score": score})
        models = self.joint("teacher"), self.joint("student"), score
        return rollout.RolloutStage(self.preset, *data, *models, self.aligner(), self.device, config, without)
