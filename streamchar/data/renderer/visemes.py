"""Mouth movements from timed phones.

Each phone has target values for the mouth columns of a pose, and a weight. A column's value is the weighted
mean of the targets of all phones. The weight of a phone over time is its interval smoothed by a Gaussian,
which is wider before the phone than after it because lips anticipate. This is a closed form of Cohen and
Massaro's dominance functions ("Modeling coarticulation in synthetic visual speech", 1993). Closures that
viewers would miss (closed lips in p, b, m; lip on teeth in f, v) are then imposed for at least one frame. The
result depends on the phones alone; nothing is random.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...config import CLOCK
from ...errors import StreamCharError
from .pose import Pose

STRESS = "ˈˌ"
PUNCTUATION = ";:,.!?—…\"()“”-–‘’'→↓↗↘"
#: Standard deviations of the smoothing before and after a phone, in seconds.
ANTICIPATION, RELEASE = 0.035, 0.026
#: Seconds that a closure takes to build up and to release.
CLOSING = 0.05
#: Relative increase of the mouth opening in a vowel with primary stress.
STRESS_GAIN = 0.15


@dataclass(frozen=True)
class Phone:
    """One symbol of the misaki phoneme alphabet with its start and end in seconds."""

    symbol: str
    start: float
    end: float


class PhoneError(StreamCharError, ValueError):
    """A phone has an unknown symbol, or the times of the phones are out of order."""


@dataclass(frozen=True)
class Viseme:
    """Targets of the mouth columns, in the order of :data:`MOUTH_COLUMNS`, and their weight."""

    opening: float
    width: float = 0.0
    round: float = 0.0
    tuck: float = 0.0
    press: float = 0.0
    teeth: float = 0.0
    tongue: float = 0.0
    weight: float = 1.0

    def columns(self) -> tuple[float, ...]:
        """Return the targets in the order of :data:`MOUTH_COLUMNS`."""
        return self.opening, self.width, self.round, self.tuck, self.press, self.teeth, self.tongue


REST = Viseme(0.0, weight=0.8)

_A = Viseme(0.88, 0.15, tongue=0.1)
_E = Viseme(0.52, 0.55, teeth=0.2)
_I = Viseme(0.32, 0.75, teeth=0.4)
_U = Viseme(0.36, -0.4, 0.9)
_SCHWA = Viseme(0.40, 0.05, weight=0.8)
_BILABIAL = Viseme(0.0, 0.0, press=1.0, weight=1.6)
_LABIODENTAL = Viseme(0.08, 0.1, tuck=1.0, weight=1.5)
_ALVEOLAR = Viseme(0.24, 0.2, teeth=0.35, tongue=0.6, weight=0.6)
_SIBILANT = Viseme(0.20, 0.5, teeth=1.0, weight=1.0)
_POSTALVEOLAR = Viseme(0.24, -0.25, 0.6, teeth=0.9, weight=1.0)
_DENTAL = Viseme(0.26, 0.2, teeth=0.3, tongue=1.0, weight=1.1)
_VELAR = Viseme(0.30, 0.1, weight=0.35)
_RHOTIC = Viseme(0.28, -0.2, 0.5, teeth=0.3, weight=0.8)

#: Visemes of each symbol; a diphthong has two, one after the other.
VISEMES: dict[str, tuple[Viseme, ...]] = {
    **dict.fromkeys("ɑa", (Viseme(1.0, 0.0, tongue=0.15),)),
    "ɒ": (Viseme(0.75, -0.1, 0.3),),
    "æ": (Viseme(0.85, 0.5, teeth=0.1, tongue=0.15),),
    "ʌ": (Viseme(0.68, 0.1),),
    "ɐ": (Viseme(0.68, 0.1),),
    "ɛ": (Viseme(0.60, 0.5, teeth=0.15),),
    "e": (_E,),
    "ɜ": (Viseme(0.42, -0.1, 0.4, teeth=0.2),),
    "ɚ": (Viseme(0.36, -0.1, 0.4, teeth=0.2),),
    "ə": (_SCHWA,),
    "ᵊ": (Viseme(0.32, 0.05, weight=0.5),),
    "ɪ": (Viseme(0.38, 0.55, teeth=0.3),),
    "ᵻ": (Viseme(0.34, 0.45, teeth=0.3, weight=0.8),),
    "i": (_I,),
    "u": (_U,),
    "ʊ": (Viseme(0.36, -0.25, 0.65),),
    "ɔ": (Viseme(0.72, -0.2, 0.6),),
    "o": (Viseme(0.55, -0.3, 0.75),),
    "A": (_E, _I),
    "I": (_A, _I),
    "O": (Viseme(0.58, -0.25, 0.65), _U),
    "Q": (Viseme(0.50, 0.0, 0.3), _U),
    "W": (_A, _U),
    "Y": (Viseme(0.65, -0.25, 0.7), _I),
    **dict.fromkeys("pbm", (_BILABIAL,)),
    **dict.fromkeys("fv", (_LABIODENTAL,)),
    **dict.fromkeys("td", (_ALVEOLAR,)),
    **dict.fromkeys("nɾT", (Viseme(0.26, 0.15, teeth=0.25, tongue=0.7, weight=0.5),)),
    "l": (Viseme(0.34, 0.2, teeth=0.15, tongue=1.0, weight=0.8),),
    **dict.fromkeys("sz", (_SIBILANT,)),
    **dict.fromkeys("ʃʒʤʧ", (_POSTALVEOLAR,)),
    **dict.fromkeys("θð", (_DENTAL,)),
    **dict.fromkeys("kɡgŋx", (_VELAR,)),
    "h": (Viseme(0.40, 0.1, weight=0.2),),
    "ʔ": (Viseme(0.25, weight=0.2),),
    "j": (Viseme(0.26, 0.6, teeth=0.4, weight=0.8),),
    "w": (Viseme(0.18, -0.5, 1.0, weight=1.3),),
    **dict.fromkeys("ɹr", (_RHOTIC,)),
}
VOWELS = frozenset("ɑaɒæʌɐɛeɜɚəᵊɪᵻiuʊɔoAIOQWY")
#: Marks without a mouth shape of their own; their time belongs to the phone before them.
_LENGTHENING = "ːʰʲ̃"
#: All symbols that :func:`~streamchar.data.renderer.motion.animate` accepts.
ALPHABET = frozenset(VISEMES) | frozenset(STRESS) | frozenset(PUNCTUATION) | frozenset(_LENGTHENING) | {" "}


@dataclass
class _Segment:
    symbol: str  # "" for silence
    start: float
    end: float
    stressed: bool = False


def _check(phones: Sequence[Phone]) -> None:
    before = 0.0
    for index, phone in enumerate(phones):
        if phone.symbol not in ALPHABET:
            raise PhoneError(
                f"phone {index} must be one symbol of {''.join(sorted(ALPHABET))!r}, got {phone.symbol!r}; "
                "transcribe with the misaki alphabet"
            )
        if not (phone.end >= phone.start >= before - 1e-4):
            raise PhoneError(
                f"phone {index} ({phone.symbol!r}) must start at or after {before:.4f} s and not end before "
                f"it starts, got {phone.start:.4f} to {phone.end:.4f} s; sort the phones by time"
            )
        before = phone.end


def _segments(phones: Sequence[Phone]) -> list[_Segment]:
    """Return sounds and silences in order, without gaps.

    The time of a stress mark goes to the vowel after it, that of a lengthening mark to the phone before it.
    A space between two sounds is split evenly between them; next to punctuation it is silence.
    """
    kept: list[_Segment] = []
    mark: Phone | None = None
    for phone in phones:
        if phone.symbol in STRESS:
            mark = phone
        elif phone.symbol in _LENGTHENING and kept:
            kept[-1].end = phone.end
        elif phone.symbol not in _LENGTHENING:
            symbol = "" if phone.symbol in PUNCTUATION else phone.symbol
            start = phone.start if mark is None else mark.start
            kept.append(_Segment(symbol, start, phone.end, mark is not None and mark.symbol == STRESS[0]))
            mark = None
    joined: list[_Segment] = []
    for index, segment in enumerate(kept):
        previous = joined[-1] if joined else None
        if segment.symbol == " ":
            following = kept[index + 1].symbol if index + 1 < len(kept) else ""
            if previous is not None and previous.symbol and following.strip():
                previous.end = (segment.start + segment.end) / 2
                kept[index + 1].start = previous.end
                continue
            segment = _Segment("", segment.start, segment.end)
        if previous is not None and segment.start > previous.end + 1e-3:
            joined.append(_Segment("", previous.end, segment.start))
        joined.append(segment)
    return joined


def _targets(segments: Sequence[_Segment]) -> Iterator[tuple[Viseme, float, float, float]]:
    """Yield (viseme, start, end, gain of the opening), with silence before the first and after the last."""
    if not segments:
        yield REST, -1e3, 1e3, 1.0
        return
    yield REST, -1e3, segments[0].start, 1.0
    for segment in segments:
        shapes = VISEMES[segment.symbol] if segment.symbol else (REST,)
        gain = 1 + STRESS_GAIN * (segment.stressed and segment.symbol in VOWELS)
        step = (segment.end - segment.start) / len(shapes)
        for index, shape in enumerate(shapes):
            start = segment.start + index * step
            yield shape, start, start + step, gain
    yield REST, segments[-1].end, 1e3, 1.0


def _closure(time: Tensor, spans: Sequence[tuple[float, float]]) -> Tensor:
    """Return the degree of closure at each time: 1 inside a span, for at least one frame, 0 far from all."""
    if not spans:
        return torch.zeros(len(time))
    start, end = torch.tensor(spans, dtype=time.dtype).T
    # A span slightly longer than a frame contains the time of at least one frame.
    slack = ((1.02 / CLOCK.frame_rate - (end - start)) / 2).clamp(min=0)
    start, end = start - slack, end + slack
    outside = torch.maximum(start - time[:, None], time[:, None] - end).clamp(min=0).amin(1)
    near = (1 - outside / CLOSING).clamp(min=0)
    return (near * near * (3 - 2 * near)).float()


def frame_times(frames: int) -> Tensor:
    """Return the time that each frame shows, the middle of its interval: [frames], fp64, seconds."""
    return (torch.arange(frames, dtype=torch.float64) + 0.5) / CLOCK.frame_rate


def mouth_track(phones: Sequence[Phone], frames: int) -> Tensor:
    """Return the mouth columns of every frame: [frames, len(MOUTH_COLUMNS)], fp32.

    Raises:
        PhoneError: a symbol is not in :data:`ALPHABET`, or the times are out of order.
    """
    _check(phones)
    segments = _segments(phones)
    shapes, starts, ends, gains = zip(*_targets(segments))
    time = frame_times(frames)
    targets = torch.tensor(
        [(shape.opening * gain, *shape.columns()[1:]) for shape, gain in zip(shapes, gains)],
        dtype=torch.float64,
    )
    weights = torch.tensor([shape.weight for shape in shapes], dtype=torch.float64)
    start, end = torch.tensor([starts, ends], dtype=torch.float64)
    ndtr = torch.special.ndtr
    shares = ndtr((time[:, None] - start) / ANTICIPATION) - ndtr((time[:, None] - end) / RELEASE)
    shares = shares.clamp(min=0) * weights
    track: Tensor = ((shares @ targets) / shares.sum(1, keepdim=True).clamp(min=1e-9)).float()

    lips = _closure(time, [(s.start, s.end) for s in segments if s.symbol and s.symbol in "pbm"])
    teeth = _closure(time, [(s.start, s.end) for s in segments if s.symbol and s.symbol in "fv"])
    for column in (Pose.MOUTH_OPEN, Pose.TEETH, Pose.TONGUE, Pose.LIP_TUCK):
        track[:, column] *= 1 - lips
    track[:, Pose.LIP_PRESS] = torch.maximum(track[:, Pose.LIP_PRESS], lips)
    teeth *= 1 - lips
    track[:, Pose.LIP_TUCK] = torch.maximum(track[:, Pose.LIP_TUCK], teeth)
    for column in (Pose.MOUTH_OPEN, Pose.TONGUE, Pose.LIP_ROUND):
        track[:, column] *= 1 - 0.9 * teeth
    return track.clamp_(-1, 1)


def mouth_openness(phones: Sequence[Phone], frames: int) -> Tensor:
    """Return the opening of the lips in every frame, from 0 (closed) to 1 (wide open): [frames], fp32."""
    return mouth_track(phones, frames)[:, Pose.MOUTH_OPEN]
