"""Pictures of characters show their pose, and a frame depends on its own pose alone."""

import ast
from pathlib import Path

import pytest
import torch
from torch import Tensor

from streamchar.data.renderer.character import (
    FACE_BOX,
    MOUTH_BOX,
    MOUTH_DARK,
    Identity,
    Phone,
    Pose,
    animate,
    contact_sheet,
    mouth_openness,
    neutral,
    render,
)
from streamchar.data.renderer.identity import Hair, Neckline
from streamchar.data.renderer.paint import Box
from streamchar.data.renderer.visemes import VISEMES

ROOT = Path(__file__).parents[2]
PHONES = [Phone("ɑ", 0.2, 0.5), Phone("m", 0.5, 0.6), Phone("i", 0.6, 0.9), Phone("f", 0.9, 1.0)]


def crop(frames: Tensor, box: Box) -> Tensor:
    size = frames.shape[-1]
    left, top, right, bottom = (round(edge * size) for edge in box)
    return frames[..., top:bottom, left:right]


def dark_share(frames: Tensor) -> Tensor:
    """Return the share of the mouth box that has the colour of the inside of the mouth: [frames]."""
    mouth = crop(frames, MOUTH_BOX).float()
    far = (mouth - torch.tensor(MOUTH_DARK)[:, None, None]).abs().amax(1)
    return (far < 24).float().mean((1, 2))


def pose_of(symbol: str) -> Tensor:
    pose = neutral()
    pose[0, : Pose.SMILE] = torch.tensor(VISEMES[symbol][0].columns())
    return pose


def test_frames_have_the_requested_size_and_dtype() -> None:
    frames = render(Identity.sample(0), neutral(2), 64, 112)
    assert frames.shape == (2, 3, 64, 112)
    assert frames.dtype == torch.uint8


def test_same_identity_and_pose_give_the_same_pixels() -> None:
    pose = animate(PHONES, 30, seed=4)
    one, two = (render(Identity.sample(9), pose, 96, 96) for _ in range(2))
    assert torch.equal(one, two)


def test_drawing_needs_no_device_synchronisation() -> None:
    """A meta tensor has no values to read, and cannot be combined with tensors of another device."""
    for seed in range(24):
        frames = render(Identity.sample(seed), neutral(3), 48, 96, device="meta")
        assert frames.device.type == "meta"
        assert frames.shape == (3, 3, 48, 96)


def test_frame_does_not_depend_on_the_rest_of_its_batch() -> None:
    pose = animate(PHONES, 37, seed=4)
    for seed in range(4):
        together = render(Identity.sample(seed), pose, 96, 96)
        alone = torch.cat([render(Identity.sample(seed), row[None], 96, 96) for row in pose])
        # Fused multiply-add in vector code, but not in the scalar tail, may change a value by one level.
        assert (together.int() - alone.int()).abs().max() <= 1


@pytest.mark.parametrize("seed", range(24))
def test_the_inside_of_the_mouth_shows_only_when_open(seed: int) -> None:
    identity = Identity.sample(seed)
    poses = torch.cat([neutral(), *(pose_of(symbol) for symbol in "pbmfɑ")])
    rest, p, b, m, f, wide = dark_share(render(identity, poses, 96, 96)).tolist()
    assert rest == p == b == m == 0
    assert f < 0.01
    assert wide > 0.035


def test_dark_pixels_follow_the_openness_of_the_phones() -> None:
    phones = [Phone(s, 0.2 + 0.09 * i, 0.29 + 0.09 * i) for i, s in enumerate("ðəbɪɡmædfɑks pleɪd ɛvɹi bɔl")]
    frames = render(Identity.sample(3), animate(phones, 72, seed=1), 96, 96)
    both = torch.stack([dark_share(frames), mouth_openness(phones, 72)])
    assert torch.corrcoef(both)[0, 1] > 0.85


def test_labiodental_shows_teeth() -> None:
    rest, contact = (
        crop(render(Identity.sample(3), pose, 96, 96), MOUTH_BOX) for pose in (neutral(), pose_of("f"))
    )
    white = [int((mouth.amin(1) > 215).sum()) for mouth in (rest, contact)]
    assert white[0] == 0
    assert white[1] >= 8


@pytest.mark.parametrize("seed", range(12))
def test_mouth_moves_within_its_box(seed: int) -> None:
    poses = torch.cat([neutral(), *(pose_of(symbol) for symbol in "ɑiupfɔsʃθæ")])
    frames = render(Identity.sample(seed), poses, 96, 96).float()
    moved = (frames[1:] - frames[:1]).abs().amax((0, 1)) > 40
    assert crop(moved[None], MOUTH_BOX).sum() == moved.sum() > 100
    assert crop(moved[None], FACE_BOX).sum() == moved.sum()


@pytest.mark.parametrize("column", list(Pose), ids=lambda column: column.name)
def test_every_column_of_a_pose_changes_the_picture(column: Pose) -> None:
    pose = neutral()
    pose[0, Pose.MOUTH_OPEN] = 0.5
    moved = pose.clone()
    moved[0, column] = {Pose.HEAD_ROLL: 0.1, Pose.HEAD_X: 0.05, Pose.HEAD_Y: 0.05}.get(column, 1.0)
    one, other = (render(Identity.sample(3), each, 96, 96).int() for each in (pose, moved))
    assert (one - other).abs().max() > 40


def test_identities_differ_clearly() -> None:
    frames = torch.cat([render(Identity.sample(seed), neutral(), 48, 48) for seed in range(128)])
    pixels = frames.float().flatten(1)
    apart = torch.cdist(pixels, pixels, p=1) / pixels.shape[1]
    apart.fill_diagonal_(torch.inf)
    assert apart.min() > 6


def test_the_identity_of_a_seed_is_constant() -> None:
    assert Identity.sample(11) == Identity.sample(11)
    assert len({Identity.sample(seed) for seed in range(500)}) == 500
    sampled = [Identity.sample(seed) for seed in range(200)]
    assert {identity.hair for identity in sampled} == set(Hair)
    assert {identity.neckline for identity in sampled} == set(Neckline)


@pytest.mark.parametrize("seed", range(6))
def test_edges_are_antialiased(seed: int) -> None:
    """A picture drawn four times as large and averaged is almost the picture drawn small."""
    identity, pose = Identity.sample(seed), animate(PHONES, 24, seed)[8:20:4]
    small = render(identity, pose, 96, 96).float()
    large = torch.nn.functional.avg_pool2d(render(identity, pose, 384, 384).float(), 4)
    aliased = render(identity, pose, 384, 384).float()[..., 2::4, 2::4]
    error, without = ((picture - large).square().mean().sqrt() for picture in (small, aliased))
    assert error < 0.45 * without


def test_head_moves_smoothly_by_fractions_of_a_pixel() -> None:
    """A shift by a tenth of a pixel changes a pixel by about a tenth of the contrast at an edge."""
    pose = neutral(11)
    pose[:, Pose.HEAD_X] = torch.arange(11) * (0.1 * 2 / 96)
    frames = render(Identity.sample(2), pose, 96, 96).float()
    whole = (frames[-1] - frames[0]).abs().amax()
    assert frames.diff(dim=0).abs().amax() < 0.35 * whole


def test_poses_beyond_the_limits_are_clamped() -> None:
    far = torch.full((1, len(Pose)), 100.0)
    at_limit = torch.full((1, len(Pose)), 1.0)
    identity = Identity.sample(1)
    assert torch.equal(render(identity, far, 48, 48), render(identity, at_limit, 48, 48))


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"pose must be \[frames, 19\], got \[3, 7\]"):
        render(Identity.sample(0), torch.zeros(3, 7), 96, 96)
    with pytest.raises(ValueError, match="height and width must be at least 16 pixels, got 8 and 96"):
        render(Identity.sample(0), neutral(), 8, 96)


def test_contact_sheet_has_a_row_for_each_identity() -> None:
    sheet = contact_sheet(identities=2, size=32)
    assert sheet.height == 64
    assert sheet.width % 32 == 0


def imported(node: ast.AST) -> set[str]:
    """Return all name parts that an import statement mentions; the empty set for other statements."""
    if isinstance(node, ast.Import):
        return {part for each in node.names for part in each.name.split(".")}
    if isinstance(node, ast.ImportFrom):
        return {*(node.module or "").split("."), *(each.name for each in node.names)}
    return set()


def test_the_engine_does_not_import_data_train_or_eval() -> None:
    offline = {"data", "train", "eval"}
    package = ROOT / "streamchar"
    # The commands of the command line import everything.
    rooms = [room for room in package.iterdir() if room.is_dir() and room.name not in {*offline, "cli"}]
    sources = [*package.glob("*.py"), *(path for room in rooms for path in room.rglob("*.py"))]
    assert len(sources) > 40
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text())):
            assert imported(node).isdisjoint(offline), path
    for statement in ("from . import data", "import streamchar.data", "from .train.loop import run"):
        assert not imported(ast.parse(statement).body[0]).isdisjoint(offline), statement
