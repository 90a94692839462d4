"""Contact sheets: which frames they show, and where."""

from pathlib import Path

import numpy as np
from PIL import Image

from streamchar.eval.sheet import save_sheet, spoken_frames
from streamchar.eval.sources import FIRST_IDENTITY, Clip, Item, reference_frame

SIZE = 32


class Numbered:
    """Every pixel is the number of its frame; each clip is 32 frames longer than the one before."""

    name, truth = "numbered", None

    def __init__(self) -> None:
        self.made = 0

    def make(self, item: Item) -> Clip:
        self.made += 1
        frames = np.arange(32 * self.made, dtype=np.uint8)[:, None, None, None]
        return Clip(np.zeros(32_000 * self.made, np.float32), np.tile(frames, (1, SIZE, SIZE, 3)))


def test_the_shortest_clip_limits_the_frames_beside_the_references() -> None:
    items = [Item("Hello.", "everyday", FIRST_IDENTITY + row, row) for row in range(2)]
    shown = spoken_frames(Numbered(), items)
    assert np.array_equal(shown[1, 0], reference_frame(FIRST_IDENTITY + 1, SIZE, SIZE))
    assert shown[:, 1:, 0, 0, 0].tolist() == [list(range(6, 32, 3))] * 2
    longer = Numbered()
    longer.made = 1
    assert spoken_frames(longer, items).shape == (2, 12, SIZE, SIZE, 3)


def test_a_sheet_places_rows_below_each_other(tmp_path: Path) -> None:
    shown = np.arange(2 * 3, dtype=np.uint8).repeat(SIZE * SIZE * 3).reshape(2, 3, SIZE, SIZE, 3)
    save_sheet(shown, tmp_path / "sheet.png")
    pixels = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert pixels[SIZE // 2 :: SIZE, SIZE // 2 :: SIZE, 0].tolist() == [[0, 1, 2], [3, 4, 5]]
