"""Does a voice stay the same? Statistics of its spectrum are compared with those of the training voice.

Mean and standard deviation of mel-frequency cepstra distinguish vocal tracts; speaker recognition used them
before neural networks. They show when a voice becomes dull or hoarse, or changes to another one. They ignore
melody, tempo and accent, and vary a little with the words, so that at least half a minute should be compared.
A channel such as a vocoder changes them as well: the measure covers voice and rendering together. This is not
speaker verification, and the values cannot be compared with those of any such system.
"""

import math

import numpy as np
import soxr
import torch

from ...codecs.spectrogram import FLOOR, mel_bank
from ...config import CLOCK
from ..arrays import Audio, Values

_MELS, _N_FFT, _HOP = 40, 1024, 250
# Number of cepstra; the one of order 0, loudness, is left out.
_CEPSTRA = 19
# A window whose log energy is further than this below the loudest window is a pause.
_ACTIVE = 4.0
# A window whose log energy is less than this above the floor is silent.
_AUDIBLE = 0.5
#: By how much :func:`raised` increases pitch and formants.
HIGHER = 0.15


def cepstra(audio: Audio) -> Values:
    """Return the mel-frequency cepstra of the audible parts of a recording, [windows, 19].

    Args:
        audio: [samples] fp32, 24 kHz.
    """
    if len(audio) < _N_FFT:
        return np.zeros((0, _CEPSTRA))
    windows = torch.from_numpy(audio.copy()).unfold(0, _N_FFT, _HOP) * torch.hann_window(_N_FFT)
    energies = torch.fft.rfft(windows).abs() @ mel_bank(_MELS, _N_FFT, CLOCK.sample_rate).T
    log_mel = energies.clamp(min=FLOOR).log().double()
    loudness = log_mel.mean(1)
    least = max(float(loudness.max()) - _ACTIVE, math.log(FLOOR) + _AUDIBLE)
    log_mel = log_mel[loudness > least]
    # The orthonormal cosine transform, from order 1.
    angles = torch.arange(1, _CEPSTRA + 1)[:, None] * (torch.arange(_MELS) + 0.5) * (torch.pi / _MELS)
    return np.asarray(log_mel @ (angles.cos().double() * (2 / _MELS) ** 0.5).T)


class VoiceStatistics:
    """Mean and standard deviation of cepstra, accumulated over pieces of a recording."""

    def __init__(self) -> None:
        self._count, self._sums, self._squares = 0, np.zeros(_CEPSTRA), np.zeros(_CEPSTRA)

    def add(self, audio: Audio) -> None:
        """Add a piece, [samples] fp32, 24 kHz."""
        found = cepstra(audio)
        self._count += len(found)
        self._sums += found.sum(0)
        self._squares += np.square(found).sum(0)

    def vector(self) -> Values | None:
        """Return means and standard deviations, [38]; None if everything was silent."""
        if not self._count:
            return None
        mean = self._sums / self._count
        deviation = np.sqrt(np.maximum(self._squares / self._count - mean**2, 0))
        return np.concatenate([mean, deviation])


def similarity(one: Values, other: Values) -> float:
    """Return the cosine of two statistics: 1 for the same voice with the same words."""
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


def raised(audio: Audio) -> Audio:
    """Return a recording played faster by :data:`HIGHER`, which makes it another voice: a lower bound.

    Args:
        audio: [samples] fp32, 24 kHz.

    Returns:
        [samples / 1.15] fp32, 24 kHz.
    """
    rate = CLOCK.sample_rate
    return np.asarray(soxr.resample(audio, rate * (1 + HIGHER), rate), np.float32)
