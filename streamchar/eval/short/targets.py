"""Targets of short evaluations: relative to the ground truth of the same run, and to a teacher."""

from ..limits import MAX_LIP_OFFSET, MAX_RTF, MIN_IDENTITY
from .evaluate import SourceScores

#: By how much the word error rate may exceed the ground truth's.
WER_MARGIN = 0.10
#: Smallest lip correlation, relative to the ground truth's.
MIN_CORRELATION = 0.8
#: By how much a student may be worse than its teacher on each score, relative to the teacher's.
TEACHER_MARGIN = 0.15


def targets(score: SourceScores, truth: SourceScores) -> dict[str, bool]:
    """Return each target of a source and whether it is met.

    Args:
        score: scores of the source.
        truth: scores of the ground truth, with the same recognisers.
    """
    met = {
        f"WER {recogniser} within {WER_MARGIN * 100:.0f} points of ground truth": kinds["all"].rate
        <= truth.wer[recogniser]["all"].rate + WER_MARGIN
        for recogniser, kinds in score.wer.items()
    }
    sync, best = score.sync, truth.sync
    met[f"lip offset at most {MAX_LIP_OFFSET} frame"] = (
        sync is not None and abs(sync.offset) <= MAX_LIP_OFFSET
    )
    met[f"lip correlation at least {MIN_CORRELATION} of ground truth's"] = (
        sync is not None and best is not None and sync.at_zero >= MIN_CORRELATION * best.at_zero
    )
    met[f"identity at least {MIN_IDENTITY:.0%}"] = score.identity >= MIN_IDENTITY
    if score.rtf is not None:
        met[f"RTF below {MAX_RTF}"] = score.rtf < MAX_RTF
    return met


def targets_beside_teacher(student: SourceScores, teacher: SourceScores) -> dict[str, bool]:
    """Return each target of a student relative to its teacher, and whether it is met.

    Args:
        student: scores of the few-step engine.
        teacher: scores of the many-step engine, from the same run.
    """
    within = f"within {TEACHER_MARGIN:.0%} of the teacher's"
    met = {
        f"WER {recogniser} {within}": kinds["all"].rate
        <= teacher.wer[recogniser]["all"].rate * (1 + TEACHER_MARGIN)
        for recogniser, kinds in student.wer.items()
    }
    if teacher.sync is not None:
        least = teacher.sync.at_zero * (1 - TEACHER_MARGIN)
        met[f"lip correlation {within}"] = student.sync is not None and student.sync.at_zero >= least
    met[f"identity {within}"] = student.identity >= teacher.identity * (1 - TEACHER_MARGIN)
    return met
