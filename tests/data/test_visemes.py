"""The mouth follows the phones: closures, contacts, glides and anticipation."""

import pytest
import torch

from streamchar.config import CLOCK
from streamchar.data.renderer.motion import SWAY, animate
from streamchar.data.renderer.pose import MOUTH_COLUMNS, Pose, neutral
from streamchar.data.renderer.visemes import (
    ALPHABET,
    Phone,
    PhoneError,
    mouth_openness,
    mouth_track,
)

MOUTH = len(MOUTH_COLUMNS)


def spell(symbols: str, seconds: float = 0.1, start: float = 0.2) -> list[Phone]:
    return [Phone(symbol, start + i * seconds, start + (i + 1) * seconds) for i, symbol in enumerate(symbols)]


def at(track: torch.Tensor, seconds: float) -> torch.Tensor:
    return track[int(seconds * CLOCK.frame_rate)]


@pytest.mark.parametrize("symbol", "pbm")
@pytest.mark.parametrize("start", [0.30, 0.313, 0.326, 0.339])
def test_short_bilabials_close_the_lips_between_vowels(symbol: str, start: float) -> None:
    phones = [Phone("ɑ", 0.1, start), Phone(symbol, start, start + 0.03), Phone("ɑ", start + 0.03, 0.7)]
    openness = mouth_openness(phones, 24)
    assert openness.min() >= 0
    assert openness[4:14].min() == 0
    assert openness.max() > 0.7


@pytest.mark.parametrize("symbol", "fv")
def test_labiodentals_put_the_lip_against_the_teeth(symbol: str) -> None:
    track = mouth_track(spell("ɑ" + symbol + "ɑ"), 24)
    assert at(track, 0.35)[Pose.LIP_TUCK] == 1
    assert at(track, 0.35)[Pose.MOUTH_OPEN] < 0.1
    assert at(track, 0.65)[Pose.LIP_TUCK] < 0.1


def test_mouth_opens_on_an_open_vowel_and_rests_in_silence() -> None:
    openness = mouth_openness(spell("ɑ", 0.3), 48)
    assert at(openness, 0.35) > 0.9
    assert openness[36:].max() < 1e-3
    assert (mouth_openness([], 5) == 0).all()


def test_vowels_keep_their_order_of_opening() -> None:
    peaks = [float(mouth_openness(spell(vowel, 0.4), 24).max()) for vowel in "ɑʌəi"]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[0] > peaks[-1] + 0.5


def test_diphthong_glides_from_its_first_vowel_to_its_second() -> None:
    track = mouth_track(spell("I", 0.4), 24)
    early, late = at(track, 0.28), at(track, 0.55)
    assert early[Pose.MOUTH_OPEN] > late[Pose.MOUTH_OPEN] + 0.3
    assert late[Pose.MOUTH_WIDTH] > early[Pose.MOUTH_WIDTH] + 0.2


def test_lips_round_before_a_rounded_vowel_sounds() -> None:
    before = 0.39  # in the s, before the vowel starts at 0.4 s
    round_next, spread_next = (at(mouth_track(spell("s" + vowel, 0.2), 24), before) for vowel in "ui")
    assert round_next[Pose.LIP_ROUND] > spread_next[Pose.LIP_ROUND] + 0.2


def test_punctuation_is_silence_but_a_space_is_not() -> None:
    space, comma = (mouth_openness(spell("ɑ" + mark + "ɑ", 0.2), 24) for mark in " ,")
    assert at(space, 0.5) > 0.9
    assert at(comma, 0.5) < 0.1


def test_stress_mark_lengthens_and_opens_the_vowel() -> None:
    marked = mouth_openness([Phone("ˈ", 0.2, 0.3), Phone("ɛ", 0.3, 0.5)], 24)
    plain = mouth_openness([Phone("ɛ", 0.2, 0.5)], 24)
    assert torch.allclose(marked, plain * 1.15, atol=1e-6)


def test_movement_between_frames_is_smooth() -> None:
    track = mouth_track(spell("hɛlO wˈɜɹld, Iæm bˈɪɡ fˈɪʃ", 0.07), 72)
    closing = torch.tensor([Pose.MOUTH_OPEN, Pose.LIP_TUCK, Pose.LIP_PRESS, Pose.TEETH, Pose.TONGUE])
    others = [column for column in range(MOUTH) if column not in closing]
    assert track[:, others].diff(dim=0).abs().max() < 0.6


@pytest.mark.parametrize("symbol", sorted(ALPHABET))
def test_every_symbol_of_the_alphabet_is_accepted(symbol: str) -> None:
    track = mouth_track(spell("ə" + symbol + "ə"), 24)
    assert track.isfinite().all()
    assert track[:, Pose.MOUTH_OPEN].amin() >= 0


def test_alphabet_holds_all_of_misaki_english() -> None:
    american = "AIOWYbdfhijklmnpstuvwzæðŋɑɔəɛɜɡɪɹɾʃʊʌʒʤʧˈˌθᵊᵻʔT"
    assert set(american) | set('Qaɒː ;:,.!?—…"()“”') <= ALPHABET


@pytest.mark.parametrize("symbol", ["ß", "", "ab", "0"])
def test_unknown_symbol_is_refused(symbol: str) -> None:
    with pytest.raises(PhoneError, match=f"phone 1 .*got '{symbol}'"):
        animate([Phone("ɑ", 0, 0.1), Phone(symbol, 0.1, 0.2)], 5, seed=0)


@pytest.mark.parametrize("times", [(0.2, 0.1), (0.05, 0.3)], ids=["ends early", "overlaps"])
def test_times_out_of_order_are_refused(times: tuple[float, float]) -> None:
    with pytest.raises(PhoneError, match="sort the phones"):
        mouth_track([Phone("ɑ", 0, 0.1), Phone("p", *times)], 5)


def test_zero_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="frames must be at least 1, got 0"):
        animate([], 0, seed=0)


def test_seed_changes_everything_but_the_mouth() -> None:
    phones = spell("hɛlO wɜɹld")
    one, same, other = (animate(phones, 96, seed) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert torch.equal(one[:, :MOUTH], other[:, :MOUTH])
    assert torch.equal(one[:, :MOUTH], mouth_track(phones, 96))
    for column in (Pose.HEAD_X, Pose.HEAD_ROLL, Pose.GAZE_X, Pose.BROW_RAISE, Pose.BLINK_LEFT):
        assert not torch.equal(one[:, column], other[:, column])


def test_longer_clip_starts_like_a_shorter_one() -> None:
    phones = spell("hɛlO")
    assert torch.equal(animate(phones, 240, seed=5)[:96], animate(phones, 96, seed=5))


def test_clip_starts_near_the_neutral_pose() -> None:
    poses = animate([], 24, seed=3)
    assert (poses[0] - neutral()[0]).abs().max() < 0.01


def test_head_sways_slowly_and_within_bounds() -> None:
    for seed in range(8):
        poses = animate([], 60 * CLOCK.frame_rate, seed)
        for column, (reach, _) in SWAY.items():
            assert poses[:, column].abs().max() <= reach
        pixels = poses[:, [Pose.HEAD_X, Pose.HEAD_Y]] * 48
        assert pixels.diff(dim=0).abs().max() < 0.2
        assert 0.5 < pixels.abs().max() < 2


def test_blinks_come_every_two_to_five_seconds() -> None:
    for seed in range(8):
        shut = animate([], 60 * CLOCK.frame_rate, seed)[:, Pose.BLINK_LEFT]
        starts = ((shut[1:] > 0.05) & (shut[:-1] <= 0.05)).nonzero()[:, 0]
        gaps = starts.diff() / CLOCK.frame_rate
        assert gaps.min() > 1.9
        assert gaps.max() < 5.1
        assert shut.max() > 0.9
        assert (shut > 0.05).float().mean() < 0.1
