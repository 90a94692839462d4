"""Decode an MP4 file as a player does, so that tests can check written files."""

import os
from dataclasses import dataclass

import av
import numpy as np
import numpy.typing as npt

from streamchar.media import MediaError


@dataclass(frozen=True)
class DecodedFile:
    """The decoded frames and samples of a file.

    Attributes:
        frames: [frames, height * 3 / 2, width] uint8, I420 planes.
        frame_starts: [frames] int64, sample number at which each frame is shown.
        samples: [samples] float32, without priming samples.
        sample_rate: samples per second.
    """

    frames: npt.NDArray[np.uint8]
    frame_starts: npt.NDArray[np.int64]
    samples: npt.NDArray[np.float32]
    sample_rate: int


def read_back(path: str | os.PathLike[str]) -> DecodedFile:
    """Decode a whole file and place each frame and sample at its time stamp.

    Raises:
        MediaError: the file does not play.
    """
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
    return DecodedFile(np.stack(pictures), np.array(starts, np.int64), samples, rate)
