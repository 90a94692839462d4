"""Make docs/speaking.webp: four drawn characters, never seen in training, spoken by the shipped weights.

Run ``python docs/speaking_picture.py`` from the root of the repository; it takes about a minute on two cores.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from streamchar import StreamCharEngine
from streamchar.data.renderer.character import Identity, neutral, render
from streamchar.eval.sources import FIRST_IDENTITY

SEEDS = (0, 1, 2, 3)
TEXT = "Hello there. This is the first sentence I ever say."
SIZE, EVERY = 160, 2


def frames_of(engine: StreamCharEngine, seed: int) -> list[Image.Image]:
    """Let one character say the text and return every second frame, enlarged."""
    picture = engine.preset.picture
    drawn = render(Identity.sample(FIRST_IDENTITY + seed), neutral(1), picture.height, picture.width)[0]
    with engine.open(drawn.float() / 127.5 - 1, seed=seed) as session:
        video = torch.cat([chunk.host.video for chunk in session.speak(TEXT, max_seconds=4)])
    return [
        Image.fromarray(np.asarray(frame)).resize((SIZE, SIZE), Image.Resampling.LANCZOS)
        for frame in video[::EVERY]
    ]


def main() -> None:
    """Write the four characters side by side."""
    engine = StreamCharEngine.from_preset("tiny")
    columns = [frames_of(engine, seed) for seed in SEEDS]
    sheets = []
    for row in zip(*columns, strict=True):
        sheet = Image.new("RGB", (SIZE * len(row), SIZE))
        for index, frame in enumerate(row):
            sheet.paste(frame, (SIZE * index, 0))
        sheets.append(sheet)
    duration = round(1000 * EVERY / engine.preset.clock.frame_rate)
    out = Path(__file__).parent / "speaking.webp"
    sheets[0].save(out, save_all=True, append_images=sheets[1:], duration=duration, loop=0, quality=70)
    print(f"{out}: {len(sheets)} frames, {out.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
