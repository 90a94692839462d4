"""RoPE tables and positions on the shared time axis of video and audio."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamchar.kernels import KernelArgumentError
from streamchar.kernels._shared.rope import audio_positions, rope_tables, video_positions
from tests.closeness import assert_close

FP32, FP64 = torch.float32, torch.float64


def angles(positions: torch.Tensor, pairs: tuple[int, int, int], theta: float) -> torch.Tensor:
    """Compute the angles one by one."""
    rows = []
    for position in positions.tolist():
        row = [p * theta ** (-i / count) for p, count in zip(position, pairs) for i in range(count)]
        rows.append(row)
    return torch.tensor(rows, dtype=FP64)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    tokens=st.integers(0, 9),
    pairs=st.sampled_from([(22, 21, 21), (12, 10, 10), (64, 0, 0), (0, 16, 16), (1, 2, 3)]),
    theta=st.sampled_from([10000.0, 256.0, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_tables_equal_angles_in_float64(
    tokens: int, pairs: tuple[int, int, int], theta: float, seed: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    positions = (torch.rand((tokens, 3), generator=rng, dtype=FP64) - 0.5) * 2000.0
    time, height, width = pairs
    cos, sin = rope_tables(
        positions,
        2 * sum(pairs),
        time_pairs=time,
        height_pairs=height,
        width_pairs=width,
        theta=theta,
    )
    assert cos.dtype == sin.dtype == FP32
    assert cos.shape == sin.shape == (tokens, sum(pairs))
    # One rounding to nearest: half an epsilon. With fp32 angles near 1000 it would be 250 times larger.
    angle = angles(positions, pairs, theta).reshape(tokens, sum(pairs))
    assert_close(cos, angle.cos(), FP32, 0.5)
    assert_close(sin, angle.sin(), FP32, 0.5)


@pytest.mark.parametrize(("head_dim", "pairs"), [(128, (22, 21, 21)), (64, (12, 10, 10)), (2, (1, 0, 0))])
def test_default_split_gives_height_and_width_a_third(head_dim: int, pairs: tuple[int, int, int]) -> None:
    positions = video_positions(2, 2, 3, first_frame=-4)
    time, height, width = pairs
    named = rope_tables(positions, head_dim, time_pairs=time, height_pairs=height, width_pairs=width)
    for table, want in zip(rope_tables(positions, head_dim), named):
        assert torch.equal(table, want)


def test_fastest_pair_of_each_axis_turns_one_radian_a_step() -> None:
    cos, sin = rope_tables(torch.tensor([[-3.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, 0.0, 7.0]]), 128)
    angle = torch.atan2(sin.double(), cos.double())
    first = torch.stack((angle[0, 0], angle[1, 22], angle[2, 43]))
    wrapped = torch.tensor([-3.0, 5.0 - 2 * torch.pi, 7.0 - 2 * torch.pi], dtype=FP64)
    assert_close(first, wrapped, FP32, 4.0)
    assert (angle[0, 22:] == 0).all(), "time does not turn the pairs of height and width"
    assert (angle[1, :22] == 0).all()
    assert (angle[1, 43:] == 0).all()
    assert (angle[2, :43] == 0).all()


def test_score_depends_on_the_difference_of_positions_alone(rng: torch.Generator) -> None:
    q, k = torch.randn((2, 128), generator=rng, dtype=FP64)

    def score(q_at: list[float], k_at: list[float]) -> float:
        cos, sin = rope_tables(torch.tensor([q_at, k_at], dtype=FP64), 128)
        turn = torch.complex(cos.double(), sin.double())
        turned = torch.complex(torch.stack((q, k))[:, :64], torch.stack((q, k))[:, 64:]) * turn
        return (turned[0] * turned[1].conj()).real.sum().item()

    here = score([0.0, 4.0, 2.0], [-3.0, 1.0, 7.0])
    assert here == pytest.approx(score([9.5, 5.0, 0.0], [6.5, 2.0, 5.0]), abs=1e-4)
    assert here != pytest.approx(score([9.5, 5.0, 0.0], [6.5, 2.0, 6.0]), abs=1e-2)


def test_video_tokens_run_width_first() -> None:
    positions = video_positions(2, 3, 4, first_frame=-2)
    want = [[t, h, w] for t in (-2.0, -1.0) for h in range(3) for w in range(4)]
    assert positions.dtype == FP64
    assert positions.tolist() == want


@pytest.mark.parametrize("shape", [(1, 1, 1), (0, 2, 3), (3, 1, 1)])
def test_small_videos_keep_their_shape(shape: tuple[int, int, int]) -> None:
    assert video_positions(*shape).shape == (shape[0] * shape[1] * shape[2], 3)


def test_audio_tokens_have_the_time_of_their_picture() -> None:
    positions = audio_positions(8, 4, first_frame=-1)
    assert positions.dtype == FP64
    assert positions[:, 0].tolist() == [-1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75]
    assert (positions[:, 1:] == 0).all()
    video = video_positions(2, 2, 2, first_frame=-1)
    both_cos, both_sin = rope_tables(torch.cat((positions[4:5], video[4:5])), 128)
    assert torch.equal(both_cos[0], both_cos[1])
    assert torch.equal(both_sin[0], both_sin[1])


def test_audio_rate_may_be_fractional() -> None:
    assert audio_positions(3, 2.5)[:, 0].tolist() == [0.0, 0.4, 0.8]
    assert audio_positions(0, 4).shape == (0, 3)


GOOD = torch.zeros((4, 3))
ERRORS: list[tuple[Any, str]] = [
    (lambda: rope_tables(GOOD, 63), "head_dim must be even"),
    (lambda: rope_tables(GOOD, 0), "head_dim must be even"),
    (lambda: rope_tables(GOOD, 64, theta=0.0), "theta must be"),
    (lambda: rope_tables(GOOD, 64, theta=float("inf")), "theta must be"),
    (lambda: rope_tables(GOOD[:, :2], 64), r"positions must be \[tokens"),
    (lambda: rope_tables(GOOD.int(), 64), "positions must be of a float dtype"),
    (lambda: rope_tables(GOOD / 0.0, 64), "positions must be finite"),
    (lambda: rope_tables(GOOD, 64, time_pairs=32), "time_pairs, height_pairs and width_pairs must be given"),
    (lambda: rope_tables(GOOD, 64, time_pairs=40, height_pairs=-8, width_pairs=0), "height_pairs must be at"),
    (lambda: rope_tables(GOOD, 64, time_pairs=11, height_pairs=10, width_pairs=10), "= 32, got 31"),
    (lambda: video_positions(-1, 2, 2), "frames must be"),
    (lambda: video_positions(1, 0, 2), "height must be"),
    (lambda: video_positions(1, 2, 0), "width must be"),
    (lambda: video_positions(1, 2, 2, float("nan")), "first_frame must be"),
    (lambda: audio_positions(-1, 4), "tokens must be"),
    (lambda: audio_positions(2, 0), "tokens_per_frame must be"),
    (lambda: audio_positions(2, float("inf")), "tokens_per_frame must be"),
    (lambda: audio_positions(2, 4, float("inf")), "first_frame must be"),
]


@pytest.mark.parametrize(("bad", "message"), ERRORS, ids=[message for _, message in ERRORS])
def test_wrong_argument_is_named(bad: Any, message: str) -> None:
    with pytest.raises(KernelArgumentError, match=message):
        bad()
