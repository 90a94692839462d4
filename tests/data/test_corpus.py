"""A corpus has recordings of whole latents with token times, and is reproducible from its config."""

import json
import shutil

import numpy as np
import pytest

pytest.importorskip("hibari")

from streamchar.config import CLOCK
from streamchar.data.corpus import (
    FRAMES_PER_LATENT,
    Corpus,
    CorpusConfig,
    CorpusError,
    CorpusNotFoundError,
    build_corpus,
)
from streamchar.data.digest import digest

SHORT = CorpusConfig(hours=0.002, seed=3, sentences=(1, 1))
FILES = ("tokens.npy", "ends.npy", "words.npy", "audio.npy", "bounds.npy", "corpus.json")


def test_recordings_hold_whole_latents(corpus):
    assert len(corpus) > 1
    for recording in corpus:
        assert len(recording.audio) % (CLOCK.samples_per_frame * FRAMES_PER_LATENT) == 0
        assert recording.frames % FRAMES_PER_LATENT == 0
    assert corpus.frames.tolist() == [recording.frames for recording in corpus]
    assert sum(corpus.frames) * CLOCK.samples_per_frame == corpus.about["samples"]


def test_recordings_follow_one_another(corpus):
    first = 0
    for index, recording in enumerate(corpus):
        assert (recording.index, recording.first_frame) == (index, first)
        first += recording.frames


def test_times_lie_within_the_recording_and_silence_follows(corpus):
    for recording in corpus:
        assert len(recording.ends) == len(recording.tokens) == recording.words[-1]
        assert (np.diff(recording.ends) >= 0).all()
        assert (np.diff(recording.words) > 0).all()
        # At least half a second of silence follows the last word.
        assert recording.ends[-1] < recording.frames - 11
        assert not recording.audio[-11 * CLOCK.samples_per_frame :].any()
        assert np.abs(recording.audio).max() > 1000


def test_bytes_depend_on_config_and_seed(tmp_path):
    for name, config in (("a", SHORT), ("b", SHORT), ("c", CorpusConfig(0.002, 4, (1, 1)))):
        build_corpus(tmp_path / name, config)
    a, b, c = ([(tmp_path / name / file).read_bytes() for file in FILES] for name in "abc")
    assert a == b
    assert a != c


def test_only_an_incomplete_corpus_is_built_again(tmp_path):
    build_corpus(tmp_path, SHORT)
    whole = (tmp_path / "tokens.npy").read_bytes()
    time = (tmp_path / "tokens.npy").stat().st_mtime_ns
    build_corpus(tmp_path, SHORT)
    assert (tmp_path / "tokens.npy").stat().st_mtime_ns == time
    # As after a killed build: corpus.json is written last.
    (tmp_path / "corpus.json").unlink()
    (tmp_path / "tokens.npy").write_bytes(b"half a fi")
    with pytest.raises(CorpusNotFoundError, match="streamchar train data") as error:
        Corpus(tmp_path)
    assert isinstance(error.value, FileNotFoundError)
    build_corpus(tmp_path, SHORT)
    assert (tmp_path / "tokens.npy").read_bytes() == whole


def test_the_corpus_stores_its_key(corpus):
    about = json.loads((corpus.directory / "corpus.json").read_text())
    assert about["recordings"] == len(corpus)
    assert CorpusConfig(0.006, 0, (1, 2)).key == about["key"]
    assert CorpusConfig(0.006, 1, (1, 2)).key != about["key"]


def test_the_digest_is_that_of_the_arrays(tmp_path):
    made = build_corpus(tmp_path / "a", SHORT)
    assert made.digest == made.about["digest"] == build_corpus(tmp_path / "b", SHORT).digest
    arrays = [tmp_path / "a" / file for file in FILES[:-1]]
    assert made.digest == digest(*arrays)
    # A different token time makes a different corpus of the same config.
    ends = np.load(arrays[1])
    ends[3] += 0.25
    np.save(arrays[1], ends)
    assert made.digest != digest(*arrays)


def test_audio_is_memory_mapped(corpus):
    assert isinstance(corpus[0].audio, np.memmap)


@pytest.mark.parametrize("file", ["corpus.json", "tokens.npy", "audio.npy"])
def test_an_incomplete_corpus_is_refused(file, corpus, tmp_path):
    shutil.copytree(corpus.directory, tmp_path / "corpus")
    path = tmp_path / "corpus" / file
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CorpusError, match=f"{path} must be a complete file .* run: streamchar train data"):
        Corpus(tmp_path / "corpus")


@pytest.mark.parametrize(
    "other", [CorpusConfig(0.006, 1, (1, 2)), CorpusConfig(0.006, 0, (1, 3))], ids=["seed", "sentences"]
)
def test_a_corpus_of_another_config_is_refused(corpus, other):
    before = (corpus.directory / "corpus.json").read_bytes()
    with pytest.raises(CorpusError, match="remove it or build the corpus in another directory") as error:
        build_corpus(corpus.directory, other)
    assert f"'seed': {other.seed}" in str(error.value)
    assert "got that of {'hours': 0.006, 'seed': 0, 'sentences': [1, 2]}" in str(error.value)
    assert (corpus.directory / "corpus.json").read_bytes() == before
