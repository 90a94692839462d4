"""The denoising loop: a few re-noising steps of the student, or the many Euler steps of its teacher.

All steps run on device tensors. Which noise level a step has, the session's seed and the chunk's number are
read there, and the loop's length is the only thing that Python decides, so the whole loop can be captured
once and replayed for every chunk of every session.
"""

from collections.abc import Callable

import torch

from .config import SamplerConfig
from .kernels import sampler_noise, sampler_step
from .kernels._checks import require
from .memory import KVMemory
from .model import JointDiT

#: Gives c_a, [batch, audio_tokens, condition dim], for the noisy audio latents and their sigma, [batch] fp32.
Conditions = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Denoiser:
    """A schedule bound to a model, for a batch of chunks that are denoised together.

    Attributes:
        sigmas: [steps + 1] fp32 on the device, falling from 1, the last one 0.
        modulation: the model's modulation for the levels of the schedule; also serves
            :meth:`JointDiT.commit`.
    """

    def __init__(self, model: JointDiT, config: SamplerConfig | None = None, batch: int = 1) -> None:
        """Put the schedule on the model's device and compute the modulation of its levels.

        Args:
            model: whose velocities are followed.
            config: the schedule; by default that of the model's preset.
            batch: rows denoised together.

        Raises:
            KernelArgumentError: ``batch`` is below 1.
        """
        require(batch >= 1, "batch", "at least 1", batch)
        config = config or model.preset.sampler
        device = model.table.device
        self.model, self.batch, self.mode = model, batch, config.mode
        self.sigmas = torch.tensor((*config.sigmas, 0.0), dtype=torch.float32, device=device)
        with torch.no_grad():
            self.modulation = model.modulation(self.sigmas[:-1])
        index = torch.arange(config.steps, dtype=torch.int32, device=device)
        self._index = index[:, None].repeat(1, batch)

    @property
    def steps(self) -> int:
        """Denoising steps a chunk."""
        return len(self._index)

    @torch.no_grad()
    def set_schedule(self, config: SamplerConfig) -> None:
        """Change the noise levels, or take up changed weights, without moving a tensor.

        Raises:
            KernelArgumentError: the number of steps or their mode differs.
        """
        remedy = "make another Denoiser"
        require(config.mode == self.mode, "config.mode", repr(self.mode), config.mode, remedy)
        require(
            config.steps == self.steps, "config", f"a schedule of {self.steps} steps", config.steps, remedy
        )
        self.sigmas.copy_(torch.tensor((*config.sigmas, 0.0), dtype=torch.float32))
        self.modulation.copy_(self.model.modulation(self.sigmas[:-1]))

    def step(
        self,
        index: int,
        x_video: torch.Tensor,
        x_audio: torch.Tensor,
        seed: torch.Tensor,
        chunk: torch.Tensor,
        conditions: Conditions,
        memory: KVMemory,
    ) -> None:
        """Take one denoising step in place; arguments and errors as in :meth:`__call__`.

        Args:
            index: which step of the schedule, in [0, steps).

        Raises:
            KernelArgumentError: there is no such step.
        """
        require(0 <= index < self.steps, "index", f"between 0 and {self.steps - 1}", index)
        require(memory.batch == self.batch, "memory.batch", f"{self.batch} as here", memory.batch)
        at = self._index[index]
        c_a = conditions(x_audio, self.sigmas[index].expand(self.batch))
        v_video, v_audio = self.model.step(x_video, x_audio, c_a, at, self.modulation, memory)
        sampler_step(
            x_video,
            x_audio,
            v_video,
            v_audio,
            self.sigmas,
            at,
            seed,
            chunk,
            mode=self.mode,
            backend=self.model.backend,
        )

    def __call__(
        self,
        x_video: torch.Tensor,
        x_audio: torch.Tensor,
        seed: torch.Tensor,
        chunk: torch.Tensor,
        conditions: Conditions | torch.Tensor,
        memory: KVMemory,
    ) -> None:
        """Make a chunk: overwrite the latents with noise and denoise them, in place.

        Rows with no chunk due are computed too, and hold garbage afterwards; they disturb no other row and,
        of the memory, only their own chunk's slots.

        Args:
            x_video: [batch, latent_frames, channels, height, width], fp32 (or bf16, fp16), contiguous.
            x_audio: [batch, audio_tokens, audio_channels], likewise.
            seed: [batch] int64, the session's seed.
            chunk: [batch] int64, the number of the chunk in its session.
            conditions: what gives c_a at every step, or c_a itself where it is the same at all of them.
            memory: what the chunk attends to.

        Raises:
            KernelArgumentError: a shape, dtype or the memory does not fit.
        """
        if isinstance(conditions, torch.Tensor):
            c_a = conditions

            def conditions(x_audio: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
                return c_a

        sampler_noise(x_video, x_audio, seed, chunk, backend=self.model.backend)
        for index in range(self.steps):
            self.step(index, x_video, x_audio, seed, chunk, conditions, memory)
