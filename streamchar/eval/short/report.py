"""Short evaluations as one JSON object and as one table."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ..metrics.sync import SyncScore
from ..metrics.wer import WordErrors
from .evaluate import SHIFT, SourceScores


def as_dict(scores: Sequence[SourceScores]) -> list[dict[str, Any]]:
    """Return the scores as JSON values, with the word error rates added."""
    entries = []
    for score in scores:
        entry = asdict(score)
        for recogniser, kinds in score.wer.items():
            for kind, errors in kinds.items():
                entry["wer"][recogniser][kind]["rate"] = errors.rate
        entries.append(entry)
    return entries


def table_rows(scores: Sequence[SourceScores]) -> list[list[str]]:
    """Return the cells of the table: a header, then one row per score; one column per source."""
    return [[label, *cells] for label, cells in zip(_labels(scores), zip(*map(_cells, scores)))]


def _labels(scores: Sequence[SourceScores]) -> list[str]:
    wer = [f"WER {recogniser}, {kind}" for recogniser, kinds in scores[0].wer.items() for kind in kinds]
    return [
        "source",
        *wer,
        "clips aligned",
        "lip offset, frames",
        "lip correlation",
        "with true phones",
        "with mismatched audio",
        f"lip offset, shifted by {SHIFT}",
        "identity",
        "identity, reference swapped",
        "PSNR",
        "SSIM",
        "RTF",
    ]


def _cells(score: SourceScores) -> list[str]:
    return [
        score.source,
        *(_wer(errors) for kinds in score.wer.values() for errors in kinds.values()),
        f"{score.aligned}/{score.clips}",
        _offset(score.sync),
        _correlation(score.sync),
        _correlation(score.sync_known),
        _correlation(score.sync_mismatched),
        _offset(score.sync_shifted),
        f"{score.identity:.1%}",
        f"{score.identity_swapped:.1%}",
        "-" if score.psnr is None else f"{score.psnr:.1f} dB",
        "-" if score.ssim is None else f"{score.ssim:.3f}",
        "-" if score.rtf is None else f"{score.rtf:.2f}",
    ]


def _wer(errors: WordErrors) -> str:
    return f"{errors.rate:.1%} ({errors.low:.0%} to {errors.high:.0%})"


def _offset(score: SyncScore | None) -> str:
    return f"{score.offset:+d}" if score else "-"


def _correlation(score: SyncScore | None) -> str:
    return f"{score.at_zero:.2f}" if score else "-"
