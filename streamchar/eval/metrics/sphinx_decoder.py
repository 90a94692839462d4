"""What recognition, alignment and skip detection share in using a pocketsphinx decoder."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pocketsphinx import Decoder

#: Silence added before and after a recording, in seconds. Recognisers drop words at the very beginning.
MARGIN = 0.2
# Length of a pocketsphinx frame in seconds.
_FRAME = 0.01


def process(decoder: "Decoder", pcm: bytes) -> None:
    """Decode a whole utterance.

    Args:
        decoder: a pocketsphinx decoder.
        pcm: 16-bit samples, 16 kHz.
    """
    decoder.start_utt()
    decoder.process_raw(pcm, full_utt=True)
    decoder.end_utt()


def is_filler(name: str) -> bool:
    """Return whether a decoded word is silence or noise, which are written in brackets."""
    return name[0] in "<["


def base_word(name: str) -> str:
    """Return a decoded word without the number of its pronunciation, such as "the" for "the(2)"."""
    return name.split("(")[0]


def seconds(frame: int) -> float:
    """Return the time of a pocketsphinx frame in the recording without its margin, at least 0."""
    return max(frame * _FRAME - MARGIN, 0.0)
