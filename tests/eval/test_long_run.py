"""A long evaluation in a directory: what is finished is not done again, what is another's is refused."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from streamchar.cli import app
from streamchar.engine import StreamCharEngine
from streamchar.eval.long import StreamScores
from streamchar.eval.long_course import MEASURES, Difference, Drift, Halves, course, difference, halves, merge
from streamchar.eval.long_report import as_dict, comparison_lines, table_lines
from streamchar.eval.long_run import LongRun, Protocol, digest
from streamchar.eval.long_targets import alone_of, beside_truth, drift_beside, targets
from streamchar.eval.streams import Part, Script
from streamchar.eval.tables import markdown
from streamchar.eval.transcript import EdgeCount
from tests.engine.small import build

PROTOCOL = Protocol(minutes=3, identities=2, seed=0, size=(32, 32), chunk=4 / 3)
SIZE = 8


def scores(rise: float = 0.0, tint: float = 0.0, repeated: int = 0, growth: float = 0.0) -> StreamScores:
    """Three minutes in which words get worse and faces take on a tint."""
    return StreamScores(
        minutes={
            "word errors": [0.1, 0.1 + rise / 2, 0.1 + rise],
            "unheard": [0.0, 0.0, 0.0],
            "skipped": [0.0, 0.0, 0.0],
            "repeated": [0.0, 0.0, 0.0],
            "place, seconds": [0.05, 0.05, 0.05],
            "place, words": [0.2, 0.2, 0.2],
            "pointer late by": [0.0, 0.0, 0.0],
            "lips late by": [0.0, 1.0, 0.0],
            "lip correlation": [0.8, None, 0.8],
            "identity": [1.0, 1.0, 1.0],
            "likeness": [0.98, 0.98, 0.98],
            "colour": [0.8, 0.8 + tint / 2, 0.8 + tint],
            "sharpness": [1.0, 1.0, 1.0],
            "movement": [1.0, 1.0, 1.0],
            "voice": [1.0, 1.0, 1.0],
            "another voice": [0.9, 0.9, 0.9],
            "rtf": [0.3, 0.3, 0.3],
            "memory": [100.0, 100.0, 100.0],
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


TRUTH = merge("ground truth", [scores(tint=0.5)])


def test_a_course_has_its_first_and_last_minute_its_drift_and_its_slope() -> None:
    found = course([None, 1.0, 1.5, 2.0, None])
    assert found is not None
    assert (found.first, found.last, found.drift) == (1, 2, 1)
    assert found.slope == pytest.approx(0.5)
    assert course([None, None]) is None
    single = course([3.0])
    assert single is not None
    assert (single.drift, single.slope) == (0, 0)


def test_streams_are_averaged_minute_by_minute_and_their_counts_summed() -> None:
    cut = scores(rise=0.2, growth=1.0, repeated=2)
    cut = replace(cut, minutes={name: values[:2] for name, values in cut.minutes.items()})
    merged = merge("both", [scores(), cut])
    assert merged.minutes["word errors"] == pytest.approx([0.1, 0.15, 0.1])
    assert merged.minutes["lip correlation"] == [0.8, None, 0.8]
    assert merged.repeated == EdgeCount(2, 0, 268)
    assert (merged.words, merged.confirmed) == (800, 760)
    assert merged.memory_slopes == [0, 1]
    assert merged.curves["word errors"] == [[0.1, 0.1, 0.1], [0.1, 0.2]]


def test_streams_that_drift_opposite_ways_do_not_make_up_for_one_another() -> None:
    merged = merge("both", [scores(tint=3.0), scores(tint=-1.0)])
    assert merged.courses["colour"].drift == pytest.approx(1)
    assert (merged.drifts["colour"].mean, merged.drifts["colour"].worst) == pytest.approx((2, 3))
    assert drift_beside(merged, TRUTH, "colour") == pytest.approx(4)
    assert merge("one", [scores(tint=-1.0)]).drifts["colour"] == Drift(pytest.approx(1), pytest.approx(1))
    # The truth's own drift is no measure where it is as good as none.
    assert drift_beside(merged, merge("still", [scores()]), "colour") == pytest.approx(10)


def test_one_bad_stream_hides_behind_no_other() -> None:
    early, late = scores(), scores()
    early.minutes["lips late by"][1], late.minutes["lips late by"][1] = -3.0, 3.0
    slow, quick = scores(), scores()
    slow.minutes["rtf"][2], quick.minutes["rtf"][2] = 0.4, 0.2
    strange, grown = scores(), scores(growth=0.3)
    strange.minutes["identity"][1] = 0.8
    for streams, missed in (
        ([early, late], "lips within 1 frame in every minute of every stream"),
        ([scores(), strange], "own identity nearest in 95% of every minute of every stream"),
        ([slow, quick], "RTF of the last minute at most 1.1 x the first's in every stream"),
        ([grown, scores(growth=-0.3)], "memory grows by less than 0.1 MB a minute in every stream"),
    ):
        met = targets(merge("uneven", streams), [TRUTH])
        assert [name for name, reached in met.items() if not reached] == [missed]


def test_words_lost_everywhere_are_not_taken_for_none_at_the_edges() -> None:
    evenly = merge("evenly", [replace(scores(), skipped=EdgeCount(50, 50, 134))])
    assert evenly.skipped.excess == 0
    assert not targets(evenly, [TRUTH])["words skipped at 1% of chunk edges at most"]
    # Whatever the ground truth loses.
    assert not targets(evenly, [evenly])["words skipped at 1% of chunk edges at most"]
    more, error = beside_truth(EdgeCount(50, 50, 134), EdgeCount(3, 3, 134))
    assert more == pytest.approx(47 / 134)
    assert error == pytest.approx(53**0.5 / 134)


def test_no_words_skipped_say_nothing_where_planted_ones_are_not_found() -> None:
    target = "90% of words that nobody said found missing, so that skipped ones would be"
    for planted, found, met in ((20, 18, True), (20, 17, False), (0, 0, False)):
        blind = merge(
            "blind", [replace(scores(), skipped=EdgeCount(0, 0, 134), planted=planted, found=found)]
        )
        assert targets(blind, [TRUTH])[target] == met


def test_targets_are_met_by_a_steady_stream_and_missed_by_each_fault() -> None:
    met = targets(merge("steady", [scores(tint=0.9)]), [TRUTH])
    assert len(met) == 22
    assert all(met.values())
    for fault in (scores(rise=0.04), scores(tint=1.1), scores(repeated=3), scores(growth=0.2)):
        assert list(targets(merge("faulty", [fault]), [TRUTH]).values()).count(False) == 1
    late = scores()
    late.minutes["lips late by"][2] = None
    assert not targets(merge("silent", [late]), [TRUTH])[
        "lips within 1 frame in every minute of every stream"
    ]


def test_word_errors_are_measured_by_the_same_sentences_in_sessions_of_their_own() -> None:
    def shifted(by: float, streams: int = 2) -> list[StreamScores]:
        changed = [scores() for _ in range(streams)]
        for stream in changed:
            stream.minutes["word errors"] = [0.1 + by, None, 0.1 + by]
        return changed

    target = "word errors within 3 points of the same sentences' in sessions of their own"
    for by, met in ((0.0, True), (0.029, True), (0.031, False)):
        # One stream more than was spoken sentence by sentence, and much worse.
        spoken = merge("tiny", [*shifted(by), *shifted(0.5, 1)])
        alone = merge(alone_of("tiny"), shifted(0.0))
        assert targets(spoken, [TRUTH, spoken, alone])[target] is met
        assert target not in targets(alone, [TRUTH, spoken, alone])
    # Nothing in common says nothing.
    empty = merge(alone_of("tiny"), [scores()])
    empty.curves["word errors"][0][:] = [None] * 3
    assert not targets(spoken, [TRUTH, spoken, empty])[target]


def test_the_table_has_a_line_a_measure_and_a_column_a_source() -> None:
    sources = [TRUTH, merge("student", [scores(rise=0.02, tint=2.0, repeated=4)])]
    lines = markdown(table_lines(sources)).splitlines()
    assert lines[0] == "|  | ground truth | student |"
    assert len(lines) == 2 + 1 + len(MEASURES) + 9
    steady, rising = "10.0 → 10.0 (+0.00 ± 0.00 a minute)", "10.0 → 12.0 (+1.00 ± 0.00 a minute"
    assert f"| word errors, % of words | {steady} | {rising}, drift 0.7 x ground truth's) |" in lines
    tinted = "0.80 → 2.80 (+1.000 ± 0.000 a minute, drift 4.0 x ground truth's)"
    assert any(line.endswith(f"{tinted} |") for line in lines)
    assert "| words heard right and found, % | 95.0 | 95.0 |" in lines
    assert "| planted words found missing, % | 95.0 | 95.0 |" in lines
    assert (
        "| not heard near an edge, % of edges | 2.2 ± 1.3 | 2.2 ± 1.3 (beside ground truth +0.0 ± 1.8) |"
        in lines
    )
    near = "0.0 ± 0.0 | 3.0 ± 1.5 (beside ground truth +3.0 ± 1.5)"
    assert f"| repeated near an edge, % of edges | {near} |" in lines
    assert "| repeated at an edge, % more | +0.0 ± 0.0 | +3.0 ± 1.5 |" in lines
    assert "| memory, MB a minute | +0.00 | +0.00 |" in lines
    found = json.loads(json.dumps(as_dict(sources)))
    assert "targets" not in found[0]
    assert found[1]["drifts"]["colour"]["worst"] == pytest.approx(2)
    assert found[1]["repeated"]["rate"] == found[1]["repeated"]["excess"] == pytest.approx(4 / 134)


def test_the_table_says_the_worst_of_several_streams() -> None:
    student = merge("student", [scores(tint=1.0), scores(tint=-2.0, growth=0.5)])
    lines = markdown(table_lines([TRUTH, student])).splitlines()
    assert any(", drift 1.50, worst 2.00, drift 3.0 x ground truth's) |" in line for line in lines)
    assert "| memory, MB a minute | +0.00 | +0.25, worst +0.50 |" in lines


def test_sources_are_compared_minute_by_minute_of_the_streams_that_both_spoke() -> None:
    base = merge("base", [scores(), scores()])
    # Away by 0, 2 and 4 points; of the third stream the base knows nothing.
    other = merge("other", [scores(rise=0.04), scores(rise=0.04), scores(rise=0.9)])
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
    merged = merge("both", [scores(rise=0.04), scores(rise=0.0)])
    # The minute in the middle is of the second half.
    assert halves(merged, "word errors") == pytest.approx((0.11, 0.1, 0.115))
    assert halves(merged, "lip correlation") == Halves(pytest.approx(0.8), 0.8, 0.8)
    assert halves(replace(merged, curves={}), "word errors") is None
    assert halves(replace(merged, curves={"word errors": [[0.1, None]]}), "word errors") is None


def test_a_comparison_has_means_and_differences() -> None:
    base, other = merge("base", [scores()] * 2), merge("other", [scores(rise=0.06)] * 2)
    silent = replace(other, source="silent", curves={})
    head, *lines = comparison_lines([base, other, silent], base)
    assert head == ["", "base", "other", "silent"]
    assert [line[0] for line in lines] == [measure.label for measure in MEASURES.values()]
    assert lines[0][1:] == ["10.0 (10.0 → 10.0)", "13.0 (10.0 → 14.5; +3.0 ± 1.1)", "-"]


class Named:
    """A source that is never asked to speak."""

    def __init__(self, name: str) -> None:
        self.name = name

    def parts(self, script: Script) -> Iterator[Part]:
        raise AssertionError


class Steady:
    """Score every stream as steady; list source and seed of those that were asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def score(self, source: Named, script: Script, chunk: float) -> tuple[StreamScores, np.ndarray]:
        if script.seed == 2 and source.name == "broken":
            raise KeyboardInterrupt
        self.asked.append((source.name, script.seed))
        return scores(), np.zeros((2, 3, SIZE, SIZE, 3), np.uint8)


@pytest.fixture
def judge() -> Steady:
    return Steady()


def test_a_run_that_was_broken_off_goes_on_with_the_next_stream(tmp_path: Path, judge: Steady) -> None:
    with pytest.raises(KeyboardInterrupt):
        LongRun(tmp_path, PROTOCOL).run(Named("broken"), 4, judge)
    assert judge.asked == [("broken", 0), ("broken", 1)]
    source = Named("broken")
    source.name = "Broken"  # the same file, and not the stream that breaks
    LongRun(tmp_path, PROTOCOL).run(source, 4, judge)
    assert judge.asked[2:] == [("Broken", 2), ("Broken", 3)]
    LongRun(tmp_path, PROTOCOL).run(source, 4, judge)
    assert len(judge.asked) == 4
    assert not list(tmp_path.glob("*.part"))


def test_all_sources_of_a_directory_are_reported_together(tmp_path: Path, judge: Steady) -> None:
    for name in ("student, sink 0", "ground truth", "student"):
        LongRun(tmp_path, PROTOCOL).run(Named(name), 2, judge)
    courses = LongRun(tmp_path, PROTOCOL).report()
    assert [each.source for each in courses] == ["ground truth", "student", "student, sink 0"]
    assert {each.streams for each in courses} == {2}
    assert courses[0].minutes == merge("", [scores(), scores()]).minutes
    assert json.loads((tmp_path / "long.json").read_text())["protocol"]["minutes"] == 3
    assert "student, sink 0" in (tmp_path / "long.md").read_text()
    assert Image.open(tmp_path / "long.png").size[0] > 1000
    assert Image.open(tmp_path / "student-sink-0.001.png").size == (3 * SIZE, 2 * SIZE)


def test_the_command_compares_what_was_spoken_into_a_directory(tmp_path: Path, judge: Steady) -> None:
    for name in ("ground truth", "student"):
        LongRun(tmp_path, PROTOCOL).run(Named(name), 2, judge)
    done = CliRunner().invoke(app, ["eval", "compare", str(tmp_path), "--to", "student"])
    assert done.exit_code == 0
    lines = (tmp_path / "compare.md").read_text().splitlines()
    assert lines[0] == "|  | ground truth | student |"
    assert "| word errors, % of words | 10.0 (10.0 → 10.0; +0.0 ± 0.0) | 10.0 (10.0 → 10.0) |" in lines
    unknown = CliRunner().invoke(app, ["eval", "compare", str(tmp_path), "--to", "pupil"])
    assert unknown.exit_code == 1
    output = " ".join(unknown.output.split())
    assert "('ground truth', 'student'), got 'pupil'" in output
    empty = CliRunner().invoke(app, ["eval", "compare", str(tmp_path / "none")])
    assert empty.exit_code == 1
    assert "(none), got 'ground truth'" in " ".join(empty.output.split())


def test_streams_of_another_protocol_or_other_weights_are_not_mixed(tmp_path: Path, judge: Steady) -> None:
    LongRun(tmp_path, PROTOCOL).run(Named("student"), 1, judge, weights="a")
    with pytest.raises(ValueError, match="name another directory"):
        LongRun(tmp_path, replace(PROTOCOL, minutes=10))
    with pytest.raises(ValueError, match="a name of their own"):
        LongRun(tmp_path, PROTOCOL).run(Named("student"), 1, judge, weights="b")


@pytest.mark.parametrize(
    ("text", "reason"),
    [('{"a"', "JSONDecodeError"), ("{}", "KeyError: 'scores'"), ("[]", "TypeError"), ("", "JSONDecodeError")],
)
def test_a_file_that_is_no_stream_is_named_with_what_to_do(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "student.000.json").write_text(text)
    with pytest.raises(ValueError, match=rf"student\.000\.json must hold .* got {reason}.*move it away"):
        LongRun(tmp_path, PROTOCOL)


@pytest.mark.parametrize("part", ["protocol", "source", "weights", "text"])
def test_a_stream_that_lacks_a_part_is_named(tmp_path: Path, judge: Steady, part: str) -> None:
    LongRun(tmp_path, PROTOCOL).run(Named("student"), 1, judge)
    file = tmp_path / "student.000.json"
    found = json.loads(file.read_text())
    del found[part]
    file.write_text(json.dumps(found))
    with pytest.raises(ValueError, match=rf"student\.000\.json must hold .* KeyError: '{part}'"):
        LongRun(tmp_path, PROTOCOL)


def test_streams_of_another_version_s_text_are_not_mixed(
    tmp_path: Path, judge: Steady, monkeypatch: pytest.MonkeyPatch
) -> None:
    LongRun(tmp_path, PROTOCOL).run(Named("student"), 1, judge)
    monkeypatch.setattr("streamchar.eval.streams._TEXTS", 2_000_000)
    with pytest.raises(ValueError, match="stream 0 must be of this version's text, got another"):
        LongRun(tmp_path, PROTOCOL).run(Named("student"), 2, judge)
    assert len(judge.asked) == 1


def test_weights_are_told_apart_by_what_is_in_them(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"one")
    before = digest(tmp_path)
    (tmp_path / "README.md").write_text("words")
    assert digest(tmp_path) == before
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert digest(tmp_path) != before


def test_the_command_says_what_is_wrong_in_a_line(tmp_path: Path) -> None:
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
    assert "must go without --interrupt-every" in refused.output


def test_what_an_engine_cannot_leave_out_is_refused_before_anything_is_spoken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StreamCharEngine, "from_pretrained", lambda _: build())
    started: list[tuple[int, int]] = []
    monkeypatch.setattr("streamchar.eval.judge.Judge", lambda size, _: started.append(size))
    command = ["eval", "long", "--checkpoint", str(tmp_path), "--sink", "99", "-o", str(tmp_path / "out")]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 1
    assert "sink_latents must be" in refused.output.replace("\n", " ")
    assert started == []
