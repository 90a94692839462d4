"""The weights that ship hold over time, not only for the first moments that they were looked at."""

import torch

from streamchar.data.character import Identity, animate, neutral, render
from streamchar.data.visemes import Phone
from streamchar.engine import StreamCharEngine


def test_late_pictures_of_a_round_trip_are_as_good_as_early_ones():
    vae = StreamCharEngine.from_preset("tiny").vae
    # A second of "a", a second of silence, and again; the character is one that was never trained on.
    phones = [Phone("a" if second % 2 else ".", second, second + 1.0) for second in range(3)]
    pose = torch.cat((neutral(), animate(phones, 60, 0)))
    frames = render(Identity.sample(1_000_003), pose, 96, 96).float()[None] / 127.5 - 1
    with torch.inference_mode():
        made = vae.decode_clip(vae.encode(frames)).clamp(-1, 1)
    error = (made - frames).square().mean((0, 2, 3, 4)) / 4
    quality = -10 * error.log10()
    assert quality[1:9].mean() > 20
    assert quality[-8:].mean() > quality[1:9].mean() - 2.5
