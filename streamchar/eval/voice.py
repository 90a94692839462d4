"""Does a voice stay itself? Statistics of its spectrum beside those of the voice that was learned.

Mean and deviation of mel-frequency cepstra tell vocal tracts apart, as speaker recognition did before
networks, and say when a voice turns dull, hoarse or is another's. They do not hear melody, tempo or accent,
and move a little with what is said, so that half a minute at least should be compared. A channel, such as a
vocoder, moves them too: what is measured is voice and its rendering together. This is no speaker
verification, and its figures compare with none.
"""

import math

import numpy as np
import numpy.typing as npt
import soxr
import torch

from ..codecs.spectrogram import FLOOR, mel_bank
from .wer import SAMPLE_RATE, Audio

_MELS, _N_FFT, _HOP = 40, 1024, 250
#: Cepstra kept; the first, loudness, is not.
_CEPSTRA = 19
#: Log energy under the loudest below which a window is a pause.
_ACTIVE = 4.0
#: Log energy above the encoder's floor below which nothing sounds.
_AUDIBLE = 0.5
#: By how much the pitch and the vocal tract of :func:`raised` are above those of the voice it is made of.
HIGHER = 0.15

Values = npt.NDArray[np.float64]


def cepstra(audio: Audio) -> Values:
    """Return the mel-frequency cepstra of what sounds in a recording, [windows, 19].

    Args:
        audio: [samples] fp32, 24 kHz.
    """
    if len(audio) < _N_FFT:
        return np.zeros((0, _CEPSTRA))
    windows = torch.from_numpy(audio.copy()).unfold(0, _N_FFT, _HOP) * torch.hann_window(_N_FFT)
    energies = torch.fft.rfft(windows).abs() @ mel_bank(_MELS, _N_FFT, SAMPLE_RATE).T
    log_mel = energies.clamp(min=FLOOR).log().double()
    loudness = log_mel.mean(1)
    least = max(float(loudness.max()) - _ACTIVE, math.log(FLOOR) + _AUDIBLE)
    log_mel = log_mel[loudness > least]
    # The cosine transform, orthonormal, of order 1 and up.
    angles = torch.arange(1, _CEPSTRA + 1)[:, None] * (torch.arange(_MELS) + 0.5) * (torch.pi / _MELS)
    return np.asarray(log_mel @ (angles.cos().double() * (2 / _MELS) ** 0.5).T)


class VoiceStatistics:
    """Mean and deviation of cepstra, gathered piece by piece."""

    def __init__(self) -> None:
        self._count, self._sums, self._squares = 0, np.zeros(_CEPSTRA), np.zeros(_CEPSTRA)

    def add(self, audio: Audio) -> None:
        """Take in a piece, [samples] fp32, 24 kHz."""
        found = cepstra(audio)
        self._count += len(found)
        self._sums += found.sum(0)
        self._squares += np.square(found).sum(0)

    def vector(self) -> Values | None:
        """Return means and deviations, [38]; None of silence."""
        if not self._count:
            return None
        mean = self._sums / self._count
        deviation = np.sqrt(np.maximum(self._squares / self._count - mean**2, 0))
        return np.concatenate([mean, deviation])


def similarity(one: Values, other: Values) -> float:
    """Return the cosine of two statistics: 1 the same voice in the same words."""
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


def raised(audio: Audio) -> Audio:
    """Return a recording higher and faster by :data:`HIGHER`, as another voice: the floor of likeness.

    Args:
        audio: [samples] fp32, 24 kHz.

    Returns:
        [samples / 1.15] fp32, 24 kHz.
    """
    return np.asarray(soxr.resample(audio, SAMPLE_RATE * (1 + HIGHER), SAMPLE_RATE), np.float32)
