"""Media in and out of files: an MP4 that plays however its writing ends, and reference images.

MP4: H.264 and AAC in fragments of one second. Nothing in the file refers to what comes later, so after a
crash, a full disk or Ctrl-C it plays up to the last fragment that was written whole. Both streams are stamped
by one count of audio samples: frame i at ``i * sample_rate / frame_rate``, sample n at n. The AAC encoder
puts 1024 samples of priming before sample 0, at -1024; an edit list says so and players do not sound them, so
that sample 0 is heard with frame 0. What pads its last packet is outside the duration that the file states.

PyAV and Pillow are imported when they are first needed: an engine that writes no file needs neither.
"""

import contextlib
import errno
import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

#: Kinds of image file that are read; others, such as PostScript, would start programs.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
#: Most pixels of an image file, checked before any is decoded: 200 MB of RGB.
MAX_PIXELS = 2**26
#: Least height and width of a reference image; a face in fewer pixels is no reference.
MIN_SIDE = 32
#: What shows through a transparent image: white, as on a page.
BACKGROUND = (255, 255, 255)


class MediaError(RuntimeError):
    """Media that cannot be written or read.

    Attributes:
        path: the file.
    """

    def __init__(self, path: str | os.PathLike[str], problem: str, remedy: str = "") -> None:
        self.path = str(path)
        super().__init__(f"{path}: {problem}" + (f"; {remedy}" if remedy else ""))


class ImageError(ValueError):
    """An image that cannot serve as a reference; the message says what would."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}; {remedy}")


class _Output:
    """A file that swallows what follows an error and is then cut back to its last whole fragment."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b", buffering=0)
        self._box = 0
        self._playable = 0
        self.error: BaseException | None = None

    def write(self, data: bytes) -> int:
        # An exception that went through the muxer would stop it for good, and with it the end of the file.
        if self.error is None:
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[self._file.write(rest) :]
                self._walk()
            except BaseException as error:
                self.error = error
        return len(data)

    def _walk(self) -> None:
        """Follow the chain of boxes as far as it is written; a fragment ends with its media data."""
        handle, size = self._file.fileno(), self._file.tell()
        while len(head := os.pread(handle, 8, self._box)) == 8:
            end = self._box + max(int.from_bytes(head[:4], "big"), 8)
            if end > size:
                return
            self._box = end
            if head[4:] == b"mdat":
                self._playable = end

    @property
    def plays(self) -> bool:
        """Whether a whole fragment has been written."""
        return self._playable > 0

    def close(self) -> None:
        if self.error is not None:
            # A device, unlike a file, cannot be cut.
            with contextlib.suppress(OSError):
                self._file.truncate(self._playable)
        self._file.close()


def require_writable(path: str | os.PathLike[str]) -> None:
    """Refuse a file that :class:`Mp4Writer` could not create; one that is there already is not touched.

    Raises:
        MediaError: it is a directory, or its directory is missing or may not be written, or PyAV is missing.
    """
    target = Path(path)
    _pyav(path)
    if target.is_dir():
        raise MediaError(path, "is a directory", "name a file")
    if not target.parent.is_dir():
        raise MediaError(path, f"cannot be created: {target.parent} is no directory", "make it first")
    if not os.access(target if target.exists() else target.parent, os.W_OK):
        raise MediaError(path, "cannot be created: Permission denied", "choose another place")


class Mp4Writer:
    """Write pictures and sound to an MP4 file as they come; use it in a ``with`` statement.

    Args:
        path: the file, replaced if it is there.
        height: pixels, even.
        width: pixels, even.
        frame_rate: frames a second, a divisor of ``sample_rate``.
        sample_rate: mono samples a second, one that AAC has.

    Raises:
        MediaError: PyAV is missing, a size does not fit, or the file cannot be created.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        height: int,
        width: int,
        frame_rate: int = 24,
        sample_rate: int = 24000,
    ) -> None:
        self.path, self.height, self.width, self.sample_rate = Path(path), height, width, sample_rate
        for name, size in (("height", height), ("width", width)):
            if size <= 0 or size % 2:
                raise MediaError(path, f"{name} must be even and above 0 for 4:2:0 chroma, got {size}")
        if sample_rate % frame_rate:
            raise MediaError(path, f"sample_rate must be a multiple of {frame_rate}, got {sample_rate}")
        self.samples_per_frame = sample_rate // frame_rate
        self.samples = 0
        self._av = _pyav(path)
        try:
            self._output = _Output(self.path)
        except OSError as error:
            raise MediaError(path, f"cannot be created: {error.strerror}", _remedy(error)) from error
        self._closed = False
        self._clock = Fraction(1, sample_rate)
        # delay_moov: only then does the header, written with the first fragment, tell of the priming samples.
        flags = {"movflags": "frag_keyframe+delay_moov+default_base_moof"}
        self._container = self._av.open(self._output, "w", format="mp4", options=flags)
        # zerolatency: no frame is held back, so that what is written reaches the file. No key frames at cuts
        # of the scene either, which would start fragments of their own.
        tuning = {"preset": "veryfast", "tune": "zerolatency", "crf": "18", "sc_threshold": "0"}
        self._video = self._container.add_stream("libx264", rate=frame_rate, options=tuning)
        self._video.width, self._video.height, self._video.pix_fmt = width, height, "yuv420p"
        context = self._video.codec_context
        context.time_base = self._video.time_base = self._clock
        context.gop_size = frame_rate
        # 1 is BT.709 for the three, and limited range for the last.
        context.color_primaries = context.color_trc = context.colorspace = context.color_range = 1
        self._audio = self._container.add_stream("aac", rate=sample_rate, layout="mono")
        self._audio.bit_rate = 96000

    @property
    def seconds(self) -> float:
        """Seconds of media handed to the writer."""
        return self.samples / self.sample_rate

    def write(
        self,
        frames: torch.Tensor | npt.NDArray[np.uint8],
        samples: torch.Tensor | npt.NDArray[np.float32],
    ) -> None:
        """Append frames and the samples that sound during them.

        Args:
            frames: [frames, height * 3 / 2, width] uint8, I420 planes in BT.709 limited range, such as
                :func:`streamchar.kernels.egress` gives.
            samples: [frames * sample_rate / frame_rate] floats, clipped to [-1, 1]; NaN is silence.

        Raises:
            MediaError: a shape or dtype does not fit, the writer is closed, or the disk is full; the file
                then plays up to its last whole second.
        """
        if self._closed:
            raise MediaError(self.path, "is closed", "open a new writer")
        self._check_output()
        pictures, sound = _array(frames), _array(samples)
        size = (self.height * 3 // 2, self.width)
        if pictures.dtype != np.uint8 or pictures.ndim != 3 or pictures.shape[1:] != size:
            wanted = f"frames must be [frames, {size[0]}, {size[1]}] uint8"
            raise MediaError(self.path, f"{wanted}, got {list(pictures.shape)} {pictures.dtype}")
        length = len(pictures) * self.samples_per_frame
        if sound.shape != (length,) or sound.dtype.kind != "f":
            wanted = f"samples must be [{length}] floats for {len(pictures)} frames"
            raise MediaError(self.path, f"{wanted}, got {list(sound.shape)} {sound.dtype}")
        for index, picture in enumerate(pictures):
            image = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="yuv420p")
            self._encode(self._video, image, self.samples + index * self.samples_per_frame)
        if length:
            sound = np.nan_to_num(sound.astype(np.float32), nan=0.0).clip(-1, 1)
            piece = self._av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
            piece.sample_rate = self.sample_rate
            self._encode(self._audio, piece, self.samples)
        self.samples += length
        self._check_output()

    def close(self) -> None:
        """Finish the file; a second call does nothing.

        Raises:
            MediaError: the disk is full; the file plays up to its last whole second.
        """
        if self._closed:
            return
        self._closed = True
        failed = self._output.error is not None
        try:
            if self.samples:
                for stream in (self._video, self._audio):
                    self._container.mux(stream.encode(None))
            self._container.close()
        finally:
            self._output.close()
        if not failed:
            self._check_output()

    def _encode(self, stream: Any, frame: Any, start: int) -> None:
        frame.pts, frame.time_base = start, self._clock
        try:
            self._container.mux(stream.encode(frame))
        except self._av.error.FFmpegError as error:
            raise MediaError(self.path, f"cannot be encoded: {error}") from error

    def _check_output(self) -> None:
        error = self._output.error
        if isinstance(error, OSError):
            problem = f"cannot be written after {self.seconds:.2f} s: {error.strerror}"
            left = "the file so far plays" if self._output.plays else "nothing that plays was written"
            raise MediaError(self.path, problem, f"{left}; {_remedy(error)}") from error
        if error is not None:
            raise error

    def __enter__(self) -> "Mp4Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except MediaError:
            # What ended the block says more than that the disk is full as well.
            if error is None:
                raise


@dataclass(frozen=True)
class Media:
    """What a file plays.

    Attributes:
        frames: [frames, height * 3 / 2, width] uint8, I420 planes.
        frame_starts: [frames] int64, the sample at which each frame is shown.
        samples: [samples] float32; entry n is heard at sample n, priming left out.
        sample_rate: samples a second.
    """

    frames: npt.NDArray[np.uint8]
    frame_starts: npt.NDArray[np.int64]
    samples: npt.NDArray[np.float32]
    sample_rate: int


def read_back(path: str | os.PathLike[str]) -> Media:
    """Decode a whole file as a player would, each frame and sample at the time its stamp says.

    Raises:
        MediaError: PyAV is missing, or there is nothing that plays.
    """
    av = _pyav(path)
    pictures, starts, pieces = [], [], []
    try:
        with av.open(str(path)) as container:
            rate = int(container.streams.audio[0].rate)
            for frame in container.decode():
                start = round(frame.pts * frame.time_base * rate)
                if isinstance(frame, av.VideoFrame):
                    pictures.append(frame.to_ndarray(format="yuv420p"))
                    starts.append(start)
                else:
                    duration = round(frame.duration * frame.time_base * rate)
                    pieces.append((start, frame.to_ndarray()[0, :duration]))
    except (OSError, IndexError, av.error.FFmpegError) as error:
        raise MediaError(path, f"does not play: {error}") from error
    length = max((start + len(piece) for start, piece in pieces), default=0)
    samples = np.zeros(length, np.float32)
    for start, piece in pieces:
        samples[max(start, 0) : start + len(piece)] = piece[max(-start, 0) :]
    return Media(np.stack(pictures), np.array(starts, np.int64), samples, rate)


def _remedy(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free space on its disk, or write to another"
    return "write to another path"


def _pyav(path: str | os.PathLike[str]) -> Any:
    try:
        import av
    except ImportError as error:
        raise MediaError(path, "needs PyAV, which is not installed", "pip install av") from error
    return av


def _array(values: torch.Tensor | npt.NDArray[Any]) -> npt.NDArray[Any]:
    if not isinstance(values, torch.Tensor):
        return np.asarray(values)
    # NumPy knows neither bf16 nor 8-bit floats.
    kept = values.detach().cpu()
    return (kept.float() if kept.is_floating_point() else kept).numpy()


def load_reference(source: object, height: int, width: int) -> torch.Tensor:
    """Load a reference image: the largest centred part of the wanted proportions, resized with antialiasing.

    Args:
        source: path of a PNG, JPEG, WebP, BMP, GIF (its first picture) or TIFF file; a Pillow image; an array
            or tensor of uint8 [height, width] or [height, width, 1, 3 or 4] with grey, RGB or RGBA in 0 to
            255; or one of floats [3, height, width] in [-1, 1], as this function returns. Grey, palette, RGB,
            CMYK and the like of 8 or 16 bits will do; EXIF rotation is applied; transparency shows white.
        height: pixels of the result.
        width: pixels of the result.

    Returns:
        [3, height, width] fp32 in [-1, 1], on the CPU.

    Raises:
        ImageError: the file is missing, of another kind, corrupt, below 32 pixels a side or above 2^26 pixels
            (known before it is decoded), or the values are not finite or out of range.
    """
    from PIL import Image

    if isinstance(source, (str, os.PathLike)):
        channels = _open(Path(source)).split()
    elif isinstance(source, Image.Image):
        channels = _to_rgb(source, "the image").split()
    elif isinstance(source, (np.ndarray, torch.Tensor)):
        channels = _channels_of(_array(source))
    else:
        remedy = "give a path, a Pillow image, an array or a tensor"
        raise ImageError(f"a reference cannot be made of {type(source).__name__}", remedy)
    have_width, have_height = channels[0].size
    _check_size(have_height, have_width, "the image")
    # The largest centred box of the wanted proportions; its edges may fall between pixels.
    scale = min(have_height / height, have_width / width)
    top, left = (have_height - height * scale) / 2, (have_width - width * scale) / 2
    box = (left, top, left + width * scale, top + height * scale)
    planes = [
        np.asarray(channel.resize((width, height), Image.Resampling.LANCZOS, box), np.float32)
        for channel in channels
    ]
    result = torch.from_numpy(np.stack(planes))
    if channels[0].mode == "L":
        result = result / 127.5 - 1
    # Lanczos overshoots at edges.
    return result.clamp(-1, 1)


def _check_size(height: int, width: int, what: str) -> None:
    if height * width > MAX_PIXELS:
        raise ImageError(f"{what} has {width} x {height} pixels", f"scale it to at most {MAX_PIXELS} pixels")
    if min(height, width) < MIN_SIDE:
        remedy = f"give one of at least {MIN_SIDE} x {MIN_SIDE}"
        raise ImageError(f"{what} has {width} x {height} pixels", remedy)


def _open(path: Path) -> "PilImage":
    from PIL import Image, UnidentifiedImageError

    kinds = ", ".join(IMAGE_FORMATS)
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            _check_size(image.height, image.width, str(path))
            return _to_rgb(image, str(path))
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{path} is not an image of a known kind", f"give one of {kinds}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            f"{path} is too large: {error}", f"scale it to at most {MAX_PIXELS} pixels"
        ) from error
    except Exception as error:
        # An OSError, or whatever a decoder stumbles over in a broken header.
        raise ImageError(
            f"{path} cannot be read: {error}", f"give a readable image, one of {kinds}"
        ) from error


def _to_rgb(image: "PilImage", what: str) -> "PilImage":
    from PIL import Image, ImageOps

    _check_size(image.height, image.width, what)
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image, np.float32) / 257).round().astype(np.uint8))
        if image.mode in ("I", "F"):
            raise ImageError(f"{what} has mode {image.mode}", "convert it to 8 or 16 bits a channel")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            backdrop = Image.new("RGBA", image.size, (*BACKGROUND, 255))
            image = Image.alpha_composite(backdrop, image)
        return image.convert("RGB")
    except ImageError:
        raise
    except Exception as error:
        # Decoders of broken files raise whatever they stumble over, from struct.error to SyntaxError.
        raise ImageError(f"{what} is corrupt: {error}", "save it again as PNG") from error


def _channels_of(values: npt.NDArray[Any]) -> "tuple[PilImage, ...]":
    from PIL import Image

    if values.dtype == np.uint8 and (values.ndim == 2 or (values.ndim == 3 and values.shape[2] in (1, 3, 4))):
        flat = values[:, :, 0] if values.ndim == 3 and values.shape[2] == 1 else values
        _check_size(flat.shape[0], flat.shape[1], "the image")
        return _to_rgb(Image.fromarray(np.ascontiguousarray(flat)), "the image").split()
    if values.dtype.kind != "f" or values.ndim != 3 or values.shape[0] != 3:
        remedy = "give uint8 [height, width, 3] or floats [3, height, width]"
        raise ImageError(f"a reference cannot be {list(values.shape)} {values.dtype}", remedy)
    _check_size(values.shape[1], values.shape[2], "the image")
    if not np.isfinite(values).all():
        raise ImageError(
            f"the image has {(~np.isfinite(values)).sum()} values that are not finite", "mend them"
        )
    if np.abs(values).max() > 1:
        remedy = "scale to [-1, 1], or give uint8 of 0 to 255"
        raise ImageError(f"the image has values from {values.min():g} to {values.max():g}", remedy)
    return tuple(Image.fromarray(channel.astype(np.float32)) for channel in values)
