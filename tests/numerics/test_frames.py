"""Frame packing: exact bytes of RGB and YUV, any strides, no writes outside the frame."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamchar.kernels import KernelArgumentError, pack_frames
from streamchar.kernels.frames.arguments import FramesArgs
from streamchar.kernels.frames.interface import operator
from streamchar.kernels.frames.reference import pack_frames_reference

NAN = float("nan")
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
WHERE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
#: Largest fp32 error of a value before its last rounding. Values are below 256, so the error of one rounding
#: is at most 2^-17. The map to 0 .. 255 has 2 roundings, the matrix at most 10 (three rounded weights, five
#: operations, scale and offset), and the 2 x 2 mean 4.
TIE = 16 * 2.0**-17
#: Bytes checked on both sides of an output: more than a few rows, to catch a row written outside.
GUARD = 1 << 14


def decoded(
    rng: torch.Generator, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Draw frames in the layout of a decoder, which is [channels, frames, ...], inside a buffer of NaN."""
    count, _, height, width = shape
    buffer = torch.full((3, count + 1, height + 3, width + 16), NAN, dtype=dtype)
    view = buffer[:, 1:, 2:-1, :width]
    # Past both ends, so that clamping matters in about a fifth of the pixels.
    view.copy_(torch.rand((3, count, height, width), generator=rng) * 2.5 - 1.25)
    return buffer.to(device)[:, 1:, 2:-1, :width].transpose(0, 1)


def exact_yuv(frames: torch.Tensor) -> torch.Tensor:
    """Compute [frames, height * 3 / 2 * width] from the definition, unrounded, in float64."""
    x = ((frames.cpu().double() + 1) * 127.5).nan_to_num(0).clamp(0, 255) / 255

    def luma(c: torch.Tensor) -> torch.Tensor:
        return 0.2126 * c[:, 0] + 0.7152 * c[:, 1] + 0.0722 * c[:, 2]

    mean = (x[..., ::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, ::2] + x[..., 1::2, 1::2]) / 4
    blue = (mean[:, 2] - luma(mean)) / (2 * (1 - 0.0722))
    red = (mean[:, 0] - luma(mean)) / (2 * (1 - 0.2126))
    planes = (16 + 219 * luma(x), 128 + 224 * blue, 128 + 224 * red)
    return torch.cat([plane.flatten(1) for plane in planes], 1)


def assert_yuv(out: torch.Tensor | None, frames: torch.Tensor) -> None:
    """Assert that each byte is the rounded value; within TIE of a half, either neighbour is accepted."""
    count, _, height, width = frames.shape
    assert out is not None
    assert out.shape == (count, height * 3 // 2, width)
    assert out.dtype == torch.uint8
    distance = (out.cpu().flatten(1).double() - exact_yuv(frames)).abs().max().item()
    assert distance <= 0.5 + TIE


def into_filled(frames: torch.Tensor, rgb: bool, yuv: bool, fill: int) -> list[torch.Tensor | None]:
    """Run the kernel on outputs of ``fill`` and check that the bytes around them do not change."""
    count, _, height, width = frames.shape
    shapes = ((count, height, width, 3), (count, height * 3 // 2, width))
    views: list[torch.Tensor | None] = []
    buffers = []
    for wanted, shape in zip((rgb, yuv), shapes):
        size = torch.Size(shape).numel()
        buffer = torch.full((size + 2 * GUARD,), fill, dtype=torch.uint8, device=frames.device)
        buffers.append((buffer, size))
        views.append(buffer[GUARD : GUARD + size].view(shape) if wanted else None)
    operator(FramesArgs(frames, *views))
    for buffer, size in buffers:
        assert (buffer[:GUARD] == fill).all()
        assert (buffer[GUARD + size :] == fill).all()
    return views


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16])
@pytest.mark.parametrize("outputs", [(True, False), (False, True), (True, True)])
def test_bytes_equal_the_reference(
    outputs: tuple[bool, bool], dtype: torch.dtype, device: torch.device, rng: torch.Generator
) -> None:
    frames = decoded(rng, (2, 3, 34, 64), dtype, device)
    rgb, yuv = pack_frames(frames, rgb=outputs[0], yuv=outputs[1], backend="triton")
    want_rgb, _ = pack_frames_reference(frames)
    assert (rgb is not None, yuv is not None) == outputs
    if rgb is not None:
        assert torch.equal(rgb, want_rgb)
    if yuv is not None:
        assert_yuv(yuv, frames)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.integers(1, 3),
    st.integers(1, 9),
    st.sampled_from([1, 2, 3, 4, 6, 16, 17, 20, 30, 36, 48, 80]),
    st.sampled_from([FP32, BF16]),
    st.integers(0, 2**31),
)
def test_any_size_is_written_whole_and_nothing_beside_it(
    count: int, height: int, width: int, dtype: torch.dtype, seed: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    frames = decoded(rng, (count, 3, height, width), dtype, WHERE)
    yuv = height % 2 == 0 and width % 2 == 0
    for fill in (0, 255):
        rgb_out, yuv_out = into_filled(frames, True, yuv, fill)
        assert rgb_out is not None
        assert torch.equal(rgb_out, pack_frames_reference(frames)[0])
        if yuv:
            assert_yuv(yuv_out, frames)


def test_more_pieces_than_one_program_holds(device: torch.device, rng: torch.Generator) -> None:
    frames = decoded(rng, (1, 3, 70, 160), BF16, device)
    for fill in (0, 255):
        rgb, yuv = into_filled(frames, True, True, fill)
        assert rgb is not None
        assert torch.equal(rgb, pack_frames_reference(frames)[0])
        assert_yuv(yuv, frames)


def test_torch_path_and_reference_follow_the_standard(device: torch.device, rng: torch.Generator) -> None:
    frames = decoded(rng, (2, 3, 18, 22), FP32, device)
    _, yuv = pack_frames(frames, yuv=True, backend="torch")
    assert_yuv(yuv, frames)
    _, wide = pack_frames_reference(frames.double(), yuv=True)
    assert_yuv(wide, frames)


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize(
    ("colour", "yuv"),
    [
        ((0, 0, 0), (16, 128, 128)),
        ((255, 255, 255), (235, 128, 128)),
        ((255, 0, 0), (63, 102, 240)),
        ((0, 255, 0), (173, 42, 26)),
        ((0, 0, 255), (32, 240, 118)),
    ],
)
def test_primaries_have_their_standard_codes(
    colour: tuple[int, ...], yuv: tuple[int, ...], backend: str, device: torch.device
) -> None:
    frames = (
        (torch.tensor(colour, device=device) / 127.5 - 1).view(1, 3, 1, 1).expand(1, 3, 4, 32).contiguous()
    )
    rgb_out, yuv_out = pack_frames(frames, yuv=True, backend=backend)
    assert rgb_out is not None
    assert yuv_out is not None
    assert (rgb_out.cpu() == torch.tensor(colour)).all()
    planes = yuv_out.cpu().flatten().split((4 * 32, 2 * 16, 2 * 16))
    assert [plane.unique().tolist() for plane in planes] == [[code] for code in yuv]


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_values_out_of_range_are_clamped_and_nan_is_black(backend: str, device: torch.device) -> None:
    values = torch.tensor([NAN, -2.0, float("-inf"), -1.0, 1.0, 2.0, float("inf"), 1e30], device=device)
    frames = values.view(1, 1, 1, 8).expand(1, 3, 2, 8).contiguous()
    rgb, yuv = pack_frames(frames, yuv=True, backend=backend)
    assert rgb is not None
    assert yuv is not None
    assert rgb[0, 0, :, 0].tolist() == [0, 0, 0, 0, 255, 255, 255, 255]
    assert yuv[0, 0].tolist() == [16, 16, 16, 16, 235, 235, 235, 235]


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_halves_round_to_even(backend: str, device: torch.device) -> None:
    x = (2 * torch.arange(255) + 1).double().div(255).sub(1).float()
    code = (x + 1) * 127.5
    ties = code.frac() == 0.5
    # There must be values where rounding half up would differ, and values where half down would.
    assert (code[ties].floor() % 2 == 0).any()
    assert (code[ties].floor() % 2 == 1).any()
    rgb, _ = pack_frames(x[ties].to(device).expand(1, 3, 1, -1), backend=backend)
    assert rgb is not None
    below = code[ties].floor().int()
    assert rgb[0, 0, :, 1].tolist() == (below + below % 2).tolist()


@pytest.mark.parametrize("layout", ["contiguous", "frames in rows", "one channel repeated"])
def test_any_strides_but_the_last_are_read(layout: str, device: torch.device, rng: torch.Generator) -> None:
    frames = decoded(rng, (2, 3, 6, 32), FP32, device)
    if layout == "contiguous":
        frames = frames.contiguous()
    elif layout == "frames in rows":
        frames = frames.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3)
    else:
        frames = frames[:, :1].expand(-1, 3, -1, -1)
    rgb, yuv = pack_frames(frames, yuv=True, backend="triton")
    assert torch.equal(rgb, pack_frames_reference(frames)[0])
    assert_yuv(yuv, frames)


def test_compiles_as_one_graph(device: torch.device, rng: torch.Generator) -> None:
    frames = decoded(rng, (1, 3, 4, 16), BF16, device)
    compiled = torch.compile(pack_frames, fullgraph=True, backend="aot_eager")
    for backend in ("triton", "torch"):
        out, eager = (run(frames, yuv=True, backend=backend) for run in (compiled, pack_frames))
        assert torch.equal(out[0], eager[0])
        assert torch.equal(out[1], eager[1])


def test_custom_op_is_registered_correctly(device: torch.device, rng: torch.Generator) -> None:
    frames = decoded(rng, (1, 3, 4, 16), FP32, device)
    rgb, yuv = pack_frames(frames, yuv=True, backend="triton")
    args = tuple(FramesArgs(frames, rgb, yuv))
    torch.library.opcheck(operator.registered, args, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(
    ("frames", "options", "argument"),
    [
        (torch.empty(1, 3, 4, 4), {"rgb": False}, "rgb"),
        (torch.empty(3, 4, 4), {}, "frames"),
        (torch.empty(1, 4, 4, 4), {}, "frames"),
        (torch.empty(0, 3, 4, 4), {}, "frames"),
        (torch.empty(1, 3, 4, 4, dtype=torch.float64), {}, "frames"),
        (torch.empty(1, 4, 4, 3).permute(0, 3, 1, 2), {}, "frames"),
        (torch.empty(1, 3, 5, 4), {"yuv": True}, r"frames.shape\[2\] must be even.*crop or pad"),
        (torch.empty(1, 3, 4, 5), {"yuv": True}, r"frames.shape\[3\] must be even.*crop or pad"),
        (torch.empty(1, 1, 1, 1).expand(65536, 3, 1, 1), {}, r"frames.shape\[0\]"),
        (torch.empty(1, 3, 32768, 16384, device="meta"), {}, r"frames.shape\[2:\]"),
        (torch.empty(1, 3, 4, 4), {"backend": "cuda"}, "backend"),
    ],
)
def test_wrong_arguments_are_named(frames: torch.Tensor, options: dict[str, Any], argument: str) -> None:
    with pytest.raises(KernelArgumentError, match=f"^{argument}"):
        pack_frames(frames, **options)
