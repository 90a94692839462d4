"""MP4 files play even if writing was cut short, and audio and video are in step to the sample."""

import re
import resource
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from streamchar.config import CLOCK
from streamchar.kernels import pack_frames
from streamchar.media.mp4 import MediaError, Mp4Writer, _FragmentedFile
from tests.media.mp4_reader import read_back

FPS, RATE, STEP = CLOCK.frame_rate, CLOCK.sample_rate, CLOCK.samples_per_frame
SIZE = 64


def pictures(count: int, start: int = 0) -> torch.Tensor:
    """Return dark pictures with a white one each second."""
    frames = torch.full((count, SIZE * 3 // 2, SIZE), 128, dtype=torch.uint8)
    frames[:, :SIZE] = 30
    frames[-start % FPS :: FPS, :SIZE] = 220
    return frames


def noise(count: int, rng: torch.Generator) -> torch.Tensor:
    return torch.randint(16, 235, (count, SIZE * 3 // 2, SIZE), dtype=torch.uint8, generator=rng)


def clicks(count: int, start: int = 0) -> torch.Tensor:
    """Return a short burst of sound each second, in step with the white pictures."""
    time = torch.arange(start * STEP, (start + count) * STEP)
    return torch.where(time % RATE < 200, 0.8 * torch.sin(0.3 * time), 0.0).float()


def onsets(samples: np.ndarray) -> np.ndarray:
    loud = np.flatnonzero(np.abs(samples) > 0.1)
    return loud[np.diff(loud, prepend=-RATE) > RATE // 2]


@pytest.fixture
def small_files() -> Iterator[None]:
    """Limit files to 256 KiB, to act like a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_every_frame_and_sample_is_decoded_at_its_time(tmp_path: Path) -> None:
    pytest.importorskip("av")
    path = tmp_path / "out.mp4"
    with Mp4Writer(path, SIZE, SIZE) as writer:
        # Chunks that are not multiples of the 1024 samples of an AAC packet or the 24 frames of a fragment.
        for start, count in ((0, 32), (32, 32), (64, 5), (69, 59)):
            writer.write(pictures(count, start), clicks(count, start))
        assert writer.seconds == 128 / FPS
    media = read_back(path)
    assert media.sample_rate == RATE
    assert media.frames.shape == (128, SIZE * 3 // 2, SIZE)
    assert media.frame_starts.tolist() == [STEP * i for i in range(128)]
    assert len(media.samples) == 128 * STEP
    white = media.frame_starts[media.frames[:, 0, 0] > 120]
    # The bursts start at 0, so each is audible from its second sample.
    assert white.tolist() == [RATE * i for i in range(6)]
    assert np.abs(onsets(media.samples) - white).max() <= 1


def test_priming_samples_are_not_heard_and_do_not_shift_sound(tmp_path: Path) -> None:
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


def test_colours_are_preserved_and_tagged_bt709(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "out.mp4"
    colour = torch.tensor([0.6, -0.2, -0.7]).view(1, 3, 1, 1).expand(FPS, 3, SIZE, SIZE).contiguous()
    _, yuv = pack_frames(colour, rgb=False, yuv=True, backend="torch")
    with Mp4Writer(path, SIZE, SIZE) as writer:
        writer.write(yuv, torch.zeros(RATE))
    media = read_back(path)
    assert np.abs(media.frames.astype(int) - yuv.numpy().astype(int)).max() <= 2
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_range) == (1, 1)
        assert (context.color_primaries, context.color_trc) == (1, 1)
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert container.streams.video[0].average_rate == FPS


def test_a_file_plays_after_its_writer_crashes(tmp_path: Path, rng: torch.Generator) -> None:
    pytest.importorskip("av")
    with Mp4Writer(tmp_path / "out.mp4", SIZE, SIZE) as writer:
        for start in range(0, 160, 32):
            writer.write(noise(32, rng), clicks(32, start))
        # Only the unfinished fragment is in memory, so a copy of the file is what a crash leaves.
        shutil.copy(tmp_path / "out.mp4", tmp_path / "crashed.mp4")
    media = read_back(tmp_path / "crashed.mp4")
    assert len(media.frames) == 144
    assert media.frame_starts.tolist() == [STEP * i for i in range(144)]
    assert abs(len(media.samples) - 144 * STEP) <= 2 * 1024
    assert np.abs(onsets(media.samples[: 144 * STEP]) - RATE * np.arange(6)).max() <= 1


@pytest.mark.parametrize("piece", [7, 64, 1000])
def test_truncation_keeps_up_to_the_last_complete_fragment(tmp_path: Path, piece: int) -> None:
    boxes = [(28, b"ftyp"), (300, b"moov"), (90, b"moof"), (200, b"mdat"), (80, b"moof"), (200, b"mdat")]
    data = b"".join(struct.pack(">I4s", size, kind) + bytes(size - 8) for size, kind in boxes)[:-1]
    output = _FragmentedFile(tmp_path / "out.mp4")
    for start in range(0, len(data), piece):
        assert output.write(data[start : start + piece]) == len(data[start : start + piece])
    output.error = OSError()
    output.close()
    assert (tmp_path / "out.mp4").read_bytes() == data[: 28 + 300 + 90 + 200]


def test_a_full_disk_is_reported_and_the_written_part_plays(
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
    assert re.search(
        r"cannot be written after .* s: File too large; the part written so far plays", str(error)
    )
    with pytest.raises(MediaError, match="cannot be written"):
        writer.write(noise(32, rng), clicks(32))
    writer.close()
    media = read_back(path)
    # Without the fragment that did not fit, and without those after it.
    assert len(media.frames) % FPS == 0
    assert written - FPS - 32 <= len(media.frames) < written
    assert abs(len(media.samples) - STEP * len(media.frames)) <= 2 * 1024


@pytest.mark.usefixtures("small_files")
def test_a_disk_that_fills_up_on_close_is_reported(tmp_path: Path, rng: torch.Generator) -> None:
    pytest.importorskip("av")
    # Less than one second: nothing is written before the end.
    writer = Mp4Writer(tmp_path / "out.mp4", 256, 256)
    frames = torch.randint(16, 235, (20, 384, 256), dtype=torch.uint8, generator=rng)
    writer.write(frames, clicks(20))
    with pytest.raises(MediaError, match="File too large"):
        writer.close()
    writer.close()


def test_a_full_device_is_reported() -> None:
    pytest.importorskip("av")
    writer = Mp4Writer("/dev/full", SIZE, SIZE)
    writer.write(pictures(20), clicks(20))
    with pytest.raises(MediaError, match="No space left on device"):
        writer.close()


def test_after_ctrl_c_the_file_plays(tmp_path: Path) -> None:
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


def test_ctrl_c_during_a_write_leaves_complete_fragments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("av")
    path = tmp_path / "out.mp4"

    def speak() -> None:
        with Mp4Writer(path, SIZE, SIZE) as writer:
            find, fragments = writer._output._find_fragments, iter(range(4))

            def interrupted() -> None:
                if next(fragments) == 3:
                    raise KeyboardInterrupt
                find()

            monkeypatch.setattr(writer._output, "_find_fragments", interrupted)
            for start in range(0, 320, 32):
                writer.write(pictures(32, start), clicks(32, start))

    with pytest.raises(KeyboardInterrupt):
        speak()
    media = read_back(path)
    assert len(media.frames) >= FPS
    assert len(media.frames) % FPS == 0


def test_a_full_disk_does_not_hide_an_error_in_the_block() -> None:
    pytest.importorskip("av")

    def speak() -> None:
        with Mp4Writer("/dev/full", SIZE, SIZE) as writer:
            writer.write(pictures(20), clicks(20))
            raise KeyError

    with pytest.raises(KeyError):
        speak()


def test_loud_samples_are_clipped_and_nan_is_silence(tmp_path: Path) -> None:
    pytest.importorskip("av")
    samples = torch.full((RATE,), float("nan"))
    samples[12 * STEP :] = 50.0
    with Mp4Writer(tmp_path / "out.mp4", SIZE, SIZE) as writer:
        writer.write(pictures(FPS), samples)
    heard = read_back(tmp_path / "out.mp4").samples
    assert np.abs(heard[: 11 * STEP]).max() < 0.01
    assert heard[14 * STEP : 22 * STEP].mean() == pytest.approx(1.0, abs=0.2)


def test_a_file_without_frames_does_not_play(tmp_path: Path) -> None:
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
        (lambda w: (w.close(), w.write(pictures(2), clicks(2))), "the writer is closed"),
        (lambda w: Mp4Writer(w.path, 63, 64), "height must be even"),
        (lambda w: Mp4Writer(w.path, 64, 0), "width must be even"),
        (lambda w: Mp4Writer(w.path, 64, 64, sample_rate=22050), "sample_rate must be a multiple of 24"),
        (lambda w: Mp4Writer(w.path.parent / "no" / "x.mp4", 64, 64), "cannot be created: No such file"),
        (lambda w: Mp4Writer(w.path, 64, 64, 1, 12345).write(pictures(1), torch.zeros(12345)), "encoded"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path: Path, call: Callable[[Mp4Writer], object], said: str) -> None:
    pytest.importorskip("av")
    with Mp4Writer(tmp_path / "out.mp4", SIZE, SIZE) as writer, pytest.raises(MediaError, match=said):
        call(writer)


def test_importing_media_needs_neither_pyav_nor_pillow() -> None:
    code = (
        "import sys; sys.modules['av'] = sys.modules['PIL'] = None\n"
        "from streamchar.media.mp4 import MediaError, Mp4Writer\n"
        "try: Mp4Writer('x.mp4', 64, 64)\n"
        "except MediaError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "x.mp4: needs PyAV, which is not installed; pip install av", done.stderr
