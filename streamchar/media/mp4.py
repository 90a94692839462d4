"""Write MP4 files that remain playable even if writing is cut short.

The file contains H.264 and AAC in fragments of one second. No fragment refers to a later one, so after a
crash, a full disk or Ctrl-C the file plays up to its last complete fragment. Both streams use one clock that
counts audio samples: frame i is stamped ``i * sample_rate / frame_rate``, sample n is stamped n. The AAC
encoder inserts 1024 priming samples before sample 0. An edit list tells players to skip them, so sample 0 is
heard with frame 0. The padding of the last AAC packet lies outside the duration of the file.

PyAV is imported on first use; an engine that writes no file does not need it.
"""

import contextlib
import errno
import os
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..config import CLOCK
from ..errors import StreamCharError
from .arrays import as_array


class MediaError(StreamCharError, RuntimeError):
    """A media file cannot be written or read.

    Attributes:
        path: path of the file.
    """

    def __init__(self, path: str | os.PathLike[str], problem: str, remedy: str = "") -> None:
        self.path = str(path)
        super().__init__(f"{path}: {problem}" + (f"; {remedy}" if remedy else ""))


class _FragmentedFile:
    """A file that discards writes after an error and is then truncated to its last complete fragment."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b", buffering=0)
        self._box_start = 0
        self._playable_bytes = 0
        self.error: BaseException | None = None

    def write(self, data: bytes) -> int:
        # An exception raised here would pass through the muxer, which could then not finish the file.
        if self.error is None:
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[self._file.write(rest) :]
                self._find_fragments()
            except BaseException as error:
                self.error = error
        return len(data)

    def _find_fragments(self) -> None:
        """Follow the chain of MP4 boxes as far as it is written; a fragment ends with its ``mdat`` box."""
        handle, size = self._file.fileno(), self._file.tell()
        while len(head := os.pread(handle, 8, self._box_start)) == 8:
            end = self._box_start + max(int.from_bytes(head[:4], "big"), 8)
            if end > size:
                return
            self._box_start = end
            if head[4:] == b"mdat":
                self._playable_bytes = end

    @property
    def plays(self) -> bool:
        """Whether a complete fragment has been written."""
        return self._playable_bytes > 0

    def close(self) -> None:
        if self.error is not None:
            # A device cannot be truncated.
            with contextlib.suppress(OSError):
                self._file.truncate(self._playable_bytes)
        self._file.close()


def require_writable(path: str | os.PathLike[str]) -> None:
    """Check that :class:`Mp4Writer` can create a file at ``path``, without touching an existing one.

    Raises:
        MediaError: the path is a directory, its parent directory is missing or not writable, or PyAV is not
            installed.
    """
    target = Path(path)
    _pyav(path)
    if target.is_dir():
        raise MediaError(path, "is a directory", "name a file")
    if not target.parent.is_dir():
        raise MediaError(path, f"cannot be created: {target.parent} is not a directory", "create it first")
    if not os.access(target if target.exists() else target.parent, os.W_OK):
        raise MediaError(path, "cannot be created: Permission denied", "choose another place")


class Mp4Writer:
    """Write video and audio to an MP4 file as they arrive. Use it in a ``with`` statement.

    Args:
        path: path of the file; an existing file is replaced.
        height: height in pixels, even.
        width: width in pixels, even.
        frame_rate: frames per second, a divisor of ``sample_rate``.
        sample_rate: mono samples per second, a rate that AAC supports.

    Attributes:
        samples: number of audio samples written, which is also the stamp of the next frame.

    Raises:
        MediaError: PyAV is not installed, an argument is outside its limit, or the file cannot be created.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        height: int,
        width: int,
        frame_rate: int = CLOCK.frame_rate,
        sample_rate: int = CLOCK.sample_rate,
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
            self._output = _FragmentedFile(self.path)
        except OSError as error:
            raise MediaError(path, f"cannot be created: {error.strerror}", _remedy(error)) from error
        self._closed = False
        self._clock = Fraction(1, sample_rate)
        # delay_moov: the header is written with the first fragment and so can declare the priming samples.
        flags = {"movflags": "frag_keyframe+delay_moov+default_base_moof"}
        self._container = self._av.open(self._output, "w", format="mp4", options=flags)
        # zerolatency: the encoder holds no frame back. sc_threshold 0: no key frames at scene changes, which
        # would start new fragments.
        tuning = {"preset": "veryfast", "tune": "zerolatency", "crf": "18", "sc_threshold": "0"}
        self._video = self._container.add_stream("libx264", rate=frame_rate, options=tuning)
        self._video.width, self._video.height, self._video.pix_fmt = width, height, "yuv420p"
        context = self._video.codec_context
        context.time_base = self._video.time_base = self._clock
        context.gop_size = frame_rate
        # 1 means BT.709 for the first three and limited range for color_range.
        context.color_primaries = context.color_trc = context.colorspace = context.color_range = 1
        self._audio = self._container.add_stream("aac", rate=sample_rate, layout="mono")
        self._audio.bit_rate = 96000

    @property
    def seconds(self) -> float:
        """Duration of the media written so far, in seconds."""
        return self.samples / self.sample_rate

    def write(
        self,
        frames: torch.Tensor | npt.NDArray[np.uint8],
        samples: torch.Tensor | npt.NDArray[np.float32],
    ) -> None:
        """Append frames and the audio samples that sound during them.

        Args:
            frames: [frames, height * 3 / 2, width] uint8, I420 planes in BT.709 limited range, as returned by
                :func:`streamchar.kernels.pack_frames`.
            samples: [frames * sample_rate / frame_rate] floating point, clipped to [-1, 1]; NaN becomes
                silence.

        Raises:
            MediaError: a shape or dtype is wrong, the writer is closed, or the disk is full. In the last case
                the file plays up to its last complete second.
        """
        if self._closed:
            raise MediaError(self.path, "the writer is closed", "open a new one")
        self._check_output()
        pictures, sound = as_array(frames), as_array(samples)
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
        """Finish the file. A second call does nothing.

        Raises:
            MediaError: the disk is full. The file plays up to its last complete second.
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
            left = "the part written so far plays" if self._output.plays else "nothing playable was written"
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
            # The error that ended the block says more than a full disk.
            if error is None:
                raise


def _remedy(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free space on its disk, or write to another disk"
    return "write to another path"


def _pyav(path: str | os.PathLike[str]) -> Any:
    try:
        import av
    except ImportError as error:
        raise MediaError(path, "needs PyAV, which is not installed", "pip install av") from error
    return av
