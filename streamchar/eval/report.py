"""The scores as one JSON object and as one table."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from .short import SHIFT, SourceScores
from .sync import SyncScore
from .wer import WordErrors

#: To be reached: word error rate above ground truth's, offset, share of its correlation, identity, speed.
WER_MARGIN, OFFSET, CORRELATION, IDENTITY, RTF = 0.10, 1, 0.8, 0.95, 0.8
#: By how much a student may fall short of its teacher on each score.
TEACHER_SHARE = 0.15


def as_dict(scores: Sequence[SourceScores]) -> list[dict[str, Any]]:
    """Return the scores as JSON values, with the word error rates spelled out."""
    found = []
    for score in scores:
        entry = asdict(score)
        for recogniser, kinds in score.wer.items():
            for kind, errors in kinds.items():
                entry["wer"][recogniser][kind]["rate"] = errors.rate
        found.append(entry)
    return found


def table_lines(scores: Sequence[SourceScores]) -> list[list[str]]:
    """Return the cells of the table: a head, then a line a score, a column a source."""
    return [[head, *cells] for head, cells in zip(_heads(scores), zip(*_cells(scores)))]


def _heads(scores: Sequence[SourceScores]) -> list[str]:
    heard = [f"WER {recogniser}, {kind}" for recogniser, kinds in scores[0].wer.items() for kind in kinds]
    return [
        "source",
        *heard,
        "aligned",
        "lips late by",
        "correlation",
        "true phones",
        "mismatched",
        f"shifted by {SHIFT}",
        "identity",
        "reference swapped",
        "PSNR",
        "SSIM",
        "RTF",
    ]


def _cells(scores: Sequence[SourceScores]) -> list[list[str]]:
    return [
        [
            score.source,
            *(_wer(errors) for kinds in score.wer.values() for errors in kinds.values()),
            f"{score.aligned}/{score.clips}",
            f"{score.sync.offset:+d}" if score.sync else "-",
            _at_zero(score.sync),
            _at_zero(score.sync_known),
            _at_zero(score.sync_mismatched),
            f"{score.sync_shifted.offset:+d}" if score.sync_shifted else "-",
            f"{score.identity:.1%}",
            f"{score.identity_swapped:.1%}",
            "-" if score.psnr is None else f"{score.psnr:.1f} dB",
            "-" if score.ssim is None else f"{score.ssim:.3f}",
            "-" if score.rtf is None else f"{score.rtf:.2f}",
        ]
        for score in scores
    ]


def targets(score: SourceScores, truth: SourceScores) -> dict[str, bool]:
    """Return which targets a source reaches, beside the ground truth of the same run.

    Args:
        score: of the source.
        truth: of the ground truth, with the same recognisers.
    """
    met = {
        f"WER {recogniser} within {WER_MARGIN * 100:.0f} points of ground truth": kinds["all"].rate
        <= truth.wer[recogniser]["all"].rate + WER_MARGIN
        for recogniser, kinds in score.wer.items()
    }
    sync, best = score.sync, truth.sync
    met[f"lips within {OFFSET} frame"] = sync is not None and abs(sync.offset) <= OFFSET
    met[f"correlation at least {CORRELATION} of ground truth's"] = (
        sync is not None and best is not None and sync.at_zero >= CORRELATION * best.at_zero
    )
    met[f"identity at least {IDENTITY:.0%}"] = score.identity >= IDENTITY
    if score.rtf is not None:
        met[f"RTF below {RTF}"] = score.rtf < RTF
    return met


def beside_teacher(student: SourceScores, teacher: SourceScores) -> dict[str, bool]:
    """Return on which scores a student stays within :data:`TEACHER_SHARE` of its teacher, relative to it.

    Args:
        student: scores of the few-step engine.
        teacher: of the many-step one, from the same run.
    """
    within = f"within {TEACHER_SHARE:.0%} of the teacher's"
    met = {
        f"WER {recogniser} {within}": kinds["all"].rate
        <= teacher.wer[recogniser]["all"].rate * (1 + TEACHER_SHARE)
        for recogniser, kinds in student.wer.items()
    }
    if teacher.sync is not None:
        least = teacher.sync.at_zero * (1 - TEACHER_SHARE)
        met[f"correlation {within}"] = student.sync is not None and student.sync.at_zero >= least
    met[f"identity {within}"] = student.identity >= teacher.identity * (1 - TEACHER_SHARE)
    return met


def _wer(errors: WordErrors) -> str:
    return f"{errors.rate:.1%} ({errors.low:.0%} to {errors.high:.0%})"


def _at_zero(score: SyncScore | None) -> str:
    return f"{score.at_zero:.2f}" if score else "-"
