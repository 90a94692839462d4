"""Long evaluations: trends, targets, reports, and directories that a stopped run can continue."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from streamchar.cli.main import app
from streamchar.engine import StreamCharEngine
from streamchar.eval.long.measures import MEASURES
from streamchar.eval.long.report import as_dict, comparison_rows, table_rows
from streamchar.eval.long.run import EvaluationProtocol, LongRun, checkpoint_digest
from streamchar.eval.long.script import Script
from streamchar.eval.long.stream_scores import StreamScores
from streamchar.eval.long.streams import StreamPiece
from streamchar.eval.long.targets import by_sentence_name, rate_difference, relative_drift, targets
from streamchar.eval.long.trend import Difference, Drift, Halves, difference, halves, merge_streams, trend
from streamchar.eval.metrics.word_counts import EdgeCount
from streamchar.eval.tables import markdown
from tests.engine.small import build

PROTOCOL = EvaluationProtocol(minutes=3, identities=2, seed=0, size=(32, 32), chunk=4 / 3)
SIZE = 8


#: Measures that do not change over the minutes.
STEADY = {
    "unheard": 0.0,
    "skipped": 0.0,
    "repeated": 0.0,
    "place, seconds": 0.05,
    "place, words": 0.2,
    "pointer late by": 0.0,
    "identity": 1.0,
    "likeness": 0.98,
    "sharpness": 1.0,
    "movement": 1.0,
    "voice": 1.0,
    "another voice": 0.9,
    "rtf": 0.3,
    "memory": 100.0,
}


def scores(rise: float = 0.0, tint: float = 0.0, repeated: int = 0, growth: float = 0.0) -> StreamScores:
    """Return scores of three minutes in which word errors rise and faces take on a tint."""
    return StreamScores(
        minutes={name: [value] * 3 for name, value in STEADY.items()}
        | {
            "word errors": [0.1, 0.1 + rise / 2, 0.1 + rise],
            "lips late by": [0.0, 1.0, 0.0],
            "lip correlation": [0.8, None, 0.8],
            "colour": [0.8, 0.8 + tint / 2, 0.8 + tint],
        },
        unheard=EdgeCount(3, 3, 134),
        skipped=EdgeCount(1, 0, 134),
        repeated=EdgeCount(repeated, 0, 134),
        planted=20,
        found=19,
        words=400,
        confirmed=380,
        seconds=180.0,
        memory_slope=growth,
    )


TRUTH = merge_streams("ground truth", [scores(tint=0.5)])


def test_a_trend_has_first_and_last_minute_drift_and_slope() -> None:
    found = trend([None, 1.0, 1.5, 2.0, None])
    assert found is not None
    assert (found.first, found.last, found.drift) == (1, 2, 1)
    assert found.slope == pytest.approx(0.5)
    assert trend([None, None]) is None
    single = trend([3.0])
    assert single is not None
    assert (single.drift, single.slope) == (0, 0)


def test_minutes_of_streams_are_averaged_and_their_counts_summed() -> None:
    shorter = scores(rise=0.2, growth=1.0, repeated=2)
    shorter = replace(shorter, minutes={name: values[:2] for name, values in shorter.minutes.items()})
    merged = merge_streams("both", [scores(), shorter])
    assert merged.minutes["word errors"] == pytest.approx([0.1, 0.15, 0.1])
    assert merged.minutes["lip correlation"] == [0.8, None, 0.8]
    assert merged.repeated == EdgeCount(2, 0, 268)
    assert (merged.words, merged.confirmed) == (800, 760)
    assert merged.memory_slopes == [0, 1]
    assert merged.curves["word errors"] == [[0.1, 0.1, 0.1], [0.1, 0.2]]


def test_drifts_in_opposite_directions_do_not_cancel() -> None:
    merged = merge_streams("both", [scores(tint=3.0), scores(tint=-1.0)])
    assert merged.trends["colour"].drift == pytest.approx(1)
    assert (merged.drifts["colour"].mean, merged.drifts["colour"].worst) == pytest.approx((2, 3))
    assert relative_drift(merged, TRUTH, "colour") == pytest.approx(4)
    assert merge_streams("one", [scores(tint=-1.0)]).drifts["colour"] == Drift(
        pytest.approx(1), pytest.approx(1)
    )
    # A ground truth without drift is replaced by the smallest drift that counts.
    assert relative_drift(merged, merge_streams("still", [scores()]), "colour") == pytest.approx(10)


def test_every_stream_must_meet_the_targets() -> None:
    early, late = scores(), scores()
    early.minutes["lips late by"][1], late.minutes["lips late by"][1] = -3.0, 3.0
    slow, quick = scores(), scores()
    slow.minutes["rtf"][2], quick.minutes["rtf"][2] = 0.4, 0.2
    strange, grown = scores(), scores(growth=0.3)
    strange.minutes["identity"][1] = 0.8
    for streams, missed in (
        ([early, late], "lip offset at most 1 frame in every minute of every stream"),
        (
            [scores(), strange],
            "at least 95% of frames nearest to own identity in every minute of every stream",
        ),
        ([slow, quick], "RTF of the last minute at most 1.1 x the first's in every stream"),
        ([grown, scores(growth=-0.3)], "memory growth below 0.1 MB per minute in every stream"),
    ):
        met = targets(merge_streams("uneven", streams), [TRUTH])
        assert [name for name, reached in met.items() if not reached] == [missed]


def test_words_skipped_everywhere_count_at_the_edges_too() -> None:
    evenly = merge_streams("evenly", [replace(scores(), skipped=EdgeCount(50, 50, 134))])
    assert evenly.skipped.excess == 0
    assert not targets(evenly, [TRUTH])["words skipped at most at 1% of chunk edges"]
    # The limit does not depend on the ground truth.
    assert not targets(evenly, [evenly])["words skipped at most at 1% of chunk edges"]
    more, error = rate_difference(EdgeCount(50, 50, 134), EdgeCount(3, 3, 134))
    assert more == pytest.approx(47 / 134)
    assert error == pytest.approx(53**0.5 / 134)


def test_planted_words_must_be_found_for_skips_to_mean_anything() -> None:
    target = "at least 90% of planted words found missing"
    for planted, found, met in ((20, 18, True), (20, 17, False), (0, 0, False)):
        blind = merge_streams(
            "blind", [replace(scores(), skipped=EdgeCount(0, 0, 134), planted=planted, found=found)]
        )
        assert targets(blind, [TRUTH])[target] == met


def test_targets_are_met_by_a_steady_stream_and_missed_by_each_fault() -> None:
    met = targets(merge_streams("steady", [scores(tint=0.9)]), [TRUTH])
    assert len(met) == 22
    assert all(met.values())
    for fault in (scores(rise=0.04), scores(tint=1.1), scores(repeated=3), scores(growth=0.2)):
        assert list(targets(merge_streams("faulty", [fault]), [TRUTH]).values()).count(False) == 1
    late = scores()
    late.minutes["lips late by"][2] = None
    assert not targets(merge_streams("silent", [late]), [TRUTH])[
        "lip offset at most 1 frame in every minute of every stream"
    ]


def test_word_errors_are_compared_with_separate_sessions() -> None:
    def shifted(by: float, streams: int = 2) -> list[StreamScores]:
        changed = [scores() for _ in range(streams)]
        for stream in changed:
            stream.minutes["word errors"] = [0.1 + by, None, 0.1 + by]
        return changed

    target = "WER within 3 points of the same sentences in separate sessions"
    for by, met in ((0.0, True), (0.029, True), (0.031, False)):
        # The third stream, which is much worse, was not spoken sentence by sentence and does not count.
        spoken = merge_streams("tiny", [*shifted(by), *shifted(0.5, 1)])
        separate = merge_streams(by_sentence_name("tiny"), shifted(0.0))
        assert targets(spoken, [TRUTH, spoken, separate])[target] is met
        assert target not in targets(separate, [TRUTH, spoken, separate])
    # Without a common minute the target is missed.
    empty = merge_streams(by_sentence_name("tiny"), [scores()])
    empty.curves["word errors"][0][:] = [None] * 3
    assert not targets(spoken, [TRUTH, spoken, empty])[target]


def test_the_table_has_a_row_per_measure_and_a_column_per_source() -> None:
    sources = [TRUTH, merge_streams("student", [scores(rise=0.02, tint=2.0, repeated=4)])]
    rows = markdown(table_rows(sources)).splitlines()
    assert rows[0] == "|  | ground truth | student |"
    assert len(rows) == 2 + 1 + len(MEASURES) + 9
    steady, rising = "10.0 → 10.0 (+0.00 ± 0.00 per minute)", "10.0 → 12.0 (+1.00 ± 0.00 per minute"
    assert f"| word error rate, % | {steady} | {rising}, drift 0.7 x ground truth's) |" in rows
    tinted = "0.80 → 2.80 (+1.000 ± 0.000 per minute, drift 4.0 x ground truth's)"
    assert any(line.endswith(f"{tinted} |") for line in rows)
    assert "| words heard right and aligned, % | 95.0 | 95.0 |" in rows
    assert "| planted words found missing, % | 95.0 | 95.0 |" in rows
    unheard = "2.2 ± 1.3 | 2.2 ± 1.3 (minus ground truth's: +0.0 ± 1.8)"
    assert f"| words not recognised near an edge, % of edges | {unheard} |" in rows
    near = "0.0 ± 0.0 | 3.0 ± 1.5 (minus ground truth's: +3.0 ± 1.5)"
    assert f"| words repeated near an edge, % of edges | {near} |" in rows
    assert "| words repeated, near minus away, % of edges | +0.0 ± 0.0 | +3.0 ± 1.5 |" in rows
    assert "| memory growth, MB per minute | +0.00 | +0.00 |" in rows
    found = json.loads(json.dumps(as_dict(sources)))
    assert "targets" not in found[0]
    assert found[1]["drifts"]["colour"]["worst"] == pytest.approx(2)
    assert found[1]["repeated"]["rate"] == found[1]["repeated"]["excess"] == pytest.approx(4 / 134)


def test_the_table_contains_the_worst_of_several_streams() -> None:
    student = merge_streams("student", [scores(tint=1.0), scores(tint=-2.0, growth=0.5)])
    rows = markdown(table_rows([TRUTH, student])).splitlines()
    assert any(", drift 1.50, worst 2.00, drift 3.0 x ground truth's) |" in line for line in rows)
    assert "| memory growth, MB per minute | +0.00 | +0.25, worst +0.50 |" in rows


def test_differences_are_paired_over_minutes_that_both_sources_have() -> None:
    base = merge_streams("base", [scores(), scores()])
    # The differences are 0, 2 and 4 points. The base has no third stream.
    other = merge_streams("other", [scores(rise=0.04), scores(rise=0.04), scores(rise=0.9)])
    found = difference(other, base, "word errors")
    assert found == pytest.approx((0.02, np.std([0, 0.02, 0.04] * 2, ddof=1) / 6**0.5))
    assert difference(other, replace(base, curves={}), "word errors") is None
    single = difference(
        replace(base, curves={"word errors": [[0.3]]}),
        replace(base, curves={"word errors": [[0.1, 0.5]]}),
        "word errors",
    )
    assert single == Difference(pytest.approx(0.2), pytest.approx(np.nan, nan_ok=True))


def test_halves_are_means_over_minutes_and_streams() -> None:
    merged = merge_streams("both", [scores(rise=0.04), scores(rise=0.0)])
    # The middle minute belongs to the second half.
    assert halves(merged, "word errors") == pytest.approx((0.11, 0.1, 0.115))
    assert halves(merged, "lip correlation") == Halves(pytest.approx(0.8), 0.8, 0.8)
    assert halves(replace(merged, curves={}), "word errors") is None
    assert halves(replace(merged, curves={"word errors": [[0.1, None]]}), "word errors") is None


def test_a_comparison_has_means_and_differences() -> None:
    base, other = merge_streams("base", [scores()] * 2), merge_streams("other", [scores(rise=0.06)] * 2)
    silent = replace(other, source="silent", curves={})
    header, *rows = comparison_rows([base, other, silent], base)
    assert header == ["", "base", "other", "silent"]
    assert [row[0] for row in rows] == [measure.label for measure in MEASURES.values()]
    assert rows[0][1:] == ["10.0 (10.0 → 10.0)", "13.0 (10.0 → 14.5; +3.0 ± 1.1)", "-"]


class Named:
    """A source that must not speak."""

    def __init__(self, name: str) -> None:
        self.name = name

    def pieces(self, script: Script) -> Iterator[StreamPiece]:
        raise AssertionError


class Steady:
    """Returns the same scores for every stream, and records source and seed."""

    def __init__(self) -> None:
        self.scored: list[tuple[str, int]] = []

    def score(self, source: Named, script: Script, chunk_seconds: float) -> tuple[StreamScores, np.ndarray]:
        if script.seed == 2 and source.name == "broken":
            raise KeyboardInterrupt
        self.scored.append((source.name, script.seed))
        return scores(), np.zeros((2, 3, SIZE, SIZE, 3), np.uint8)


@pytest.fixture
def process() -> Steady:
    return Steady()


def test_a_stopped_run_continues_with_the_next_stream(tmp_path: Path, process: Steady) -> None:
    with pytest.raises(KeyboardInterrupt):
        LongRun(tmp_path, PROTOCOL).run(Named("broken"), 4, process)
    assert process.scored == [("broken", 0), ("broken", 1)]
    source = Named("broken")
    source.name = "Broken"  # The same file name, but a source that is not stopped.
    LongRun(tmp_path, PROTOCOL).run(source, 4, process)
    assert process.scored[2:] == [("Broken", 2), ("Broken", 3)]
    LongRun(tmp_path, PROTOCOL).run(source, 4, process)
    assert len(process.scored) == 4
    assert not list(tmp_path.glob("*.part"))


def test_all_sources_of_a_directory_are_reported_together(tmp_path: Path, process: Steady) -> None:
    for name in ("student, sink 0", "ground truth", "student"):
        LongRun(tmp_path, PROTOCOL).run(Named(name), 2, process)
    sources = LongRun(tmp_path, PROTOCOL).report()
    assert [each.source for each in sources] == ["ground truth", "student", "student, sink 0"]
    assert {each.streams for each in sources} == {2}
    assert sources[0].minutes == merge_streams("", [scores(), scores()]).minutes
    assert json.loads((tmp_path / "long.json").read_text())["protocol"]["minutes"] == 3
    assert "student, sink 0" in (tmp_path / "long.md").read_text()
    assert Image.open(tmp_path / "long.png").size[0] > 1000
    assert Image.open(tmp_path / "student-sink-0.001.png").size == (3 * SIZE, 2 * SIZE)


def test_the_command_compares_the_sources_of_a_directory(tmp_path: Path, process: Steady) -> None:
    for name in ("ground truth", "student"):
        LongRun(tmp_path, PROTOCOL).run(Named(name), 2, process)
    done = CliRunner().invoke(app, ["eval", "compare", str(tmp_path), "--to", "student"])
    assert done.exit_code == 0
    rows = (tmp_path / "compare.md").read_text().splitlines()
    assert rows[0] == "|  | ground truth | student |"
    assert "| word error rate, % | 10.0 (10.0 → 10.0; +0.0 ± 0.0) | 10.0 (10.0 → 10.0) |" in rows
    unknown = CliRunner().invoke(app, ["eval", "compare", str(tmp_path), "--to", "pupil"])
    assert unknown.exit_code == 1
    output = " ".join(unknown.output.split())
    assert "('ground truth', 'student'), got 'pupil'" in output
    empty = CliRunner().invoke(app, ["eval", "compare", str(tmp_path / "none")])
    assert empty.exit_code == 1
    assert "(none), got 'ground truth'" in " ".join(empty.output.split())


def test_streams_of_other_protocols_or_weights_are_refused(tmp_path: Path, process: Steady) -> None:
    LongRun(tmp_path, PROTOCOL).run(Named("student"), 1, process, weights="a")
    with pytest.raises(ValueError, match="choose another directory"):
        LongRun(tmp_path, replace(PROTOCOL, minutes=10))
    with pytest.raises(ValueError, match="with other weights"):
        LongRun(tmp_path, PROTOCOL).run(Named("student"), 1, process, weights="b")


@pytest.mark.parametrize(
    ("text", "reason"),
    [('{"a"', "JSONDecodeError"), ("{}", "KeyError: 'scores'"), ("[]", "TypeError"), ("", "JSONDecodeError")],
)
def test_an_invalid_file_is_named_with_a_remedy(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "student.000.json").write_text(text)
    with pytest.raises(
        ValueError, match=rf"student\.000\.json must be a stream .* got {reason}.*move the file away"
    ):
        LongRun(tmp_path, PROTOCOL)


@pytest.mark.parametrize("part", ["protocol", "source", "weights", "text"])
def test_a_file_that_lacks_a_key_is_named(tmp_path: Path, process: Steady, part: str) -> None:
    LongRun(tmp_path, PROTOCOL).run(Named("student"), 1, process)
    file = tmp_path / "student.000.json"
    found = json.loads(file.read_text())
    del found[part]
    file.write_text(json.dumps(found))
    with pytest.raises(ValueError, match=rf"student\.000\.json must be a stream .* KeyError: '{part}'"):
        LongRun(tmp_path, PROTOCOL)


def test_streams_with_texts_of_another_version_are_refused(
    tmp_path: Path, process: Steady, monkeypatch: pytest.MonkeyPatch
) -> None:
    LongRun(tmp_path, PROTOCOL).run(Named("student"), 1, process)
    monkeypatch.setattr("streamchar.eval.long.script._FIRST_SEED", 2_000_000)
    with pytest.raises(ValueError, match="stream 0 with the text of another version"):
        LongRun(tmp_path, PROTOCOL).run(Named("student"), 2, process)
    assert len(process.scored) == 1


def test_the_digest_of_a_checkpoint_changes_with_its_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"one")
    before = checkpoint_digest(tmp_path)
    (tmp_path / "README.md").write_text("words")
    assert checkpoint_digest(tmp_path) == before
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert checkpoint_digest(tmp_path) != before


def test_the_command_prints_errors_without_a_traceback(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["eval", "long", "--checkpoint", str(tmp_path / "none"), "-o", str(tmp_path)]
    )
    assert done.exit_code == 1
    assert "Traceback" not in done.output
    assert "none" in done.output.replace("\n", "")
    helped = CliRunner().invoke(app, ["eval", "long", "--help"], env={"COLUMNS": "160"})
    for option in ("--sink", "--motion", "--without-pointer", "--interrupt-every", "--each-sentence"):
        assert option in helped.output
    both = ["eval", "long", "--each-sentence", "--interrupt-every", "30", "-o", str(tmp_path / "both")]
    refused = CliRunner().invoke(app, both)
    assert refused.exit_code == 1
    assert "--interrupt-every must be left out" in " ".join(refused.output.split())


def test_an_impossible_ablation_is_refused_before_anything_is_spoken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StreamCharEngine, "from_pretrained", lambda _: build())
    started: list[tuple[int, int]] = []
    monkeypatch.setattr("streamchar.eval.long.command.ScoringProcess", lambda size, _: started.append(size))
    command = ["eval", "long", "--checkpoint", str(tmp_path), "--sink", "99", "-o", str(tmp_path / "out")]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 1
    assert "sink_latents must be" in refused.output.replace("\n", " ")
    assert started == []
