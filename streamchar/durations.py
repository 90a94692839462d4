"""How long each transcript token sounds, and where it therefore lies on the time line of the audio.

A language model trained from nothing on little speech spends most of its training on finding out which
phoneme a frame of audio belongs to. Here text says it by its position: a small network predicts the duration
of every token, and the token stands at the middle of the time in which it will be said, counted from the
chunk's first frame, which is where the pointer says that the speech has come to. Rotary attention from a
frame of audio then finds its phoneme at relative position zero, and learns what to look at around it.
The plan is renewed at every chunk from the pointer, so that its errors do not add up.

Source: duration prediction, FastSpeech (arXiv 1905.09263) section 3.3; a Gaussian prior on the alignment,
arXiv 1910.10288 (location-relative attention).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KERNEL = 5
#: Frames that a token takes before anything is learned.
TYPICAL = 1.5
#: Width of the pointer's prior around the planned time, in frames.
PRIOR_WIDTH = 1.5


class DurationPredictor(nn.Module):
    """Predict durations of transcript tokens from the tokens around them.

    Args:
        vocabulary: text tokens.
        dim: width.
        layers: convolutions, each over :data:`KERNEL` tokens.
    """

    def __init__(self, vocabulary: int, dim: int, layers: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, dim)
        self.convs = nn.ModuleList(nn.Conv1d(dim, dim, KERNEL, padding=KERNEL // 2) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(layers))
        self.out = nn.Linear(dim, 1)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw random weights; predictions start near :data:`TYPICAL`."""
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
        """Return durations in frames, [batch, tokens] fp32, 0 where ``valid`` is false.

        Args:
            ids: [batch, tokens] int64, tokens of the vocabulary wherever ``valid``.
            valid: [batch, tokens] bool.
        """
        x: Tensor = self.embed(ids.masked_fill(~valid, 0))
        for conv, norm in zip(self.convs, self.norms, strict=True):
            # What lies outside must look the same however long the buffer is.
            seen = x.masked_fill(~valid[..., None], 0.0).transpose(1, 2)
            x = x + F.gelu(norm(conv(seen).transpose(1, 2)))
        log_duration: Tensor = self.out(x).squeeze(-1).float()
        return (TYPICAL * log_duration.clamp(-5, 5).exp()).masked_fill(~valid, 0.0)


def token_times(durations: Tensor, progress: Tensor) -> Tensor:
    """Return when the middle of each token sounds, in frames from where the speech has come to.

    Args:
        durations: [batch, tokens] fp32, frames.
        progress: [batch] fp32, tokens said so far, fractions included.

    Returns:
        [batch, tokens] fp32, negative for what has been said.
    """
    index = torch.arange(durations.shape[1], device=durations.device)
    said = (durations * (progress[:, None] - index).clamp(0, 1)).sum(1, keepdim=True)
    return durations.cumsum(1) - 0.5 * durations - said


def pointer_prior(times: Tensor, frames: int) -> Tensor:
    """Return the log-weight of each token for the end of each frame, [batch, frames, tokens].

    Args:
        times: [batch, tokens], from :func:`token_times`.
        frames: of the chunk.
    """
    ends = torch.arange(1, frames + 1, device=times.device, dtype=times.dtype)
    return -0.5 * ((times[:, None, :] - ends[:, None]) / PRIOR_WIDTH).square()


def planned_times(prior: Tensor) -> Tensor:
    """Return the times that a prior was made of, [batch, tokens]: the inverse of :func:`pointer_prior`.

    Args:
        prior: [batch, frames, tokens], of at least 2 frames.
    """
    frames = prior.shape[1]
    # The difference of two squares is linear in the time.
    return (frames + 1) / 2 + (prior[:, -1] - prior[:, 0]) * (PRIOR_WIDTH**2 / (frames - 1))
