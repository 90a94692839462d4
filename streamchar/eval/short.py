"""Short evaluation: sentences, each spoken by every source, scored beside their ceilings and floors."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..data.character import Identity, mouth_openness
from .align import Aligner
from .identity import Gallery
from .pictures import psnr, ssim
from .sources import FIRST_IDENTITY, Clip, Item, Source, reference_frame
from .sync import LipReader, Series, SyncScore, beside_words, shifted, sync_score
from .wer import SAMPLE_RATE, Recogniser, WordErrors, word_errors

#: Frames by which the shifted control delays the lips; a metric that works finds them again.
SHIFT = 5
#: Of so many items one is spoken once more, by the next character of the gallery.
SWAPPED_EVERY = 10


@dataclass
class _Measured:
    """What is kept of the clips of a source; their media are not."""

    kinds: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    heard: dict[str, list[str]] = field(default_factory=dict)
    lips: list[Series] = field(default_factory=list)
    asked: list[Series] = field(default_factory=list)
    known_lips: list[Series] = field(default_factory=list)
    known: list[Series] = field(default_factory=list)
    hits: list[float] = field(default_factory=list)
    swapped: list[float] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    computed: float = 0.0
    media: float = 0.0
    timed: bool = False


@dataclass(frozen=True)
class SourceScores:
    """Scores of one source.

    Attributes:
        source: its name.
        clips: scored.
        wer: of each recogniser, over "everyday" and "unseen" sentences and "all" of them.
        aligned: clips whose phones the aligner found; the others have no part in sync.
        sync: lips against aligned phones; None where no clip could be scored.
        sync_known: lips against the true times of the phones, where the source knows them.
        sync_mismatched: lips against the phones of another clip, a floor.
        sync_shifted: lips delayed by :data:`SHIFT` frames.
        identity: share of frames nearest to their own character.
        identity_swapped: share of frames nearest to the character of an item where the reference was the next
            one's: a floor, of one item in :data:`SWAPPED_EVERY`.
        psnr: dB, and ``ssim``: against the frames that went in; of round trips alone.
        rtf: seconds of computing for a second of media.
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
    aligner: Aligner,
    size: tuple[int, int],
    identities: int,
    progress: Callable[[Iterable[Item], str], Iterable[Item]] = lambda items, _: items,
) -> list[SourceScores]:
    """Let every source speak every item, and score them.

    Args:
        sources: ground truth among them, if its scores are to stand beside the others'.
        items: from :func:`~streamchar.eval.sources.choose_items`.
        recognisers: at least one.
        aligner: finds the phones of what was said.
        size: height and width of all pictures.
        identities: characters of the gallery, from :data:`~streamchar.eval.sources.FIRST_IDENTITY` on.
        progress: wraps the items of a source, told the source's name.

    Returns:
        The scores of each source, in order.

    Raises:
        ValueError: there are no items, fewer than two characters, or an item of none of them.
    """
    last = FIRST_IDENTITY + identities - 1
    seeds = {item.identity for item in items}
    if not items or not all(FIRST_IDENTITY <= seed <= last for seed in seeds):
        raise ValueError(
            f"items must be of identities {FIRST_IDENTITY} to {last}, got {sorted(seeds)}; "
            "choose_items() gives as many as it is told"
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
            _listen(measured, item, clip, recognisers)
            _watch(measured, item, clip, aligner, readers[item.identity])
            own = item.identity - FIRST_IDENTITY
            measured.hits.append(float((gallery.nearest(clip.video) == own).mean()))
            if source.truth is not None:
                original = source.truth.make(item).video
                measured.psnr.append(psnr(clip.video, original))
                measured.ssim.append(ssim(clip.video, original))
            if number % SWAPPED_EVERY == 0:
                other = replace(item, identity=FIRST_IDENTITY + (own + 1) % identities)
                swapped = gallery.nearest(source.make(other).video) == own
                measured.swapped.append(float(swapped.mean()))
        scores.append(_scores(source.name, measured))
    return scores


def _listen(measured: _Measured, item: Item, clip: Clip, recognisers: Sequence[Recogniser]) -> None:
    measured.kinds.append(item.kind)
    measured.texts.append(item.text)
    measured.media += len(clip.audio) / SAMPLE_RATE
    if clip.seconds is not None:
        measured.timed = True
        measured.computed += clip.seconds
    for recogniser in recognisers:
        measured.heard.setdefault(recogniser.name, []).append(recogniser.transcribe(clip.audio))


def _watch(measured: _Measured, item: Item, clip: Clip, aligner: Aligner, reader: LipReader) -> None:
    lips = reader.read(clip.video)
    if clip.phones is not None:
        measured.known_lips.append(lips)
        measured.known.append(mouth_openness(clip.phones, len(lips)).double().numpy())
    phones = aligner.align(clip.audio, item.text)
    if phones is not None:
        seen, asked = beside_words(lips, phones)
        measured.lips.append(seen)
        measured.asked.append(asked)


def _scores(name: str, measured: _Measured) -> SourceScores:
    lips, asked = measured.lips, measured.asked
    return SourceScores(
        source=name,
        clips=len(measured.texts),
        wer={
            recogniser: _by_kind(measured.kinds, measured.texts, heard)
            for recogniser, heard in measured.heard.items()
        },
        aligned=len(lips),
        sync=_synced(lips, asked),
        sync_known=_synced(measured.known_lips, measured.known),
        sync_mismatched=_synced(lips, asked[1:] + asked[:1]) if len(lips) > 1 else None,
        sync_shifted=_synced([shifted(series, SHIFT) for series in lips], asked),
        identity=float(np.mean(measured.hits)),
        identity_swapped=float(np.mean(measured.swapped)),
        psnr=float(np.mean(measured.psnr)) if measured.psnr else None,
        ssim=float(np.mean(measured.ssim)) if measured.ssim else None,
        rtf=measured.computed / measured.media if measured.timed else None,
    )


def _by_kind(kinds: Sequence[str], said: Sequence[str], heard: Sequence[str]) -> dict[str, WordErrors]:
    found = {"all": word_errors(said, heard)}
    for kind in dict.fromkeys(kinds):
        chosen = [index for index, each in enumerate(kinds) if each == kind]
        found[kind] = word_errors([said[index] for index in chosen], [heard[index] for index in chosen])
    return found


def _synced(lips: Sequence[Series], asked: Sequence[Series]) -> SyncScore | None:
    try:
        return sync_score(lips, asked)
    except ValueError:  # no clip was aligned, or no mouth moves: a result, not a fault
        return None
