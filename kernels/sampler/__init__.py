"""One update of the few-step sampler, and its initial noise."""

from .interface import sampler_noise, sampler_step

__all__ = ["sampler_noise", "sampler_step"]
