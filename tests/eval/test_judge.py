"""Scoring in a process of its own."""

from collections.abc import Iterator

import numpy as np
import pytest

from streamchar.eval.judge import Judge
from streamchar.eval.sources import GroundTruth
from streamchar.eval.streams import Part, Script, TrueStream, write_script

SIZE = (48, 48)


class Fed:
    """Parts that were made before."""

    name = "fed"

    def __init__(self, parts: list[Part]) -> None:
        self._parts = parts

    def parts(self, script: Script) -> Iterator[Part]:
        yield from self._parts


def test_a_stream_is_scored_by_another_process_and_its_faults_come_back() -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("hibari")
    from streamchar.data.speech import Speaker

    script = write_script(1, 0, 2)
    short = Script(script.sentences[:3], script.identity, script.seed, script.seconds)
    parts = list(TrueStream(GroundTruth(*SIZE, Speaker())).parts(short))
    computed = [Part(part.audio, part.video, part.words, 1.0, cut=True) for part in parts]
    with Judge(SIZE, 2) as judge:
        scores, shown = judge.score(Fed(computed), short, 4 / 3)
        assert scores.words == len(short.words)
        assert scores.confirmed >= scores.words / 2
        assert scores.minutes["identity"] == [1.0]
        assert shown.shape[2:] == (*SIZE, 3)
        with pytest.raises(ValueError, match="must have media"):
            judge.score(Fed([]), short, 4 / 3)
        # The memory is that of the process that speaks, which is this one.
        ballast = np.ones(200_000_000, np.uint8)
        again = judge.score(Fed(computed), short, 4 / 3)[0]
    (before,), (after,) = scores.minutes.pop("memory"), again.minutes.pop("memory")
    assert before is not None
    assert after is not None
    assert after - before == pytest.approx(len(ballast) / 1e6, abs=50)
    # A stream leaves nothing to the next.
    assert again == scores
