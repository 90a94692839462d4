"""Reference images load from files, Pillow images, arrays and tensors, or are refused with a remedy."""

import contextlib
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from streamchar.media.image import BACKGROUND, MAX_PIXELS, MIN_SIDE, ImageError, load_reference


def ramp(height: int, width: int) -> Image.Image:
    """Return an image that encodes positions: red grows downwards, green to the right, blue is constant."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(20, 220, height)[:, None]
    pixels[..., 1] = np.linspace(20, 220, width)[None]
    pixels[..., 2] = 77
    return Image.fromarray(pixels)


def as_floats(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image.convert("RGB"), np.float32)).permute(2, 0, 1) / 127.5 - 1


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp", "jpg", "gif"])
def test_every_supported_format_is_read(tmp_path: Path, suffix: str) -> None:
    image = ramp(48, 64)
    options = {"webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}.get(suffix, {})
    image.save(tmp_path / f"image.{suffix}", **options)
    loaded = load_reference(tmp_path / f"image.{suffix}", 48, 64)
    assert loaded.shape == (3, 48, 64)
    assert loaded.dtype == torch.float32
    # GIF has 256 colours, and JPEG rounds.
    worst = {"gif": 40, "jpg": 5}.get(suffix, 0)
    assert (loaded - as_floats(image)).abs().max() <= worst / 127.5 + 1e-6


@pytest.mark.parametrize(("height", "width"), [(100, 40), (40, 100), (64, 64), (333, 37)])
def test_the_crop_is_centred_and_keeps_the_aspect_ratio(height: int, width: int) -> None:
    loaded = load_reference(ramp(height, width), 32, 32)
    side = min(height, width)
    for channel, axis, size in ((0, 2, height), (1, 1, width)):
        line = loaded[channel].mean(axis - 1)
        first = (size - side) / 2 + side / 64 - 0.5
        step = side / 32
        place = first + step * torch.arange(32)
        wanted = (20 + 200 * place / (size - 1)) / 127.5 - 1
        # Away from the border, where the filter is truncated, a ramp stays a ramp up to two roundings.
        assert (line - wanted)[3:-3].abs().max() <= 1.5 / 127.5
    assert (loaded[2] - (77 / 127.5 - 1)).abs().max() <= 1e-6


def test_transparent_pixels_show_the_background(tmp_path: Path) -> None:
    image = Image.new("RGBA", (40, 40), (200, 0, 0, 0))
    image.paste((0, 100, 0, 255), (0, 0, 20, 40))
    image.paste((0, 0, 0, 128), (20, 20, 40, 40))
    image.save(tmp_path / "a.png")
    image.quantize().save(tmp_path / "p.png")
    for source in (tmp_path / "a.png", tmp_path / "p.png", np.asarray(image)):
        bytes_of = ((load_reference(source, 40, 40) + 1) * 127.5).round().int()
        assert bytes_of[:, 5, 5].tolist() == [0, 100, 0]
        assert bytes_of[:, 5, 35].tolist() == list(BACKGROUND)
        assert bytes_of[:, 35, 35].tolist() == [127] * 3
    grey = load_reference(Image.new("LA", (40, 40), (10, 0)), 40, 40)
    assert (grey == 1).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "I;16"])
def test_every_colour_model_becomes_rgb(tmp_path: Path, mode: str) -> None:
    if mode == "I;16":
        grey = np.full((40, 40), 250 * 257, np.uint16)
        image, wanted = Image.fromarray(grey), [250] * 3
        image.save(tmp_path / "x.png")
        image = Image.open(tmp_path / "x.png")
        assert image.mode == "I;16"
    else:
        colour = (255, 255, 255) if mode == "1" else (40, 40, 40) if mode == "L" else (200, 120, 40)
        image, wanted = Image.new("RGB", (40, 40), colour), list(colour)
        image = image.quantize() if mode == "P" else image.convert(mode)
    loaded = ((load_reference(image, 40, 40) + 1) * 127.5).round()
    # Conversion to YCbCr or HSV and back rounds.
    worst = 5 if mode in ("YCbCr", "HSV") else 0
    assert (loaded - torch.tensor(wanted).view(3, 1, 1)).abs().max() <= worst


def test_a_cmyk_jpeg_is_not_inverted(tmp_path: Path) -> None:
    Image.new("CMYK", (40, 40), (0, 255, 255, 0)).save(tmp_path / "x.jpg", quality=100)
    red = load_reference(tmp_path / "x.jpg", 40, 40).mean((1, 2))
    assert red.tolist() == pytest.approx([1, -1, -1], abs=0.05)


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    image = ramp(40, 60)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "x.png", exif=exif)
    turned = image.transpose(Image.Transpose.ROTATE_270)
    assert turned.size == (40, 60)
    assert torch.equal(load_reference(tmp_path / "x.png", 60, 40), as_floats(turned))


def test_a_loaded_reference_can_be_loaded_again() -> None:
    loaded = load_reference(ramp(40, 60), 32, 32)
    for same in (loaded, loaded.numpy(), loaded.double()):
        assert (load_reference(same, 32, 32) - loaded).abs().max() <= 1e-6
    assert (load_reference(loaded.bfloat16(), 32, 32) - loaded).abs().max() <= 2**-8
    half = load_reference(loaded, 16, 16)
    assert half.shape == (3, 16, 16)
    assert half.mean().item() == pytest.approx(loaded.mean().item(), abs=0.01)


@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 1), (40, 50, 3), (40, 50, 4)])
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_arrays_and_tensors_of_bytes_are_accepted(shape: tuple[int, ...], kind: Callable) -> None:
    loaded = load_reference(kind(np.full(shape, 255, np.uint8)), 40, 40)
    assert (loaded == 1).all()


def png_header(width: int, height: int) -> bytes:
    """Return the start of a PNG file of any size, without pixels."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return start + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


def encoded(suffix: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(buffer, suffix)
    return buffer.getvalue()


# Pillow warns of images between 2^26 pixels and its own limit; they are refused as well.
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not an image of a supported format; give one of PNG"),
        (b"hello", "not an image of a supported format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n", "not an image of a supported format"),
        (png_header(20_000, 20_000), "scale it to at most"),
        (png_header(9_000, 9_000), f"9000 x 9000 pixels; scale it to at most {MAX_PIXELS}"),
        (png_header(10_000, 10_000), "scale it to at most"),
        (png_header(1, 1), f"1 x 1 pixels; give one of at least {MIN_SIDE}"),
        (png_header(4000, 31), "4000 x 31 pixels"),
        (png_header(64, 64), "corrupt"),
        (encoded("png")[:3000], "corrupt"),
        (encoded("jpeg")[:900], "corrupt"),
        (encoded("webp")[:900], "corrupt|cannot be read|not an image"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_unusable_file_is_refused_with_the_reason(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(ImageError, match=said):
        load_reference(str(tmp_path / "x.png"), 64, 64)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_a_corrupt_file_gives_an_image_or_an_image_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for suffix in ("png", "jpeg", "webp", "gif", "tiff", "bmp"):
        original = np.frombuffer(encoded(suffix), np.uint8)
        for _ in range(12):
            broken = original.copy()
            places = rng.integers(0, min(len(broken), 400), 3)
            broken[places] = rng.integers(0, 256, 3)
            (tmp_path / "x").write_bytes(broken.tobytes())
            with contextlib.suppress(ImageError):
                assert load_reference(tmp_path / "x", 32, 32).isfinite().all()


def one(value: float) -> torch.Tensor:
    return torch.zeros(3, 40, 40).index_fill(1, torch.tensor(7), value)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (one(float("nan")), "120 values that are not finite"),
        (one(float("inf")).numpy(), "120 values that are not finite"),
        (one(1.5), r"values from 0 to 1.5; scale it to \[-1, 1\]"),
        (torch.zeros(40, 40, 3), r"cannot be \[40, 40, 3\] float32"),
        (torch.zeros(1, 3, 40, 40), r"cannot be \[1, 3, 40, 40\]"),
        (np.zeros((40, 40, 2), np.uint8), r"cannot be \[40, 40, 2\] uint8"),
        (np.zeros((40, 40, 3), np.int64), "int64"),
        (np.zeros((1, 1, 3), np.uint8), "1 x 1 pixels"),
        (torch.zeros(3, 1, 1), "1 x 1 pixels"),
        (torch.zeros(3, 0, 40), "40 x 0 pixels"),
        (Image.new("RGB", (1, 1)), "1 x 1 pixels"),
        (Image.new("I", (40, 40)), "mode I; convert it to 8 or 16 bits"),
        (3, "cannot be loaded from int; give a path"),
        (None, "cannot be loaded from NoneType"),
        (b"\x89PNG", "cannot be loaded from bytes"),
        ("/no/such/image.png", "No such file"),
        ("/", "Is a directory"),
        ("nul\0byte.png", "cannot be read"),
    ],
)
def test_an_unusable_source_is_refused_with_a_remedy(source: object, said: str) -> None:
    with pytest.raises(ImageError, match=said):
        load_reference(source, 64, 64)
