"""Scoring in a separate process."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from streamchar.eval.long.scoring_process import ScoringProcess
from streamchar.eval.long.script import Script, write_script
from streamchar.eval.long.streams import StreamPiece, TrueStream
from streamchar.eval.sources import GroundTruth

SIZE = (48, 48)


class Recorded:
    """Pieces that were made before."""

    name = "recorded"

    def __init__(self, pieces: list[StreamPiece]) -> None:
        self._pieces = pieces

    def pieces(self, script: Script) -> Iterator[StreamPiece]:
        yield from self._pieces


def test_another_process_scores_a_stream_and_its_errors_come_back() -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("hibari")
    from streamchar.data.speech import Speaker

    script = write_script(1, 0, 2)
    short = Script(script.sentences[:3], script.identity, script.seed, script.seconds)
    pieces = list(TrueStream(GroundTruth(*SIZE, Speaker())).pieces(short))
    computed = [replace(piece, compute_seconds=1.0) for piece in pieces]
    with ScoringProcess(SIZE, 2) as process:
        scores, shown = process.score(Recorded(computed), short, 4 / 3)
        assert scores.words == len(short.words)
        assert scores.confirmed >= scores.words / 2
        assert scores.minutes["identity"] == [1.0]
        assert shown.shape[2:] == (*SIZE, 3)
        with pytest.raises(ValueError, match="returned no media"):
            process.score(Recorded([]), short, 4 / 3)
        # The memory is measured in the process that speaks, which is this one.
        ballast = np.ones(200_000_000, np.uint8)
        again = process.score(Recorded(computed), short, 4 / 3)[0]
    (before,), (after,) = scores.minutes.pop("memory"), again.minutes.pop("memory")
    assert before is not None
    assert after is not None
    assert after - before == pytest.approx(len(ballast) / 1e6, abs=50)
    # A stream does not affect the next one.
    assert again == scores
