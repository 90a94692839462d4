"""Stand-ins for the models: the optimal velocity of Gaussian data, in closed form."""

from types import SimpleNamespace

import torch

from streamchar.model.kv_cache import KVCache
from streamchar.train.batches import SpeechBatch
from streamchar.train.joint import JointBatch
from tests.train.miniature import MINIATURE

CHUNK, PICTURE = MINIATURE.chunk, MINIATURE.picture


def best_velocity(x, sigma, mean, std):
    """Return E[eps - z | x] for z of N(mean, std^2) and x = (1 - sigma) z + sigma eps.

    (Linear regression of one jointly normal variable on another.)
    """
    level = sigma.reshape(*sigma.shape, *(1,) * (x.dim() - sigma.dim()))
    keep = 1 - level
    slope = (level - keep * std**2) / (keep**2 * std**2 + level**2)
    return -mean + slope * (x - keep * mean)


def least_error(sigma, std):
    """Return the variance of eps - z given x, which is the mean squared error of the best velocity."""
    return std**2 / ((1 - sigma) ** 2 * std**2 + sigma**2)


class Gaussian:
    """A joint model of Gaussian data, with the parts that :func:`streamchar.train.joint.velocities` calls.

    Args:
        video: mean and standard deviation of the video latents.
        audio: mean and standard deviation of the audio latents.
        silent: mean of the audio latents in rows without text; by default that of ``audio``.

    Attributes:
        sigmas: all noise levels that the model was called with, flat, in order.
    """

    def __init__(self, video, audio, silent=None):
        self.video, self.audio, self.silent = video, audio, audio[0] if silent is None else silent
        self.sigmas = torch.empty(0)
        self.dit = SimpleNamespace(modulation=self.modulation, commit=lambda *_: None, step=self.step)

    def orchestrator(self, prefix, x_audio, sigmas):
        """Return the mean of each row's audio as its condition."""
        mean = torch.where(prefix.text_lengths > 0, self.audio[0], self.silent)
        return mean[:, None].expand(sigmas.shape), None

    def modulation(self, sigmas):
        self.sigmas = torch.cat((self.sigmas, sigmas))
        return sigmas

    def step(self, x_video, x_audio, conditions, step, modulation, cache):
        sigma, means = modulation[step.long()], conditions.reshape(-1, 1, 1)
        return best_velocity(x_video, sigma, *self.video), best_velocity(x_audio, sigma, means, self.audio[1])


class EmptyCache(KVCache):
    """A cache that stores nothing."""

    def __init__(self):
        pass

    def set_valid(self, row, **_):
        pass


def joint_data(rows, video, audio, rng):
    """Draw a batch of chunks with text from Gaussians of these means and standard deviations."""
    size = PICTURE.channels, *PICTURE.latent_size
    zeros = torch.zeros(rows, 1, *size)
    text, channels = MINIATURE.orchestrator.transcript_tokens, MINIATURE.dit.audio_channels
    speech = SpeechBatch(
        text_ids=torch.ones(rows, text, dtype=torch.int64),
        text_lengths=torch.full((rows,), text, dtype=torch.int32),
        durations=torch.ones(rows, text),
        progress=torch.full((rows,), 3.0),
        position=torch.zeros(rows, MINIATURE.audio_tokens),
        history=torch.zeros(rows, MINIATURE.history_tokens, channels),
        history_lengths=torch.zeros(rows, dtype=torch.int32),
        audio=audio[0] + audio[1] * torch.randn(rows, MINIATURE.audio_tokens, channels, generator=rng),
    )
    chunk = video[0] + video[1] * torch.randn(rows, CHUNK.latent_frames, *size, generator=rng)
    return JointBatch(speech, zeros, zeros, zeros, chunk, torch.ones(rows, 3, dtype=torch.bool))
