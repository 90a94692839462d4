"""Watch a session as a viewer would, and note everything the gate judges.

Chunks are generated as fast as they come, but the viewer's clock counts the waits of a pacer that keeps
generation one chunk ahead of playback: work is real, waiting is simulated, and a session of 80 seconds is
watched in the time that its generation takes. A lead never grows beyond two chunks, so a slow chunk late in
the session is as much of a stall as one at its start.
"""

import itertools
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from bench.gate import Measurements, skew_samples
from streamchar.engine import StreamCharEngine
from streamchar.pacing import Pacer, watch

#: Of the session that is judged, and of the one before it that warms up.
CHUNKS, WARM_UP_CHUNKS = 60, 2
_SENTENCE = "The river keeps moving under the old bridge while the town wakes up and the lamps go out. "
_STATM = Path("/proc/self/statm")


class ViewerClock:
    """Real time plus all the waits that were only simulated."""

    def __init__(self) -> None:
        self._start, self._skipped = time.perf_counter(), 0.0

    def __call__(self) -> float:
        """Return seconds since the clock was made."""
        return time.perf_counter() - self._start + self._skipped

    def sleep(self, seconds: float) -> None:
        """Let the time pass without waiting for it."""
        self._skipped += seconds


def endless_text() -> Iterator[str]:
    """Yield enough text to fill the transcript window, then a sentence for every chunk."""
    yield _SENTENCE * 8
    yield from itertools.repeat(_SENTENCE)


def watch_session(engine: StreamCharEngine, chunks: int, seed: int = 0) -> Measurements:
    """Open a session, watch that many chunks of it, close it, and return what was measured.

    Args:
        engine: warmed up, with a row free.
        chunks: at least 1.
        seed: of the reference picture and of the session.
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
            # A viewer has what lies on the host, for as long as that itself lasts.
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
        # Picture and sound of a chunk are handed over together.
        first_frame_seconds=arrivals[0],
        first_audio_seconds=arrivals[0],
        deadlines_met=viewing.deadlines_met,
        underruns=viewing.underruns,
        worst_stall_seconds=viewing.worst_stall_seconds,
        skew_samples=skew_samples(stamps),
        # History fills up last; sink and motion are there from the second chunk on.
        window_chunks=max(1, math.ceil(preset.history_tokens / preset.audio_tokens)),
        captures=(warm.captures, engine.stats().captures),
        compilations=(warm.compilations, engine.stats().compilations),
        replays=replays,
        resident_bytes=resident,
        device_bytes=allocated,
        device_segments=segments,
    )


def resident_bytes() -> int | None:
    """Return the memory of this process that is in RAM, or None where the system has no /proc."""
    try:
        pages = int(_STATM.read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
