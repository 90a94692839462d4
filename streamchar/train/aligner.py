"""Say how many tokens of a text have been said at the end of each frame of generated audio latents.

A small network tells which tokens sound in a frame; a search finds the path through the text that fits best.

The network learns the share of each frame that each token takes, by cross-entropy on known times. The other
way, CTC loss on the same network, tells less: one token a frame is few where three end in two frames. Both
took 1000 steps (65 and 81 seconds of one core); CTC had the usual blanks, a search over the same kind of path
and its median delay taken out. Absolute errors on the 59 recordings held out, median and 95th percentile:

| latents | tokens, cross-entropy | tokens, CTC | frames, cross-entropy | frames, CTC |
| --- | --- | --- | --- | --- |
| clean | 0.05, 0.25 | 0.32, 1.15 | 0.11, 0.39 | 0.43, 1.97 |
| noise of 0.3 | 0.05, 0.27 | 0.32, 1.14 | 0.12, 0.41 | 0.43, 1.92 |
| 10 % slower | 0.06, 0.30 | 0.31, 1.13 | 0.15, 0.50 | 0.47, 2.00 |
| 10 % faster | 0.08, 0.41 | 0.37, 1.24 | 0.15, 0.53 | 0.45, 1.99 |
| word missing in the text | 0.05, 0.48 | 0.34, 1.18 | 0.12, 0.47 | 0.43, 2.54 |
| word missing in the audio | 0.05, 0.29 | 0.33, 1.19 | 0.12, 0.60 | 0.43, 2.11 |

``python -m streamchar.train.aligner_errors`` measures the one that was kept; CTC's figures are of a trial
whose code is gone with it. The last frame of a piece that ends in the middle of the text has no frames after
it to go by: 0.33, 1.36 tokens. Give it what follows as far as there is any.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..config import Preset
from ..data.corpus import Corpus
from ..durations import TYPICAL
from .loop import LoopConfig, Stage, Trained
from .parallel import rand, randint, randn

CONFIG = LoopConfig(steps=1000, lr=2e-3, batch=32, matrix_lr=0.01, warmup=50, ema=0.99)
#: Frames of an example.
WINDOW = 96
#: Noise on the latents, at most: what a student says is not clean.
NOISE = 0.6
#: Share of the recordings, the last of the corpus, that is never trained on.
HELD_OUT = 0.02
#: Token of what sounds like none of the text's: silence before and after it.
SILENCE = 0

WIDTH, BLOCKS, KERNEL = 112, 5, 5

# Of the search, natural logarithms. A token that is passed over; silence in the middle of a token; the least
# that a frame can say for a token, so that a few odd frames do not outweigh the text around them.
_SKIP, _PAUSE, _FLOOR = 2.0, 1.0, -6.0
#: Frames that a token takes which the search passed over.
_SKIPPED_FRAMES = 0.6


class FrameClassifier(nn.Module):
    """Tell which tokens sound in each frame; sees ten frames to either side.

    Args:
        channels: of audio latents.
        vocabulary: text tokens.
    """

    def __init__(self, channels: int, vocabulary: int) -> None:
        super().__init__()
        self.widen = nn.Conv1d(channels, WIDTH, 1)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(BLOCKS))
        self.convs = nn.ModuleList(
            nn.Conv1d(WIDTH, WIDTH, KERNEL, padding=KERNEL // 2) for _ in range(BLOCKS)
        )
        self.mixes = nn.ModuleList(nn.Conv1d(WIDTH, WIDTH, 1) for _ in range(BLOCKS))
        self.norm = nn.LayerNorm(WIDTH)
        self.out = nn.Linear(WIDTH, vocabulary)

    @classmethod
    def from_preset(cls, preset: Preset) -> "FrameClassifier":
        """Return a network of a preset's sizes."""
        return cls(preset.dit.audio_channels, preset.orchestrator.vocabulary)

    def forward(self, latents: Tensor) -> Tensor:
        """Return the logarithm of the share of each frame that each token takes, [batch, frames, vocabulary].

        Args:
            latents: [batch, frames, channels].
        """
        x = self.widen(latents.transpose(1, 2))
        for norm, conv, mix in zip(self.norms, self.convs, self.mixes, strict=True):
            inner = norm(x.transpose(1, 2)).transpose(1, 2)
            x = x + mix(nn.functional.gelu(conv(inner)))
        logits: Tensor = self.out(self.norm(x.transpose(1, 2)))
        return logits.float().log_softmax(-1)


class Timeline:
    """The tokens of all recordings, one after another, silence after each of them.

    Attributes:
        frames: in all.
    """

    def __init__(self, corpus: Corpus, recordings: range) -> None:
        edges, labels = [np.zeros(1)], []
        self.frames = 0
        for index in recordings:
            recording = corpus[index]
            edges.append(self.frames + recording.ends.astype(np.float64))
            self.frames += recording.frames
            edges.append(np.array([float(self.frames)]))
            labels.append(np.append(recording.tokens.astype(np.int64), SILENCE))
        self._edges, self._labels = np.concatenate(edges), np.concatenate(labels)

    def shares(self, start: int, frames: int, vocabulary: int) -> Tensor:
        """Return which share of each frame each token takes, [frames, vocabulary] fp32; rows add up to 1."""
        first = int(np.searchsorted(self._edges, start, side="right")) - 1
        last = int(np.searchsorted(self._edges, start + frames, side="left"))
        edges = self._edges[first : last + 1]
        frame = np.arange(start, start + frames)[:, None]
        overlap = np.minimum(edges[1:], frame + 1) - np.maximum(edges[:-1], frame)
        shares = torch.zeros(frames, vocabulary)
        labels = torch.from_numpy(self._labels[first:last])
        return shares.index_add_(1, labels, torch.from_numpy(overlap.clip(0).astype(np.float32)))


class AlignerStage(Stage):
    """Audio latents to tokens, on recordings whose token times are known.

    The loss is the cross-entropy -sum p log q, in nats a frame, of its true shares p and those that are told,
    q. Its least value is the entropy of the shares, not 0.

    Args:
        preset: sizes.
        corpus: recordings.
        latents: [frames, channels], of all recordings one after another.
        device: where to train.
        config: of the loop.
    """

    name = "aligner"

    def __init__(
        self,
        preset: Preset,
        corpus: Corpus,
        latents: Tensor,
        device: torch.device,
        config: LoopConfig = CONFIG,
    ) -> None:
        vocabulary = preset.orchestrator.vocabulary
        super().__init__(config, {"corpus": corpus.digest, "sizes": [latents.shape[1], vocabulary]})
        torch.manual_seed(config.seed)
        self.latents, self.device, self.vocabulary = latents, device, vocabulary
        self.timeline = Timeline(corpus, range(len(corpus) - held_out(corpus)))
        self.classifier = FrameClassifier.from_preset(preset).to(device)
        self.trained = {"aligner": Trained(self.classifier, config)}

    def update(self, step: int, generator: torch.Generator) -> dict[str, float]:
        """Take one step."""
        count, window = self.config.batch, min(WINDOW, self.timeline.frames)
        starts = randint(self.timeline.frames - window + 1, (count,), generator)
        clean = self.latents[starts[:, None] + torch.arange(window)].float()
        level = rand((count, 1, 1), generator) * NOISE
        noisy = clean + level * randn(clean.shape, generator)
        shares = torch.stack([self.timeline.shares(int(each), window, self.vocabulary) for each in starts])
        with torch.autocast(self.device.type, torch.bfloat16):
            log_probs = self.classifier(noisy.to(self.device))
        loss = -(shares.to(self.device) * log_probs).sum(-1).mean()
        norm = self.trained["aligner"].update(loss, step)
        return {"entropy": float(loss.detach()), "norm": norm}


def held_out(corpus: Corpus) -> int:
    """Return how many recordings at the end of a corpus are never trained on."""
    return int(HELD_OUT * len(corpus))


def align(log_probs: Tensor, tokens: Sequence[int], start: float = 0.0) -> Tensor:
    """Return how many tokens have been said at the end of each frame, [frames] fp32, never falling.

    Args:
        log_probs: [frames, vocabulary], of a :class:`FrameClassifier`.
        tokens: what is being said; it may go on after the audio has ended, and begin before it.
        start: tokens already said when the audio begins.

    Raises:
        ValueError: a shape, a token or ``start`` is out of range.

    Source: the most likely path by dynamic programming, Viterbi 1967; that states may be passed over is ours.
    """
    _check(log_probs, tokens, start)
    if not len(log_probs):
        return torch.zeros(0)
    said = min(int(start), len(tokens) - 1)
    ahead = torch.as_tensor(tokens[said:], dtype=torch.int64, device=log_probs.device)
    table = log_probs.detach().float()
    silent = table[:, SILENCE, None]
    # One state before the first token, one a token, one after the last; the outer two are silent.
    sounds = torch.maximum(table[:, ahead], silent - _PAUSE)
    scores = torch.cat((silent, sounds, silent), 1).clamp(min=_FLOOR).cpu().numpy()
    path = _search(scores)
    times, places = _knots(path, scores, len(ahead))
    places = np.maximum(places, start - said)
    position = np.interp(np.arange(1, len(path) + 1), times, places) + said
    return torch.from_numpy(np.maximum.accumulate(position).astype(np.float32))


def _check(log_probs: Tensor, tokens: Sequence[int], start: float) -> None:
    if log_probs.dim() != 2:
        raise ValueError(f"log_probs must be [frames, vocabulary], got {list(log_probs.shape)}")
    if not len(tokens):
        raise ValueError("tokens must hold at least 1 token, got none; give the text that is being said")
    if not 0 <= min(tokens) <= max(tokens) < log_probs.shape[1]:
        raise ValueError(
            f"tokens must be between 0 and {log_probs.shape[1] - 1}, the vocabulary of log_probs, "
            f"got {min(tokens)} to {max(tokens)}"
        )
    if not 0 <= start <= len(tokens):
        raise ValueError(f"start must be between 0 and {len(tokens)} (the tokens given), got {start}")


def _search(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Return the best state of each frame; a path never goes back and may pass over states at a cost.

    Args:
        scores: [frames, states], what a frame says for a state.
    """
    frames, states = scores.shape
    skipping = np.zeros(states, np.float32)
    skipping[1:-1] = _SKIP
    # Going from i to s passes over i + 1 to s - 1, which costs passed[s - 1] - passed[i].
    passed = skipping.cumsum(dtype=np.float32)
    best = np.empty_like(scores)
    best[0] = scores[0]
    best[0, 1:] -= passed[:-1]
    furthest = np.empty(states, np.float32)
    for frame in range(1, frames):
        before, now = best[frame - 1], best[frame]
        np.maximum.accumulate(before + passed, out=furthest)
        np.subtract(furthest[:-1], passed[:-1], out=now[1:])
        now[0] = before[0]
        np.maximum(now, before, out=now)
        now += scores[frame]
    path = np.empty(frames, np.int64)
    state = path[-1] = int(best[-1].argmax())
    for frame in range(frames - 2, -1, -1):
        if state:
            reach = best[frame, :state] + passed[:state]
            came = int(reach.argmax())
            if reach[came] - passed[state - 1] > best[frame, state]:
                state = came
        path[frame] = state
    return path


def _knots(
    path: npt.NDArray[np.int64], scores: npt.NDArray[np.float32], tokens: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return times in frames and the tokens said by then, between which speech moves evenly.

    Args:
        path: [frames], state of each frame.
        scores: [frames, states], of which the two frames at an edge say where in them it is.
        tokens: between the first state and the last.
    """
    later = np.flatnonzero(np.diff(path)) + 1
    old, new = path[later - 1], path[later]
    # A frame that is half the old token's and half the new one's has the edge in its middle.
    into_old = 1 / (1 + np.exp(scores[later - 1, old] - scores[later - 1, new]))
    into_new = 1 / (1 + np.exp(scores[later, new] - scores[later, old]))
    edges = later - into_old.clip(0, 0.5) + into_new.clip(0, 0.5)
    bounds = np.concatenate(([0.0], edges, [float(len(path))]))
    room = np.diff(bounds) / 2
    half = np.minimum((new - old - 1) * _SKIPPED_FRAMES / 2, np.minimum(room[:-1], room[1:]))
    last = float(path[-1]) - 1
    if 0 < path[-1] <= tokens:
        # Nothing says how long the token that the audio ends in goes on.
        last += min((bounds[-1] - bounds[-2]) / TYPICAL, 1.0)
    times = np.column_stack((edges - half, edges + half)).ravel()
    places = np.column_stack((old, new - 1)).ravel()
    first = path[0] - 1
    times = np.concatenate(([0.0], times, bounds[-1:]))
    return times, np.concatenate(([first], places, [last])).clip(0, tokens)
