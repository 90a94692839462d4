"""Short evaluation: every source speaks the same sentences, and controls bound each score from below."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ...config import CLOCK
from ...data.renderer.character import Identity, mouth_openness
from ..arrays import Values
from ..metrics.align import ForcedAligner
from ..metrics.identity import Gallery
from ..metrics.picture_quality import psnr, ssim
from ..metrics.sync import LipReader, SyncScore, around_words, shifted, sync_score
from ..metrics.wer import Recogniser, WordErrors, word_errors
from ..sources import FIRST_IDENTITY, Clip, Item, Source, reference_frame

#: Frames by which the shifted control delays the lips. A working metric measures this offset.
SHIFT = 5
#: One item in this many is spoken again by the next character of the gallery.
SWAPPED_EVERY = 10


@dataclass
class _Measured:
    """Measurements of a source's clips; the media are not kept."""

    kinds: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    transcripts: dict[str, list[str]] = field(default_factory=dict)
    lips: list[Values] = field(default_factory=list)
    expected: list[Values] = field(default_factory=list)
    lips_known: list[Values] = field(default_factory=list)
    expected_known: list[Values] = field(default_factory=list)
    identity: list[float] = field(default_factory=list)
    identity_swapped: list[float] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    compute_seconds: float = 0.0
    media_seconds: float = 0.0
    timed: bool = False


@dataclass(frozen=True)
class SourceScores:
    """Scores of one source.

    Attributes:
        source: name of the source.
        clips: number of scored clips.
        wer: word errors of each recogniser, for "everyday", "unseen" and "all" sentences.
        aligned: number of clips whose phones the aligner found; the others are left out of lip sync.
        sync: lips against aligned phones; None if no clip could be scored.
        sync_known: lips against the true times of the phones, if the source knows them.
        sync_mismatched: lips against the phones of another clip; a lower bound.
        sync_shifted: lips delayed by :data:`SHIFT` frames.
        identity: share of frames that are nearest to their own character.
        identity_swapped: share of frames that are nearest to the item's character when the reference shows
            the next one; a lower bound, from one item in :data:`SWAPPED_EVERY`.
        psnr: peak signal-to-noise ratio against the encoded frames, in dB; only for round trips.
        ssim: structural similarity with the encoded frames; only for round trips.
        rtf: seconds of computing per second of media.
    """

    source: str
    clips: int
    wer: Mapping[str, Mapping[str, WordErrors]]
    aligned: int
    sync: SyncScore | None
    sync_known: SyncScore | None
    sync_mismatched: SyncScore | None
    sync_shifted: SyncScore | None
    identity: float
    identity_swapped: float
    psnr: float | None
    ssim: float | None
    rtf: float | None


def evaluate_short(
    sources: Sequence[Source],
    items: Sequence[Item],
    recognisers: Sequence[Recogniser],
    aligner: ForcedAligner,
    size: tuple[int, int],
    identities: int,
    progress: Callable[[Iterable[Item], str], Iterable[Item]] = lambda items, _: items,
) -> list[SourceScores]:
    """Let every source speak every item, and score the clips.

    Args:
        sources: sources to score; include the ground truth to compare with it.
        items: items from :func:`~streamchar.eval.sources.choose_items`.
        recognisers: at least one.
        aligner: finds the phones in the sound.
        size: height and width of all pictures.
        identities: number of characters in the gallery, from
            :data:`~streamchar.eval.sources.FIRST_IDENTITY` on.
        progress: called with the items and the name of each source; returns the items to iterate over.

    Returns:
        The scores of each source, in order.

    Raises:
        ValueError: there are no items, the gallery has fewer than two characters, or the character of an item
            is not in it.
    """
    last = FIRST_IDENTITY + identities - 1
    seeds = {item.identity for item in items}
    if not items or not all(FIRST_IDENTITY <= seed <= last for seed in seeds):
        raise ValueError(
            f"identities of items must be between {FIRST_IDENTITY} and {last}, got {sorted(seeds)}; "
            "call choose_items() with the same number of identities"
        )
    gallery = Gallery(
        np.stack([reference_frame(FIRST_IDENTITY + index, *size) for index in range(identities)])
    )
    readers = {seed: LipReader(Identity.sample(seed), *size) for seed in seeds}
    scores = []
    for source in sources:
        measured = _Measured()
        for number, item in enumerate(progress(items, source.name)):
            clip = source.make(item)
            _measure_words(measured, item, clip, recognisers)
            _measure_lips(measured, item, clip, aligner, readers[item.identity])
            own = item.identity - FIRST_IDENTITY
            measured.identity.append(float((gallery.nearest(clip.video) == own).mean()))
            if source.truth is not None:
                original = source.truth.make(item).video
                measured.psnr.append(psnr(clip.video, original))
                measured.ssim.append(ssim(clip.video, original))
            if number % SWAPPED_EVERY == 0:
                other = replace(item, identity=FIRST_IDENTITY + (own + 1) % identities)
                swapped = gallery.nearest(source.make(other).video) == own
                measured.identity_swapped.append(float(swapped.mean()))
        scores.append(_scores(source.name, measured))
    return scores


def _measure_words(measured: _Measured, item: Item, clip: Clip, recognisers: Sequence[Recogniser]) -> None:
    measured.kinds.append(item.kind)
    measured.texts.append(item.text)
    measured.media_seconds += len(clip.audio) / CLOCK.sample_rate
    if clip.compute_seconds is not None:
        measured.timed = True
        measured.compute_seconds += clip.compute_seconds
    for recogniser in recognisers:
        measured.transcripts.setdefault(recogniser.name, []).append(recogniser.transcribe(clip.audio))


def _measure_lips(
    measured: _Measured, item: Item, clip: Clip, aligner: ForcedAligner, reader: LipReader
) -> None:
    lips = reader.read(clip.video)
    if clip.phones is not None:
        measured.lips_known.append(lips)
        measured.expected_known.append(mouth_openness(clip.phones, len(lips)).double().numpy())
    phones = aligner.align(clip.audio, item.text)
    if phones is not None:
        seen, expected = around_words(lips, phones)
        measured.lips.append(seen)
        measured.expected.append(expected)


def _scores(name: str, measured: _Measured) -> SourceScores:
    lips, expected = measured.lips, measured.expected
    return SourceScores(
        source=name,
        clips=len(measured.texts),
        wer={
            recogniser: _by_kind(measured.kinds, measured.texts, transcripts)
            for recogniser, transcripts in measured.transcripts.items()
        },
        aligned=len(lips),
        sync=_sync(lips, expected),
        sync_known=_sync(measured.lips_known, measured.expected_known),
        sync_mismatched=_sync(lips, expected[1:] + expected[:1]) if len(lips) > 1 else None,
        sync_shifted=_sync([shifted(gap, SHIFT) for gap in lips], expected),
        identity=float(np.mean(measured.identity)),
        identity_swapped=float(np.mean(measured.identity_swapped)),
        psnr=float(np.mean(measured.psnr)) if measured.psnr else None,
        ssim=float(np.mean(measured.ssim)) if measured.ssim else None,
        rtf=measured.compute_seconds / measured.media_seconds if measured.timed else None,
    )


def _by_kind(
    kinds: Sequence[str], references: Sequence[str], transcripts: Sequence[str]
) -> dict[str, WordErrors]:
    errors = {"all": word_errors(references, transcripts)}
    for kind in dict.fromkeys(kinds):
        chosen = [index for index, each in enumerate(kinds) if each == kind]
        errors[kind] = word_errors(
            [references[index] for index in chosen], [transcripts[index] for index in chosen]
        )
    return errors


def _sync(lips: Sequence[Values], expected: Sequence[Values]) -> SyncScore | None:
    try:
        return sync_score(lips, expected)
    except ValueError:  # No clip was aligned, or no mouth moves: a result, not an error.
        return None
