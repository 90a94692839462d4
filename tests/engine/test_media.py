"""MP4 files play however their writing ended, in step to the sample; references come from any image."""

import contextlib
import io
import re
import resource
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from streamchar.kernels import egress
from streamchar.media import (
    BACKGROUND,
    MAX_PIXELS,
    MIN_SIDE,
    ImageError,
    MediaError,
    Mp4Writer,
    _Output,
    load_reference,
    read_back,
)

RATE, SIZE, STEP = 24000, 64, 1000


def pictures(count: int, start: int = 0) -> torch.Tensor:
    """Dark pictures with a white one each second."""
    frames = torch.full((count, SIZE * 3 // 2, SIZE), 128, dtype=torch.uint8)
    frames[:, :SIZE] = 30
    frames[-start % 24 :: 24, :SIZE] = 220
    return frames


def noise(count: int, rng: torch.Generator) -> torch.Tensor:
    return torch.randint(16, 235, (count, SIZE * 3 // 2, SIZE), dtype=torch.uint8, generator=rng)


def clicks(count: int, start: int = 0) -> torch.Tensor:
    """A short burst at each second, in step with the white pictures."""
    time = torch.arange(start * STEP, (start + count) * STEP)
    return torch.where(time % RATE < 200, 0.8 * torch.sin(0.3 * time), 0.0).float()


def onsets(samples: np.ndarray) -> np.ndarray:
    loud = np.flatnonzero(np.abs(samples) > 0.1)
    return loud[np.diff(loud, prepend=-RATE) > RATE // 2]


@pytest.fixture
def small_files() -> Iterator[None]:
    """Let no file grow beyond 256 KiB, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_every_frame_and_sample_comes_back_in_its_place(tmp_path: Path) -> None:
    pytest.importorskip("av")
    path = tmp_path / "out.mp4"
    with Mp4Writer(path, SIZE, SIZE) as writer:
        # Chunks that are no multiple of AAC's 1024 samples or of a fragment's 24 frames.
        for start, count in ((0, 32), (32, 32), (64, 5), (69, 59)):
            writer.write(pictures(count, start), clicks(count, start))
        assert writer.seconds == 128 / 24
    media = read_back(path)
    assert media.sample_rate == RATE
    assert media.frames.shape == (128, SIZE * 3 // 2, SIZE)
    assert media.frame_starts.tolist() == [STEP * i for i in range(128)]
    assert len(media.samples) == 128 * STEP
    white = media.frame_starts[media.frames[:, 0, 0] > 120]
    # The bursts rise from 0, so that each is heard from its second sample on.
    assert white.tolist() == [RATE * i for i in range(6)]
    assert np.abs(onsets(media.samples) - white).max() <= 1


def test_the_priming_of_the_sound_is_not_heard_and_shifts_nothing(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "out.mp4"
    tone = 0.5 * torch.sin(torch.arange(48 * STEP) * 0.05)
    with Mp4Writer(path, SIZE, SIZE) as writer:
        writer.write(pictures(48), tone)
    heard = read_back(path).samples
    shifts = [np.dot(heard[2000 + d : 40000 + d], tone.numpy()[2000:40000]) for d in range(-50, 51)]
    assert np.argmax(shifts) == 50
    with av.open(str(path)) as container:
        assert {stream.type: stream.start_time for stream in container.streams} == {"video": 0, "audio": 0}


def test_colours_are_tagged_and_survive(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "out.mp4"
    colour = torch.tensor([0.6, -0.2, -0.7]).view(1, 3, 1, 1).expand(24, 3, SIZE, SIZE).contiguous()
    _, yuv = egress(colour, rgb=False, yuv=True, backend="torch")
    with Mp4Writer(path, SIZE, SIZE) as writer:
        writer.write(yuv, torch.zeros(24 * STEP))
    media = read_back(path)
    assert np.abs(media.frames.astype(int) - yuv.numpy().astype(int)).max() <= 2
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_range) == (1, 1)
        assert (context.color_primaries, context.color_trc) == (1, 1)
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert container.streams.video[0].average_rate == 24


def test_a_file_whose_writer_dies_plays_what_was_written(tmp_path: Path, rng: torch.Generator) -> None:
    pytest.importorskip("av")
    with Mp4Writer(tmp_path / "out.mp4", SIZE, SIZE) as writer:
        for start in range(0, 160, 32):
            writer.write(noise(32, rng), clicks(32, start))
        # Nothing is held back in memory but the fragment being made: a copy is what a crash leaves.
        shutil.copy(tmp_path / "out.mp4", tmp_path / "crashed.mp4")
    media = read_back(tmp_path / "crashed.mp4")
    assert len(media.frames) == 144
    assert media.frame_starts.tolist() == [STEP * i for i in range(144)]
    assert abs(len(media.samples) - 144 * STEP) <= 2 * 1024
    assert np.abs(onsets(media.samples[: 144 * STEP]) - RATE * np.arange(6)).max() <= 1


@pytest.mark.parametrize("piece", [7, 64, 1000])
def test_what_is_cut_off_is_what_follows_the_last_whole_fragment(tmp_path: Path, piece: int) -> None:
    boxes = [(28, b"ftyp"), (300, b"moov"), (90, b"moof"), (200, b"mdat"), (80, b"moof"), (200, b"mdat")]
    data = b"".join(struct.pack(">I4s", size, kind) + bytes(size - 8) for size, kind in boxes)[:-1]
    output = _Output(tmp_path / "out.mp4")
    for start in range(0, len(data), piece):
        assert output.write(data[start : start + piece]) == len(data[start : start + piece])
    output.error = OSError()
    output.close()
    assert (tmp_path / "out.mp4").read_bytes() == data[: 28 + 300 + 90 + 200]


def test_a_full_disk_is_reported_and_the_file_so_far_plays(
    tmp_path: Path, rng: torch.Generator, small_files: None
) -> None:
    pytest.importorskip("av")
    path, written = tmp_path / "out.mp4", 0
    writer = Mp4Writer(path, SIZE, SIZE)
    error: MediaError | None = None
    while error is None:
        try:
            writer.write(noise(32, rng), clicks(32, written))
        except MediaError as caught:
            error = caught
        written += 32
    assert re.search(r"cannot be written after .* s: File too large; the file so far plays", str(error))
    with pytest.raises(MediaError, match="cannot be written"):
        writer.write(noise(32, rng), clicks(32))
    writer.close()
    media = read_back(path)
    # Short of the fragment that did not fit and of what was to follow it.
    assert len(media.frames) % 24 == 0
    assert written - 24 - 32 <= len(media.frames) < written
    assert abs(len(media.samples) - STEP * len(media.frames)) <= 2 * 1024


@pytest.mark.usefixtures("small_files")
def test_a_disk_that_fills_up_at_the_very_end_is_reported(tmp_path: Path, rng: torch.Generator) -> None:
    pytest.importorskip("av")
    # Less than a second: nothing is written before the end.
    writer = Mp4Writer(tmp_path / "out.mp4", 256, 256)
    frames = torch.randint(16, 235, (20, 384, 256), dtype=torch.uint8, generator=rng)
    writer.write(frames, clicks(20))
    with pytest.raises(MediaError, match="File too large"):
        writer.close()
    writer.close()


def test_a_device_that_takes_nothing_is_reported() -> None:
    pytest.importorskip("av")
    writer = Mp4Writer("/dev/full", SIZE, SIZE)
    writer.write(pictures(20), clicks(20))
    with pytest.raises(MediaError, match="No space left on device"):
        writer.close()


def test_after_ctrl_c_the_file_so_far_plays(tmp_path: Path) -> None:
    pytest.importorskip("av")
    path = tmp_path / "out.mp4"

    def speak() -> None:
        with Mp4Writer(path, SIZE, SIZE) as writer:
            writer.write(pictures(32), clicks(32))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        speak()
    media = read_back(path)
    assert (len(media.frames), len(media.samples)) == (32, 32 * STEP)


def test_ctrl_c_in_the_middle_of_a_write_leaves_whole_fragments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("av")
    path = tmp_path / "out.mp4"

    def speak() -> None:
        with Mp4Writer(path, SIZE, SIZE) as writer:
            walk, fragments = writer._output._walk, iter(range(4))

            def interrupted() -> None:
                if next(fragments) == 3:
                    raise KeyboardInterrupt
                walk()

            monkeypatch.setattr(writer._output, "_walk", interrupted)
            for start in range(0, 320, 32):
                writer.write(pictures(32, start), clicks(32, start))

    with pytest.raises(KeyboardInterrupt):
        speak()
    media = read_back(path)
    assert len(media.frames) >= 24
    assert len(media.frames) % 24 == 0


def test_an_error_in_the_block_is_not_hidden_by_a_full_disk() -> None:
    pytest.importorskip("av")

    def speak() -> None:
        with Mp4Writer("/dev/full", SIZE, SIZE) as writer:
            writer.write(pictures(20), clicks(20))
            raise KeyError

    with pytest.raises(KeyError):
        speak()


def test_odd_samples_are_clipped_and_nan_is_silence(tmp_path: Path) -> None:
    pytest.importorskip("av")
    samples = torch.full((24 * STEP,), float("nan"))
    samples[12 * STEP :] = 50.0
    with Mp4Writer(tmp_path / "out.mp4", SIZE, SIZE) as writer:
        writer.write(pictures(24), samples)
    heard = read_back(tmp_path / "out.mp4").samples
    assert np.abs(heard[: 11 * STEP]).max() < 0.01
    assert heard[14 * STEP : 22 * STEP].mean() == pytest.approx(1.0, abs=0.2)


def test_a_writer_closed_before_anything_came_leaves_nothing_that_plays(tmp_path: Path) -> None:
    pytest.importorskip("av")
    with Mp4Writer(tmp_path / "out.mp4", SIZE, SIZE) as writer:
        writer.write(pictures(0), clicks(0))
    with pytest.raises(MediaError, match="does not play"):
        read_back(tmp_path / "out.mp4")
    with pytest.raises(MediaError, match="does not play"):
        read_back(tmp_path / "absent.mp4")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda w: w.write(pictures(2).float(), clicks(2)), r"frames must be \[frames, 96, 64\] uint8"),
        (lambda w: w.write(pictures(2)[:, :64], clicks(2)), r"got \[2, 64, 64\] uint8"),
        (lambda w: w.write(pictures(2), clicks(3)), r"samples must be \[2000\] floats for 2 frames"),
        (lambda w: w.write(pictures(2), clicks(2).int()), "int32"),
        (lambda w: (w.close(), w.write(pictures(2), clicks(2))), "is closed"),
        (lambda w: Mp4Writer(w.path, 63, 64), "height must be even"),
        (lambda w: Mp4Writer(w.path, 64, 0), "width must be even"),
        (lambda w: Mp4Writer(w.path, 64, 64, sample_rate=22050), "sample_rate must be a multiple of 24"),
        (lambda w: Mp4Writer(w.path.parent / "no" / "x.mp4", 64, 64), "cannot be created: No such file"),
        (lambda w: Mp4Writer(w.path, 64, 64, 1, 12345).write(pictures(1), torch.zeros(12345)), "encoded"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, call: Callable[[Mp4Writer], object], said: str) -> None:
    pytest.importorskip("av")
    with Mp4Writer(tmp_path / "out.mp4", SIZE, SIZE) as writer, pytest.raises(MediaError, match=said):
        call(writer)


def test_the_module_needs_neither_pyav_nor_pillow_until_they_are_used() -> None:
    code = (
        "import sys; sys.modules['av'] = sys.modules['PIL'] = None\n"
        "from streamchar.media import MediaError, Mp4Writer\n"
        "try: Mp4Writer('x.mp4', 64, 64)\n"
        "except MediaError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "x.mp4: needs PyAV, which is not installed; pip install av", done.stderr


def ramp(height: int, width: int) -> Image.Image:
    """RGB that tells its place: red grows downwards, green to the right, blue is constant."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(20, 220, height)[:, None]
    pixels[..., 1] = np.linspace(20, 220, width)[None]
    pixels[..., 2] = 77
    return Image.fromarray(pixels)


def as_floats(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image.convert("RGB"), np.float32)).permute(2, 0, 1) / 127.5 - 1


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp", "jpg", "gif"])
def test_every_known_kind_of_file_is_read(tmp_path: Path, suffix: str) -> None:
    image = ramp(48, 64)
    options = {"webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}.get(suffix, {})
    image.save(tmp_path / f"image.{suffix}", **options)
    loaded = load_reference(tmp_path / f"image.{suffix}", 48, 64)
    assert loaded.shape == (3, 48, 64)
    assert loaded.dtype == torch.float32
    # A GIF has 256 colours, and JPEG rounds.
    worst = {"gif": 40, "jpg": 5}.get(suffix, 0)
    assert (loaded - as_floats(image)).abs().max() <= worst / 127.5 + 1e-6


@pytest.mark.parametrize(("height", "width"), [(100, 40), (40, 100), (64, 64), (333, 37)])
def test_the_centre_is_kept_in_its_proportions(height: int, width: int) -> None:
    loaded = load_reference(ramp(height, width), 32, 32)
    side = min(height, width)
    for channel, axis, size in ((0, 2, height), (1, 1, width)):
        line = loaded[channel].mean(axis - 1)
        first = (size - side) / 2 + side / 64 - 0.5
        step = side / 32
        place = first + step * torch.arange(32)
        wanted = (20 + 200 * place / (size - 1)) / 127.5 - 1
        # Away from the border, where the filter is cut, a ramp stays a ramp but for its two roundings.
        assert (line - wanted)[3:-3].abs().max() <= 1.5 / 127.5
    assert (loaded[2] - (77 / 127.5 - 1)).abs().max() <= 1e-6


def test_what_is_transparent_shows_the_background(tmp_path: Path) -> None:
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
    # YCbCr and HSV round on the way there and back.
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


def test_what_was_loaded_can_be_loaded_again() -> None:
    loaded = load_reference(ramp(40, 60), 32, 32)
    for same in (loaded, loaded.numpy(), loaded.double()):
        assert (load_reference(same, 32, 32) - loaded).abs().max() <= 1e-6
    assert (load_reference(loaded.bfloat16(), 32, 32) - loaded).abs().max() <= 2**-8
    half = load_reference(loaded, 16, 16)
    assert half.shape == (3, 16, 16)
    assert half.mean().item() == pytest.approx(loaded.mean().item(), abs=0.01)


@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 1), (40, 50, 3), (40, 50, 4)])
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_arrays_and_tensors_of_bytes_serve(shape: tuple[int, ...], kind: Callable) -> None:
    loaded = load_reference(kind(np.full(shape, 255, np.uint8)), 40, 40)
    assert (loaded == 1).all()


def png_header(width: int, height: int) -> bytes:
    """The first bytes of a PNG of any size, with no pixels."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return start + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


def encoded(suffix: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(buffer, suffix)
    return buffer.getvalue()


# Pillow warns of files from 2^26 to its own limit, which are refused all the same.
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not an image of a known kind; give one of PNG"),
        (b"hello", "not an image of a known kind"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n", "not an image of a known kind"),
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
def test_a_file_that_will_not_do_says_why(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(ImageError, match=said):
        load_reference(str(tmp_path / "x.png"), 64, 64)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_flipped_bits_give_an_image_or_a_typed_error(tmp_path: Path) -> None:
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
        (one(1.5), r"values from 0 to 1.5; scale to \[-1, 1\]"),
        (torch.zeros(40, 40, 3), r"cannot be \[40, 40, 3\] float32"),
        (torch.zeros(1, 3, 40, 40), r"cannot be \[1, 3, 40, 40\]"),
        (np.zeros((40, 40, 2), np.uint8), r"cannot be \[40, 40, 2\] uint8"),
        (np.zeros((40, 40, 3), np.int64), "int64"),
        (np.zeros((1, 1, 3), np.uint8), "1 x 1 pixels"),
        (torch.zeros(3, 1, 1), "1 x 1 pixels"),
        (torch.zeros(3, 0, 40), "40 x 0 pixels"),
        (Image.new("RGB", (1, 1)), "1 x 1 pixels"),
        (Image.new("I", (40, 40)), "mode I; convert it to 8 or 16 bits"),
        (3, "cannot be made of int; give a path"),
        (None, "cannot be made of NoneType"),
        (b"\x89PNG", "cannot be made of bytes"),
        ("/no/such/image.png", "No such file"),
        ("/", "Is a directory"),
        ("nul\0byte.png", "cannot be read"),
    ],
)
def test_what_cannot_be_a_reference_is_refused_with_a_remedy(source: object, said: str) -> None:
    with pytest.raises(ImageError, match=said):
        load_reference(source, 64, 64)
