"""Segments, faces and voices of long streams, on inputs with known results."""

import numpy as np
import pytest

from streamchar.data.renderer.character import Identity, animate, neutral, render
from streamchar.data.speech import Utterance
from streamchar.eval.long.segmenter import LONGEST, PAUSE, SHORTEST, Segmenter
from streamchar.eval.metrics.face import FaceMeter, face, movement
from streamchar.eval.metrics.identity import Gallery
from streamchar.eval.metrics.voice import VoiceStatistics, cepstra, raised, similarity
from streamchar.eval.sources import reference_frame, word_middles

SIZE = 64


def noise(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, frames * 1000).astype(np.float32)


def split(audio: np.ndarray, step: int) -> list:
    segmenter, found = Segmenter(), []
    for start in range(0, len(audio), step * 1000):
        found += segmenter.add(audio[start : start + step * 1000])
    return [*found, *segmenter.finish()]


@pytest.mark.parametrize("step", [8, 32, 500])
def test_a_stream_is_split_in_its_pauses(step: int) -> None:
    audio, pauses = noise(1000), [100, 220, 380, 500, 640, 800, 900]
    for pause in pauses:
        audio[pause * 1000 : (pause + PAUSE) * 1000] = 0
    segments = split(audio, step)
    middles = [pause + PAUSE / 2 for pause in pauses]
    assert len(segments) == 1 + sum(
        any(abs(segment.start - middle) <= 1 for middle in middles) for segment in segments[1:]
    )
    assert np.array_equal(np.concatenate([segment.audio for segment in segments]), audio)
    assert [segment.start for segment in segments[1:]] == np.cumsum(
        [len(segment.audio) // 1000 for segment in segments[:-1]]
    ).tolist()


def test_segments_without_pauses_have_bounded_lengths() -> None:
    lengths = [len(segment.audio) // 1000 for segment in split(noise(2000), 32)]
    assert all(SHORTEST <= length <= LONGEST for length in lengths[:-1])
    assert sum(lengths) == 2000


def test_half_a_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="a multiple of 1000 samples, got 1500"):
        list(Segmenter().add(np.zeros(1500, np.float32)))
    assert list(Segmenter().finish()) == []


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return reference_frame(3, SIZE, SIZE)[None].repeat(2, 0)


def test_a_face_equal_to_the_reference_has_no_error(frames: np.ndarray) -> None:
    meter = FaceMeter(frames[0])
    assert meter.colour(frames).tolist() == [0, 0]
    assert meter.sharpness(frames).tolist() == [1, 1]


def test_a_tint_is_measured_in_levels(frames: np.ndarray) -> None:
    dim = (frames // 2).astype(np.uint8)
    tinted = dim.copy()
    tinted[..., 0] += 30
    assert FaceMeter(dim[0]).colour(tinted) == pytest.approx([10, 10])
    tinted[..., 1] -= np.minimum(tinted[..., 1], 3)
    assert FaceMeter(dim[0]).colour(tinted)[0] > 10


def test_halved_contrast_quarters_sharpness_and_blur_lowers_it(frames: np.ndarray) -> None:
    even = (frames // 2 * 2).astype(np.uint8)
    meter = FaceMeter(even[0])
    assert meter.sharpness((even // 2).astype(np.uint8)) == pytest.approx([0.25, 0.25])
    blurred = (even.astype(float) + np.roll(even, 1, 1) + np.roll(even, 1, 2)) / 3
    assert meter.sharpness(blurred.astype(np.uint8))[0] < 0.7


def test_movement_continues_across_pieces(frames: np.ndarray) -> None:
    still = frames[:1].repeat(3, 0)
    assert movement(still, None).tolist() == [0, 0, 0]
    assert movement(still // 2 + 5, still[0] // 2).tolist() == [5, 0, 0]
    nodding = np.stack([np.roll(frames[0], step, axis=0) for step in range(6)])
    whole = movement(nodding, None)
    assert whole[1:].min() > 0
    assert np.array_equal(whole[3:], movement(nodding[3:], nodding[2]))


def test_only_the_face_counts(frames: np.ndarray) -> None:
    changed = frames.copy()
    changed[:, : SIZE // 8] = 255
    assert FaceMeter(frames[0]).colour(changed).tolist() == [0, 0]
    wide = np.zeros((1, SIZE, 2 * SIZE, 3), np.uint8)
    wide[:, :, SIZE // 2 : SIZE // 2 + SIZE] = frames[:1]
    assert np.array_equal(face(wide), face(frames[:1]))


def test_a_frame_is_similar_only_to_its_own_character() -> None:
    seeds = range(200, 216)
    gallery = Gallery(np.stack([reference_frame(seed, SIZE, SIZE) for seed in seeds]))
    still = render(Identity.sample(200), neutral(), SIZE, SIZE).permute(0, 2, 3, 1).numpy()
    assert gallery.similarity(still, 0) == pytest.approx([1.0])
    moving = render(Identity.sample(200), animate([], 24, 1)[::6], SIZE, SIZE).permute(0, 2, 3, 1).numpy()
    assert gallery.similarity(moving, 0).min() > 0.8
    assert np.mean([gallery.similarity(moving, index).mean() for index in range(1, 16)]) < 0.2


def vowel(pitch: float, formants: tuple[float, ...], seconds: float = 2.0, seed: int = 0) -> np.ndarray:
    """Return a sum of harmonics, weighted by formants."""
    time, sound = np.arange(round(seconds * 24000)) / 24000, 0.0
    phase = np.random.default_rng(seed).uniform(0, 6, 200)
    for harmonic in range(1, int(8000 / pitch)):
        hertz = pitch * harmonic
        gain = sum(np.exp(-(((hertz - formant) / 150) ** 2)) for formant in formants) + 0.01
        sound = sound + gain * np.sin(2 * np.pi * hertz * time + phase[harmonic])
    return (0.05 * sound).astype(np.float32)


def statistics(*pieces: np.ndarray) -> np.ndarray:
    gathered = VoiceStatistics()
    for piece in pieces:
        gathered.add(piece)
    vector = gathered.vector()
    assert vector is not None
    return vector


def test_voice_similarity_ignores_order_and_loudness() -> None:
    low, high = vowel(110, (500, 1500)), vowel(120, (700, 1200), seed=1)
    whole = statistics(low, high)
    assert similarity(whole, whole) == pytest.approx(1)
    assert similarity(whole, statistics(high, low)) == pytest.approx(1)
    assert similarity(whole, statistics(0.5 * low, 0.5 * high)) > 0.99
    assert similarity(whole, statistics(vowel(180, (900, 2600)), vowel(190, (1200, 2100)))) < 0.8


def test_a_raised_voice_is_another_voice() -> None:
    low, high = vowel(110, (500, 1500)), vowel(120, (700, 1200), seed=1)
    audio = np.concatenate([low, high])
    assert len(raised(audio)) == pytest.approx(len(audio) / 1.15, abs=1)
    # 500 Hz becomes 575 Hz.
    spectrum = np.abs(np.fft.rfft(raised(vowel(100, (500,)))))
    assert spectrum.argmax() / len(raised(vowel(100, (500,)))) * 24000 == pytest.approx(575, abs=1)
    assert similarity(statistics(raised(audio)), statistics(audio)) < 0.97
    assert similarity(statistics(low, high), statistics(audio)) > 0.999


def test_silence_and_pauses_do_not_change_a_voice() -> None:
    silent, sound = np.zeros(24000, np.float32), vowel(110, (500, 1500))
    assert cepstra(np.zeros(100, np.float32)).shape == (0, 19)
    assert VoiceStatistics().vector() is None
    assert similarity(statistics(np.concatenate([sound, silent])), statistics(sound)) > 0.99


def test_the_middle_of_a_word_is_that_of_its_tokens() -> None:
    ends = np.asarray([1.0, 2.0, 2.5, 3.0, 5.0], np.float32)
    utterance = Utterance("a b", (1, 2, 0, 3, 4), "ab cd", ends, (2, 5), np.zeros(1, np.float32))
    assert word_middles(utterance) == [1.0, 2.75]
