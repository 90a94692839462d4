"""The denoising loop: few re-noising steps for the student, or many Euler steps for its teacher.

Noise levels, seeds and chunk numbers are read from device tensors. Only the number of steps is decided in
Python, so the whole loop can be captured once and replayed for every chunk of every session.
"""

from collections.abc import Callable

import torch

from ..config import SamplerConfig
from ..kernels import sampler_noise, sampler_step
from ..kernels._shared.checks import require
from .dit import JointDiT
from .kv_cache import KVCache

#: Maps noisy audio latents and their sigma, [batch] fp32, to c_a, [batch, audio_tokens, condition dim].
Conditions = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Denoiser:
    """A noise schedule bound to a model and a batch size.

    Attributes:
        sigmas: [steps + 1] fp32 on the device, decreasing from 1 to 0.
        modulation: the model's modulation for the levels of the schedule; also valid for
            :meth:`JointDiT.commit`.
    """

    def __init__(self, model: JointDiT, config: SamplerConfig | None = None, batch: int = 1) -> None:
        """Move the schedule to the model's device and compute the modulation of its levels.

        Args:
            model: predicts the velocities.
            config: the schedule; by default that of the model's preset.
            batch: number of rows that are denoised together.

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
        """Denoising steps per chunk."""
        return len(self._index)

    @torch.no_grad()
    def set_schedule(self, config: SamplerConfig) -> None:
        """Change the noise levels in place and recompute their modulation from the current weights.

        No tensor moves, so captured graphs stay valid.

        Args:
            config: a schedule with the same number of steps and the same mode.

        Raises:
            KernelArgumentError: the number of steps or the mode differs.
        """
        remedy = "create another Denoiser"
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
        cache: KVCache,
    ) -> None:
        """Take one denoising step in place.

        The arguments other than ``index`` are those of :meth:`__call__`.

        Args:
            index: index of the step in the schedule, in [0, steps).

        Raises:
            KernelArgumentError: ``index`` is out of range, or as in :meth:`__call__`.
        """
        require(0 <= index < self.steps, "index", f"between 0 and {self.steps - 1}", index)
        require(cache.batch == self.batch, "cache.batch", f"{self.batch}, as in this Denoiser", cache.batch)
        at = self._index[index]
        c_a = conditions(x_audio, self.sigmas[index].expand(self.batch))
        v_video, v_audio = self.model.step(x_video, x_audio, c_a, at, self.modulation, cache)
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
        cache: KVCache,
    ) -> None:
        """Generate a chunk: overwrite the latents with noise and denoise them in place.

        Rows without a due chunk are computed too and end with arbitrary values. They affect no other row,
        and in the cache only the chunk slots of their own row.

        Args:
            x_video: [batch, latent_frames, channels, height, width], fp32, bf16 or fp16, contiguous.
            x_audio: [batch, audio_tokens, audio_channels], fp32, bf16 or fp16, contiguous.
            seed: [batch] int64, seed of the row's session.
            chunk: [batch] int64, index of the chunk in its session.
            conditions: function that computes c_a at each step, or a constant c_a.
            cache: keys and values that the chunk attends to; the chunk's own slots are overwritten.

        Raises:
            KernelArgumentError: a shape, a dtype or the cache does not fit.
        """
        if isinstance(conditions, torch.Tensor):
            c_a = conditions

            def conditions(x_audio: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
                return c_a

        sampler_noise(x_video, x_audio, seed, chunk, backend=self.model.backend)
        for index in range(self.steps):
            self.step(index, x_video, x_audio, seed, chunk, conditions, cache)
