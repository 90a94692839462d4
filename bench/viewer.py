"""Run a session in front of a simulated viewer and measure everything that the gate judges.

A pacer keeps generation one chunk ahead of playback. The work is real and the pacer's waits are simulated, so
a session of 80 seconds takes only the time to generate it. The lead never exceeds two chunks, so a slow chunk
late in the session causes as much of a stall as one at the start.
"""

import itertools
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from bench.gate import Measurements, skew_samples
from bench.playback import watch
from streamchar.engine import StreamCharEngine
from streamchar.session import Pacer

#: Chunks of the session that is judged, and of the warm-up session before it.
CHUNKS, WARM_UP_CHUNKS = 60, 2
_SENTENCE = "The river keeps moving under the old bridge while the town wakes up and the lamps go out. "
_STATM = Path("/proc/self/statm")


class ViewerClock:
    """Real time plus all simulated waits."""

    def __init__(self) -> None:
        self._start, self._skipped = time.perf_counter(), 0.0

    def __call__(self) -> float:
        """Return seconds since the clock was created."""
        return time.perf_counter() - self._start + self._skipped

    def sleep(self, seconds: float) -> None:
        """Advance the clock without waiting."""
        self._skipped += seconds


def endless_text() -> Iterator[str]:
    """Yield enough text to fill the transcript window, then one sentence per chunk, without end."""
    yield _SENTENCE * 8
    yield from itertools.repeat(_SENTENCE)


def watch_session(engine: StreamCharEngine, chunks: int, seed: int = 0) -> Measurements:
    """Open a session, generate chunks, close it and return the measurements.

    Args:
        engine: a warmed-up engine with a free row.
        chunks: number of chunks, at least 1.
        seed: seed of the reference picture and of the session.
    """
    preset, device = engine.preset, engine.device
    on_gpu = device.type == "cuda"
    picture = preset.picture
    generator = torch.Generator().manual_seed(seed)
    reference = torch.rand((3, picture.height, picture.width), generator=generator) * 2 - 1
    latencies, arrivals, stamps, replays = [], [], [], []
    resident, allocated, segments = [], [], []
    stages: dict[str, list[float]] = {}

    warm = engine.stats()
    clock = ViewerClock()
    pacer = Pacer(preset.seconds, clock, clock.sleep)
    with engine.open(reference, seed=seed) as session:
        speech = session.speak(endless_text(), max_seconds=2 * chunks * preset.seconds)
        for _ in range(chunks):
            pacer.wait()
            asked, before = clock(), engine.stats().replays
            chunk = next(speech)
            arrived = clock()
            pacer.delivered(preset.seconds)
            arrivals.append(arrived)
            latencies.append(arrived - asked)
            replays.append(engine.stats().replays - before)
            # Measured on the media that the viewer receives, which lie in host memory.
            media, frame = chunk.host, preset.clock.samples_per_frame
            pictures = len(media.video) * frame, len(media.video_yuv) * frame
            stamps.append((chunk.start_sample, *pictures, len(media.audio)))
            for stage, seconds in chunk.latency.items():
                stages.setdefault(stage, []).append(seconds)
            del chunk, media
            if (bytes_now := resident_bytes()) is not None:
                resident.append(bytes_now)
            if on_gpu:
                allocated.append(torch.cuda.memory_allocated(device))
                segments.append(torch.cuda.memory_stats(device)["segment.all.allocated"])
        session.interrupt()

    viewing = watch(arrivals, preset.seconds)
    return Measurements(
        budget_seconds=preset.seconds,
        latencies=latencies,
        stages=stages,
        # Picture and sound of a chunk arrive together.
        first_frame_seconds=arrivals[0],
        first_audio_seconds=arrivals[0],
        deadlines_met=viewing.deadlines_met,
        underruns=viewing.underruns,
        worst_stall_seconds=viewing.worst_stall_seconds,
        skew_samples=skew_samples(stamps),
        # The audio history fills last; sink and motion are present from the second chunk on.
        window_chunks=max(1, math.ceil(preset.history_tokens / preset.audio_tokens)),
        captures=(warm.captures, engine.stats().captures),
        compilations=(warm.compilations, engine.stats().compilations),
        replays=replays,
        resident_bytes=resident,
        device_bytes=allocated,
        device_segments=segments,
    )


def resident_bytes() -> int | None:
    """Return the resident memory of this process in bytes, or None if the system has no /proc."""
    try:
        pages = int(_STATM.read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
