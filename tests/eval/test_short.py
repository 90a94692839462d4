"""The short evaluation on artificial media: what each score reacts to, and the report."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from streamchar.cli.main import app
from streamchar.data.renderer.character import Identity, Phone, animate, render
from streamchar.data.text.sentences import training_sentences
from streamchar.eval.metrics.sync import SyncScore, shifted
from streamchar.eval.metrics.wer import WordErrors
from streamchar.eval.short.command import engine_label
from streamchar.eval.short.evaluate import SHIFT, SourceScores, evaluate_short
from streamchar.eval.short.report import as_dict, table_rows
from streamchar.eval.short.targets import targets, targets_beside_teacher
from streamchar.eval.sources import (
    FIRST_IDENTITY,
    Clip,
    Generated,
    GroundTruth,
    Item,
    RoundTrip,
    choose_items,
    reference_frame,
)
from tests.engine.small import SMALL, build

SIZE = 48
FRAMES = 64


def phones(text: str) -> list[Phone]:
    draw = np.random.default_rng(len(text))
    ends = np.cumsum(draw.uniform(0.06, 0.2, 18))
    symbols = draw.choice(list("ɑiuptmslkæO"), 18)
    return [
        Phone(str(s), float(a), float(b)) for s, a, b in zip(symbols, [0.1, *ends[:-1] + 0.1], ends + 0.1)
    ]


class Rendered:
    """Renders items; the lips may be late and the face may be another character's."""

    truth = None

    def __init__(self, name: str, late: int = 0, other: int = 0) -> None:
        self.name, self.late, self.other = name, late, other

    def make(self, item: Item) -> Clip:
        pose = animate(phones(item.text), FRAMES, item.seed)[
            shifted(np.arange(FRAMES), self.late).astype(int)
        ]
        identity = item.identity ^ self.other
        video = render(Identity.sample(identity), pose, SIZE, SIZE).permute(0, 2, 3, 1).numpy()
        # The recogniser below reads the text from the first samples.
        audio = np.zeros(FRAMES * 1000, np.float32)
        audio[: len(item.text)] = [ord(character) for character in item.text]
        return Clip(audio, video, phones(item.text) if not self.late else None, compute_seconds=1.0)


class Copied(Rendered):
    """A slightly darker picture, as a codec could return it."""

    def __init__(self) -> None:
        super().__init__("copy")
        self.truth = Rendered("truth")

    def make(self, item: Item) -> Clip:
        clip = self.truth.make(item)
        return replace(clip, video=clip.video - (clip.video > 0).astype(np.uint8))


class Reader:
    """Recognises all words except the last one of everyday sentences."""

    name = "reader"

    def transcribe(self, audio: np.ndarray) -> str:
        text = "".join(chr(int(code)) for code in audio if code)
        return text.rsplit(" ", 1)[0] if text in {item.text for item in ITEMS[::2]} else text


class Known:
    """Returns the rendered phones, except for one sentence."""

    def align(self, audio: np.ndarray, text: str) -> list[Phone] | None:
        return None if text == ITEMS[1].text else phones(text)


ITEMS = choose_items(6, identities=2)


@pytest.fixture(scope="module")
def scores() -> list[SourceScores]:
    sources = [Rendered("truth"), Copied(), Rendered("late", late=3), Rendered("other", other=1)]
    return evaluate_short(sources, ITEMS, [Reader()], Known(), (SIZE, SIZE), identities=2)


def test_items_alternate_between_everyday_and_unseen_sentences() -> None:
    assert [item.kind for item in ITEMS] == ["everyday", "unseen"] * 3
    assert choose_items(6, identities=2) == ITEMS
    assert len({item.text for item in choose_items(100, 32)}) == 100
    assert [item.kind for item in choose_items(5, 2)].count("everyday") == 3
    assert {item.identity for item in ITEMS} == {FIRST_IDENTITY, FIRST_IDENTITY + 1}
    texts = {item.text for item in choose_items(200, 32)}
    assert texts.isdisjoint(training_sentences(20_000, seed=0))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        choose_items(0, 2)


def test_word_errors_are_counted_by_kind_of_sentence(scores: list[SourceScores]) -> None:
    errors = scores[0].wer["reader"]
    assert errors["everyday"].deletions == errors["all"].deletions == 3
    assert errors["unseen"].rate == 0
    assert errors["all"].words == errors["everyday"].words + errors["unseen"].words


def test_sync_finds_lips_that_are_late_and_its_own_control(scores: list[SourceScores]) -> None:
    truth, _, late, _ = scores
    assert truth.aligned == 5
    assert truth.sync is not None
    assert truth.sync_shifted is not None
    assert truth.sync_mismatched is not None
    assert (truth.sync.offset, truth.sync_shifted.offset) == (0, SHIFT)
    assert truth.sync_mismatched.at_zero < truth.sync.at_zero / 2
    assert late.sync is not None
    assert late.sync.offset == 3
    assert truth.sync_known is not None
    assert late.sync_known is None


def test_identity_distinguishes_characters(scores: list[SourceScores]) -> None:
    assert (scores[0].identity, scores[0].identity_swapped) == (1.0, 0.0)
    assert (scores[3].identity, scores[3].identity_swapped) == (0.0, 1.0)


class Stubborn(Rendered):
    """Renders the same character for every reference."""

    def __init__(self, always: int) -> None:
        super().__init__("stubborn")
        self.always = FIRST_IDENTITY + always

    def make(self, item: Item) -> Clip:
        return super().make(replace(item, identity=self.always))


def test_swapping_references_reveals_a_source_that_ignores_them() -> None:
    (score,) = evaluate_short([Stubborn(0)], ITEMS[:1], [Reader()], Known(), (SIZE, SIZE), identities=2)
    assert (score.identity, score.identity_swapped) == (1.0, 1.0)


def test_identity_is_chosen_from_the_whole_gallery() -> None:
    # No item has the rendered character. It is mistaken for another one only if the gallery lacks it.
    sources = [Stubborn(2)]
    of_two, of_three = (
        evaluate_short(sources, ITEMS[:2], [Reader()], Known(), (SIZE, SIZE), identities=count)[0]
        for count in (2, 3)
    )
    assert of_two.identity == 0.5
    assert of_three.identity == 0
    with pytest.raises(ValueError, match="must be between 1000000 and 1000001, got"):
        evaluate_short(sources, choose_items(6, 3), [Reader()], Known(), (SIZE, SIZE), identities=2)


def test_pictures_are_compared_if_the_source_has_a_truth(scores: list[SourceScores]) -> None:
    assert scores[0].psnr is None
    assert scores[1].psnr == pytest.approx(20 * np.log10(255), abs=0.1)
    assert scores[1].ssim == pytest.approx(1, abs=0.01)


def test_rtf_is_seconds_of_computing_per_second_of_media(scores: list[SourceScores]) -> None:
    assert scores[0].rtf == pytest.approx(24 / FRAMES)


def wrong(rate: float) -> dict[str, Any]:
    """Return fields of scores with a word error rate."""
    errors = WordErrors(round(rate * 1000), 0, 0, 1000, rate, rate)
    return {"wer": {"reader": dict.fromkeys(("all", "everyday", "unseen"), errors)}}


def in_time(correlation: float) -> dict[str, Any]:
    """Return fields of scores with lips in time."""
    return {"sync": SyncScore(offset=0, peak=correlation, at_zero=correlation, clips=1)}


def test_targets_are_met_by_the_truth_and_missed_by_faults(scores: list[SourceScores]) -> None:
    truth, _, late, other = scores
    assert all(targets(truth, truth).values())
    assert truth.sync is not None
    rate, best = truth.wer["reader"]["all"].rate, truth.sync.at_zero
    assert not targets(late, truth)["lip offset at most 1 frame"]
    assert not targets(other, truth)["identity at least 95%"]
    for within, over, target in (
        (wrong(rate + 0.09), wrong(rate + 0.11), "WER reader within 10 points of ground truth"),
        (in_time(0.81 * best), in_time(0.79 * best), "lip correlation at least 0.8 of ground truth's"),
        ({"rtf": 0.79}, {"rtf": 0.81}, "RTF below 0.8"),
    ):
        assert targets(replace(truth, **within), truth)[target]
        assert not targets(replace(truth, **over), truth)[target]
    assert not targets(replace(truth, sync=None), truth)["lip offset at most 1 frame"]


def test_a_student_is_compared_with_its_teacher(scores: list[SourceScores]) -> None:
    truth, _, late, other = scores
    assert all(targets_beside_teacher(truth, truth).values())
    assert not targets_beside_teacher(late, truth)["lip correlation within 15% of the teacher's"]
    assert not targets_beside_teacher(other, truth)["identity within 15% of the teacher's"]
    target, teacher = "WER reader within 15% of the teacher's", replace(truth, **wrong(0.2))
    assert targets_beside_teacher(replace(truth, **wrong(0.22)), teacher)[target]
    assert not targets_beside_teacher(replace(truth, **wrong(0.24)), teacher)[target]


def test_the_report_is_json_and_a_table_with_a_column_per_source(scores: list[SourceScores]) -> None:
    found = json.loads(json.dumps(as_dict(scores)))
    assert found[0]["wer"]["reader"]["unseen"]["rate"] == 0
    rows = table_rows(scores)
    assert rows[0] == ["source", "truth", "copy", "late", "other"]
    assert ["lip offset, frames", "+0", "+0", "+3", "+0"] in rows


class Hum:
    """Replaces the synthesiser."""

    def say(self, text: str, seed: int = 0) -> object:
        class Said:
            audio = np.full(30_500, 0.1, np.float32)
            symbols = "ɑm"
            ends = np.asarray([0.5, 1.2], np.float32)
            word_ends = (2,)

        return Said()


def test_truth_and_round_trip_are_clips_of_one_length_and_size() -> None:
    truth = GroundTruth(32, 32, Hum())
    engine = build()
    original = truth.make(ITEMS[0])
    returned = RoundTrip(truth, engine.vae, engine.vocoder).make(ITEMS[0])
    # 30 500 samples are 31 frames; the last latent ends at frame 32 and the pause at frame 40.
    assert original.video.shape == returned.video.shape == (40, 32, 32, 3)
    assert original.audio.shape == returned.audio.shape == (40_000,)
    assert truth.make(ITEMS[0]) is original


def test_an_engine_is_a_source_that_reports_its_time() -> None:
    clip = Generated("random", build()).make(replace(ITEMS[0], text="Hi."))
    assert len(clip.audio) == 1000 * len(clip.video) > 0
    assert clip.video.shape[1:] == (SMALL.picture.height, SMALL.picture.width, 3)
    assert clip.compute_seconds is not None
    assert clip.compute_seconds > 0


def test_a_reference_is_the_neutral_picture() -> None:
    assert reference_frame(5, 32, 48).shape == (32, 48, 3)


def test_engines_are_labelled_by_role_or_directory(tmp_path: Path) -> None:
    engine = build()
    steps = engine.preset.sampler.steps
    assert engine_label(tmp_path / "run-7" / ".", engine, "") == f"run-7, {steps} steps"
    assert engine_label(tmp_path, engine, "teacher") == f"teacher, {steps} steps"


@pytest.mark.parametrize(
    ("out", "problem"), [("none/there.json", "cannot be created"), (".", "is a directory")]
)
def test_an_unwritable_file_is_refused_before_anything_is_spoken(
    out: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamchar.eval.short.command.score_short", lambda *_: pytest.fail("spoken"))
    done = CliRunner().invoke(app, ["eval", "short", "-o", str(tmp_path / out)])
    assert done.exit_code == 1
    assert problem in " ".join(done.output.split())


@pytest.mark.parametrize(("package", "extra"), [("jiwer", "eval"), ("faster_whisper", "whisper")])
def test_a_missing_package_is_named_with_the_extra_that_brings_it(
    package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    monkeypatch.setattr("streamchar.eval.short.command.score_short", missing)
    done = CliRunner().invoke(app, ["eval", "short", "-o", str(tmp_path / "short.json")])
    assert done.exit_code == 1
    assert f"{package!r}; pip install 'streamchar[{extra}]'" in done.output.replace("\n", " ")
