"""Scripts: the long texts that streams speak."""

import random
from dataclasses import dataclass

from ...data.text.sentences import everyday_sentences, held_out_sentences
from ..metrics.normalise import normalise
from ..sources import FIRST_IDENTITY

#: Words of a script per minute, more than are spoken in one.
WORDS_PER_MINUTE = 260
# Offset of the seeds of sentences, because short evaluations use small seeds.
_FIRST_SEED = 1_000_000


@dataclass(frozen=True)
class Script:
    """What a stream says.

    Attributes:
        sentences: sentences in order; every word in them is pronounced as one word.
        identity: seed of the character.
        seed: seed of motion and noise.
        seconds: length of the stream; the text is longer.
    """

    sentences: tuple[str, ...]
    identity: int
    seed: int
    seconds: float

    @property
    def words(self) -> list[str]:
        """All words, with their punctuation."""
        return " ".join(self.sentences).split()


def write_script(minutes: int, stream: int, identities: int, seed: int = 0) -> Script:
    """Return the script of a stream: held-out sentences, every third one an everyday sentence.

    After all everyday sentences have been used they come again in another order, so that every minute is
    equally hard.

    Sentences with a word that is pronounced as several words, such as a number in digits, are left out. Thus
    expected words, recognised words and the pointer's words have the same indices.

    Args:
        minutes: length of the stream, at least 1.
        stream: index of the stream, from 0.
        identities: number of characters in the gallery.
        seed: seed of the texts.

    Raises:
        ValueError: ``minutes`` or ``identities`` is below 1.
    """
    if min(minutes, identities) < 1:
        raise ValueError(f"minutes and identities must be at least 1, got {minutes} and {identities}")
    number = seed * 10_000 + stream
    shuffled = random.Random(f"long {number}")
    everyday: list[str] = []
    wanted = minutes * WORDS_PER_MINUTE
    # A sentence has at least two words.
    unseen = iter(held_out_sentences(wanted // 2, _FIRST_SEED + number))
    chosen: list[str] = []
    while wanted > 0:
        if not everyday:
            everyday = everyday_sentences()
            shuffled.shuffle(everyday)
        sentence = everyday.pop() if len(chosen) % 3 == 2 else next(unseen)
        if all(len(normalise(word).split()) == 1 for word in sentence.split()):
            chosen.append(sentence)
            wanted -= len(sentence.split())
    return Script(tuple(chosen), FIRST_IDENTITY + stream % identities, number, 60.0 * minutes)
