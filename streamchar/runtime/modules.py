"""The four networks of an engine."""

from typing import NamedTuple

import torch
from torch import nn

from ..codecs.vae import Vae
from ..codecs.vocoder import Vocoder
from ..config import Preset
from ..model.dit import JointDiT
from ..model.orchestrator import Orchestrator


class Modules(NamedTuple):
    """The networks that make a chunk; their names are those of a checkpoint's modules."""

    dit: JointDiT
    orchestrator: Orchestrator
    vae: Vae
    vocoder: Vocoder

    @classmethod
    def build(cls, config: Preset, device: torch.device, dtype: torch.dtype = torch.float32) -> "Modules":
        """Draw random weights on ``device``; on the meta device nothing is drawn and nothing is stored."""
        # A CPU needs minutes for the billions of weights that a GPU draws in moments.
        with device:
            return cls(
                JointDiT(config).to(dtype),
                Orchestrator.from_preset(config).to(dtype),
                Vae(config.vae, device, dtype),
                Vocoder.from_preset(config).to(dtype),
            )

    @property
    def device(self) -> torch.device:
        """Device of the diffusion transformer, which is the engine's."""
        return self.dit.table.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the diffusion transformer, which is the engine's."""
        return self.dit.table.dtype

    def by_name(self) -> dict[str, nn.Module]:
        """Return the modules by the names they have in a checkpoint."""
        return self._asdict()
