"""Speech with the time of every phoneme, from the offline synthesiser ``hibari-tts``.

Text is converted to phonemes word by word, as :class:`~streamchar.text.transcript_window.TextWindow` does at
run time, so training and inference see the same tokens. Sentences are synthesised separately and joined.
"""

import itertools
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..config import CLOCK
from ..errors import ArgumentError
from ..text.tokenizers import PhonemeTokenizer

#: Unit of the synthesiser's durations, in seconds.
DURATION_UNIT = 0.025
#: Delay of the synthesiser's durations relative to its audio, in seconds, measured with an aligner.
DURATION_DELAY = 0.075
#: Silence before the first sound of a recording, in seconds.
LEAD = 0.1
_DURATIONS = "/Clip_output_0"
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class Utterance:
    """Synthesised speech and the time of each of its tokens.

    Attributes:
        text: the spoken text.
        tokens: ids of :class:`~streamchar.text.tokenizers.PhonemeTokenizer`, with the spaces between words.
        symbols: the tokens as phoneme characters, one per token.
        ends: [tokens] fp32, end of each token, in seconds; the first token starts at 0.
        word_ends: per word, the number of tokens up to its end.
        audio: [samples] fp32.
    """

    text: str
    tokens: tuple[int, ...]
    symbols: str
    ends: npt.NDArray[np.float32]
    word_ends: tuple[int, ...]
    audio: npt.NDArray[np.float32]


class Speaker:
    """The synthesiser; requires the extra ``data``."""

    def __init__(self) -> None:
        import onnx
        import onnxruntime
        from hibari import Hibari

        self.tokenizer = PhonemeTokenizer()
        self._voice: Any = Hibari(g2p=self.tokenizer.g2p)
        model = onnx.load(self._voice.model_path)
        model.graph.output.append(
            onnx.helper.make_tensor_value_info(_DURATIONS, onnx.TensorProto.FLOAT, None)
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def say(self, text: str, seed: int = 0, speed: float = 1.0) -> Utterance:
        """Synthesise a text.

        Args:
            text: sentences, each ending in punctuation and a space.
            seed: seed of the noise in unvoiced sounds.
            speed: speed of the speech; 1 is the voice's own.

        Raises:
            ArgumentError: the text contains nothing to pronounce.
        """
        tokens: list[int] = []
        durations: list[float] = []
        word_ends: list[int] = []
        pieces: list[npt.NDArray[np.float32]] = []
        for index, sentence in enumerate(_SENTENCE_END.split(text.strip())):
            words = [tuple(self.tokenizer.encode(word)) for word in sentence.split()]
            words = [word for word in words if word]
            if not words:
                continue
            ids = [token for word in words for token in (self.tokenizer.space, *word)][1:]
            audio, spans = self._synthesise(ids, seed + index, speed)
            if pieces:
                # The pause before a sentence belongs to the space in front of it.
                tokens.append(self.tokenizer.space)
                durations.append(spans[0])
            else:
                lead = max(spans[0] - DURATION_DELAY - LEAD, 0.0)
                audio = audio[round(lead * CLOCK.sample_rate) :]
                spans[1] += spans[0] - lead
            lengths = itertools.accumulate(len(word) + 1 for word in words)
            word_ends += [len(tokens) + length - 1 for length in lengths]
            tokens += ids
            # The silence after a sentence belongs to its last token.
            durations += [*spans[1:-2], spans[-2] + spans[-1]]
            pieces.append(audio)
        ArgumentError.require(bool(pieces), "text", "something that can be spoken", repr(text[:40]))
        ends = np.cumsum(durations) - DURATION_DELAY
        return Utterance(
            text,
            tuple(tokens),
            self.tokenizer.decode(tokens),
            ends.clip(0).astype(np.float32),
            tuple(word_ends),
            np.concatenate(pieces),
        )

    def _synthesise(
        self, ids: list[int], seed: int, speed: float
    ) -> tuple[npt.NDArray[np.float32], list[float]]:
        from hibari import dsp

        padded = np.asarray([[0, *ids, 0]], np.int64)
        outputs = self._session.run(None, {"ids": padded, "speed": np.asarray([speed], np.float32)})
        audio = dsp.synth(*(each[0] for each in outputs[:6]), np.random.default_rng(seed))
        return audio, [float(units) * DURATION_UNIT for units in outputs[6]]
