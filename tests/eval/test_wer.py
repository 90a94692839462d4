"""Word errors, normalisation, and the offline recogniser, aligner and skip finder."""

from pathlib import Path

import numpy as np
import pytest

from streamchar.data.renderer.visemes import Phone
from streamchar.eval.metrics.align import ForcedAligner, spelled_in_phones, spoken_span
from streamchar.eval.metrics.normalise import normalise, number_words
from streamchar.eval.metrics.skips import SkipFinder
from streamchar.eval.metrics.wer import Sphinx, Whisper, pcm16, word_errors


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("Good morning, Dr. Smith!", "good morning doctor smith"),
        ("It's my neighbour\u2019s grey colour.", "it's my neighbor's gray color"),
        (
            "I have 21 cats, 1,204 dogs & $5.",
            "i have twenty one cats one thousand two hundred four dogs and five dollars",
        ),
        ("one hundred and five", "one hundred five"),
        ("the 3rd of May, 1895", "the third of may eighteen ninety five"),
        ("20th", "twentieth"),
        ("50%", "fifty percent"),
    ],
)
def test_texts_are_normalised(written: str, spoken: str) -> None:
    assert normalise(written) == spoken
    assert normalise(spoken) == spoken


def test_numbers_are_written_in_words() -> None:
    assert number_words(0) == "zero"
    assert number_words(3_000_017) == "three million seventeen"
    assert number_words(1900) == "one thousand nine hundred"
    assert normalise("in 1900") == "in nineteen hundred"
    assert normalise("1234567890123") == "one two three four five six seven eight nine zero one two three"
    with pytest.raises(ValueError, match="between 0 and 999999999, got -1"):
        number_words(-1)


def test_errors_of_each_kind_are_counted_over_all_sentences() -> None:
    found = word_errors(
        ["one two three four", "The cat sat.", "good night"],
        ["one too three", "the cat sat down", "good night"],
    )
    assert (found.substitutions, found.deletions, found.insertions, found.words) == (1, 1, 1, 9)
    assert found.rate == pytest.approx(3 / 9)
    assert found.low <= found.rate <= found.high


def test_hearing_nothing_is_all_wrong() -> None:
    assert word_errors(["a b c"], [""]).rate == 1.0


def test_a_sentence_without_words_cannot_be_scored() -> None:
    with pytest.raises(ValueError, match="every reference must contain a word"):
        word_errors(["..."], ["hello"])
    with pytest.raises(ValueError, match="equal lengths"):
        word_errors(["hello"], [])


def test_loud_samples_are_clipped() -> None:
    samples = np.frombuffer(pcm16(np.full(2400, 1.5, np.float32)), np.int16)
    assert samples.min() >= -2000
    assert samples.max() == 32767


def test_pocketsphinx_hears_the_words_of_the_training_voice() -> None:
    pytest.importorskip("hibari")
    pytest.importorskip("onnx")
    from streamchar.data.speech import Speaker

    text = "Thank you very much for your help yesterday."
    speaker = Speaker()
    audio = speaker.say(text).audio
    heard = Sphinx().words(audio)
    assert word_errors([text], [" ".join(word.text for word in heard)]).rate <= 0.25
    aligner = ForcedAligner(speaker.tokenizer.g2p)
    words = aligner.align_words(audio, normalise(text).split())
    assert words is not None
    assert " ".join(word.text for word in words if word.text) == normalise(text)
    # Both find the same time for the first word.
    thank = next(word for word in words if word.text == "thank")
    assert heard[0].text == "thank"
    assert (heard[0].start + heard[0].end) / 2 == pytest.approx(thank.middle, abs=0.1)
    phones = aligner.align(audio, text)
    assert phones is not None
    first, last = spoken_span(phones)
    assert first == pytest.approx(0.1, abs=0.1)  # the synthesiser leaves this much silence
    assert 1.5 < last < len(audio) / 24_000
    assert "".join(phone.symbol for phone in phones if phone.symbol.isalpha()).startswith("θæŋkju")


def test_a_word_is_missing_where_the_recording_fits_better_without_it() -> None:
    pytest.importorskip("hibari")
    pytest.importorskip("onnx")
    from streamchar.data.speech import Speaker

    speaker = Speaker()
    text = "The man bought a loaf of bread for his sister."
    audio, words = speaker.say(text).audio, normalise(text).split()
    aligner = ForcedAligner(speaker.tokenizer.g2p)
    finder, aligned = SkipFinder(aligner), aligner.align_words(audio, words)
    assert finder.missing(audio, words, range(len(words))) == set()
    for place, stranger in ((2, "near"), (3, "gramophone"), (5, "the"), (10, "a")):
        more = [*words[:place], stranger, *words[place:]]
        assert finder.missing(audio, more, {place, place - 1}) == {place}, stranger
    # Both use one decoder and do not affect each other.
    assert aligned is not None
    assert aligner.align_words(audio, words) == aligned
    # In noise either result is right.
    noise = np.random.default_rng(0).normal(0, 0.1, 24_000).astype(np.float32)
    assert finder.missing(noise, ["kitchen"], {0}) in ({0}, None)
    with pytest.raises(ValueError, match="at least one index"):
        finder.missing(audio, words, ())


def test_words_missing_in_the_dictionary_get_the_voices_phones() -> None:
    assert spelled_in_phones("ɡɹˈæməfˌOn") == "G R AE M AH F OW N"
    assert spelled_in_phones("nˈɜɹs") == "N ER S"
    with pytest.raises(ValueError, match="must contain a phone"):
        spelled_in_phones("?")


def test_a_recording_without_sound_has_no_span() -> None:
    assert spoken_span([Phone(".", 0, 1), Phone("ɑ", 1, 2), Phone(".", 2, 3)]) == (1, 2)
    with pytest.raises(ValueError, match="must contain a sound"):
        spoken_span([Phone(".", 0, 1)])


def test_whisper_names_the_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"model\.bin"):
        Whisper(tmp_path)
