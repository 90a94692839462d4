"""What stages that train on a corpus have in common."""

from typing import Any

import torch

from ...config import Preset
from ...data.corpus import Corpus
from ..batches import SpeechData
from ..joint import JointBatch, JointData, joint_batch
from ..loop import LoopConfig, Stage


class CorpusStage(Stage):
    """A stage that trains on a corpus.

    It seeds PyTorch's global generator, so the modules that a subclass builds next have the same initial
    weights in every run.

    Args:
        corpus: recordings; the checkpoint stores their digest.
        device: device to train on.
        config: settings of the loop.
        about: further entries of :attr:`Stage.about`.
    """

    def __init__(self, corpus: Corpus, device: torch.device, config: LoopConfig, **about: Any) -> None:
        super().__init__(config, {"corpus": corpus.digest, **about})
        torch.manual_seed(config.seed)
        self.corpus, self.device = corpus, device


class SpeechStage(CorpusStage):
    """A stage that trains on speech.

    Args:
        preset: sizes.
        data: recordings with their audio latents.
        device: device to train on.
        config: settings of the loop.
        about: further entries of :attr:`Stage.about`.
    """

    def __init__(
        self, preset: Preset, data: SpeechData, device: torch.device, config: LoopConfig, **about: Any
    ) -> None:
        super().__init__(data.corpus, device, config, **about)
        self.preset, self.data = preset, data


class JointStage(CorpusStage):
    """A stage that trains the joint model.

    Args:
        preset: sizes.
        data: recordings with their audio and video latents.
        device: device to train on.
        config: settings of the loop.
    """

    def __init__(self, preset: Preset, data: JointData, device: torch.device, config: LoopConfig) -> None:
        super().__init__(data.corpus, device, config, dit=repr(preset.dit), videos=len(data.video))
        self.preset, self.data = preset, data

    def batch(self, generator: torch.Generator) -> JointBatch:
        """Draw the chunks of a step."""
        return joint_batch(self.preset, self.data, self.config.batch, generator).to(self.device)
