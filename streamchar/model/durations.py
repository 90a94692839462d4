"""Predicted durations of transcript tokens, and their positions on the time axis of the audio.

A language model trained from scratch on little speech spends most of its training on learning which phoneme
a frame of audio belongs to. Here the position of a text token gives that alignment: a small network predicts
the duration of each token, and the position of a token is the middle of the time in which it will be spoken,
relative to the first frame of the chunk. Rotary attention from an audio frame then finds its phoneme at
relative position zero. Each chunk plans anew from the position that the pointer reports, so errors do not
accumulate.

Source: duration prediction, FastSpeech (arXiv 1905.09263) section 3.3; a Gaussian prior on the alignment,
arXiv 1910.10288 (location-relative attention).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Kernel size of the convolutions, in tokens.
KERNEL_SIZE = 5
#: Predicted duration of a token before training, in frames.
TYPICAL_DURATION = 1.5
#: Standard deviation of the pointer's Gaussian prior around the planned time, in frames.
PRIOR_WIDTH = 1.5


class DurationPredictor(nn.Module):
    """Predict the durations of transcript tokens from their neighbours.

    Args:
        vocabulary: number of text tokens.
        dim: width of the network.
        layers: number of convolutions, each over :data:`KERNEL_SIZE` tokens.
    """

    def __init__(self, vocabulary: int, dim: int, layers: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, dim)
        self.convs = nn.ModuleList(
            nn.Conv1d(dim, dim, KERNEL_SIZE, padding=KERNEL_SIZE // 2) for _ in range(layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(layers))
        self.out = nn.Linear(dim, 1)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw random weights; predictions start near :data:`TYPICAL_DURATION`."""
        nn.init.normal_(self.embed.weight, generator=generator)
        for module in self.modules():
            if isinstance(module, nn.Conv1d):
                nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.out.weight, std=0.1 * self.out.in_features**-0.5, generator=generator)
        nn.init.zeros_(self.out.bias)

    def forward(self, ids: Tensor, valid: Tensor) -> Tensor:
        """Predict durations.

        Args:
            ids: [batch, tokens] int64, text tokens; ignored where ``valid`` is false.
            valid: [batch, tokens] bool, which tokens are in use.

        Returns:
            [batch, tokens] fp32, durations in frames; 0 where ``valid`` is false.
        """
        x: Tensor = self.embed(ids.masked_fill(~valid, 0))
        for conv, norm in zip(self.convs, self.norms, strict=True):
            # Padding must look the same to the convolution, however long the buffer is.
            seen = x.masked_fill(~valid[..., None], 0.0).transpose(1, 2)
            x = x + F.gelu(norm(conv(seen).transpose(1, 2)))
        log_duration: Tensor = self.out(x).squeeze(-1).float()
        return (TYPICAL_DURATION * log_duration.clamp(-5, 5).exp()).masked_fill(~valid, 0.0)


def token_times(durations: Tensor, progress: Tensor) -> Tensor:
    """Return the time of the middle of each token, in frames from the current progress.

    Args:
        durations: [batch, tokens] fp32, durations in frames.
        progress: [batch] fp32, number of tokens spoken so far, including fractions.

    Returns:
        [batch, tokens] fp32; negative for tokens that have been spoken.
    """
    index = torch.arange(durations.shape[1], device=durations.device)
    said = (durations * (progress[:, None] - index).clamp(0, 1)).sum(1, keepdim=True)
    return durations.cumsum(1) - 0.5 * durations - said


def pointer_prior(times: Tensor, frames: int) -> Tensor:
    """Return the log-weight of each token at the end of each frame, a Gaussian around its planned time.

    Args:
        times: [batch, tokens], from :func:`token_times`.
        frames: number of frames in the chunk.

    Returns:
        [batch, frames, tokens], dtype of ``times``.
    """
    ends = torch.arange(1, frames + 1, device=times.device, dtype=times.dtype)
    return -0.5 * ((times[:, None, :] - ends[:, None]) / PRIOR_WIDTH).square()


def planned_times(prior: Tensor) -> Tensor:
    """Recover the token times from a prior, [batch, tokens]: the inverse of :func:`pointer_prior`.

    Args:
        prior: [batch, frames, tokens], with at least 2 frames.
    """
    frames = prior.shape[1]
    # The difference of two squares is linear in time.
    return (frames + 1) / 2 + (prior[:, -1] - prior[:, 0]) * (PRIOR_WIDTH**2 / (frames - 1))
