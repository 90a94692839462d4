"""Frames and sound handed to another library: NumPy arrays through DLPack, without a copy.

Run it with ``python examples/frames_to_numpy.py OUT``. It writes every eighth frame side by side as OUT.png
and the sound as OUT.wav. On a GPU the same tensors go to CuPy or JAX with their own ``from_dlpack``.
"""

import sys
import wave
from pathlib import Path

import numpy as np
from PIL import Image

from streamchar import StreamCharEngine
from streamchar.checkpoint import shipped_weights
from streamchar.media import load_reference

#: Any picture of a face will do; this one ships with the weights.
PICTURE = shipped_weights("tiny") / "reference.png"


def main(out: Path) -> None:
    """Speak a sentence; write frames to ``out``.png and sound to ``out``.wav."""
    engine = StreamCharEngine.from_preset("tiny")
    picture, clock = engine.preset.picture, engine.preset.clock
    reference = load_reference(PICTURE, picture.height, picture.width)
    pictures, sounds = [], []
    with engine.open(reference, seed=7) as session:
        for chunk in session.speak("Every frame is an array.", max_seconds=4):
            # Host memory: on a GPU chunk.video is the same picture on the device.
            pictures.append(np.from_dlpack(chunk.host.video)[::8])
            sounds.append(np.from_dlpack(chunk.host.audio))
    frames, samples = np.concatenate(pictures), np.concatenate(sounds)
    strip = np.concatenate(list(frames), axis=1)
    Image.fromarray(strip).save(out.with_suffix(".png"))
    with wave.open(str(out.with_suffix(".wav")), "wb") as file:
        file.setparams((1, 2, clock.sample_rate, len(samples), "NONE", ""))
        file.writeframes((samples.clip(-1, 1) * 32767).astype("<i2").tobytes())
    print(f"{len(frames)} frames, {len(samples) / clock.sample_rate:.1f} s of sound")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "frames"))
