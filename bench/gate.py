"""Judge measurements of the engine against its limits. This module measures nothing itself.

Each figure gets one verdict, which states the figure, its limit and the measured value. A figure that could
not be measured fails.

The speed-up over a baseline is compared with the record of the same machine
(:func:`bench.environment.record_name`), and fails if it is below the record by more than the record's noise.
A machine without a record, and a run that writes one (``--gate-record``), only has to reach
:data:`MIN_SPEED_UP`, as the table says.
"""

import itertools
import json
import math
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SCHEMA = 1
#: Allowed growth of resident memory per chunk, by :func:`slope`. In six sessions of 60 chunks on a busy CPU
#: it grew by 0 to 1.9 KiB per chunk: records of the measurement itself, and pages of the allocator. A leak of
#: one frame of the smallest preset per chunk is 27 KiB.
MEMORY_TOLERANCE_BYTES = 16 * 2**10
#: Fewer chunks with a full window than this cannot distinguish a slope from a single step.
MIN_STEADY_CHUNKS = 10
#: Seconds of work per second of media once the window is full; seconds from opening to the first media.
MAX_RTF, MAX_START_SECONDS = 0.8, 2.0
#: Limit without a record: a baseline does all of the engine's work and more, so it must not be faster.
MIN_SPEED_UP = 1.0
#: The noise of a recorded ratio: this many standard deviations of its repeats, at least this share of it.
NOISE_DEVIATIONS, MIN_NOISE = 3.0, 0.05
#: Largest relative error between the latents of two contenders, which differ by the rounding of four steps.
AGREEMENT = 2e-2
#: The measured value of a figure that was not measured.
NOT_MEASURED = "no value"
#: The figures of a session, in the order of :func:`judge_session`.
SESSION_FIGURES = (
    "chunk latency p99",
    "missed deadlines",
    "real-time factor",
    "first media",
    "audio-video skew",
    "memory growth",
    "graphs captured after warm-up",
    "programs compiled after warm-up",
    "steps run per chunk",
)
#: Targets by device type, which are reported but not judged. On a CPU both sides run the same operations, so
#: the speed-up is the work saved: for the tiny preset, 4 x (320 + 612) tokens against 4 x 320 + 288, weighted
#: by their attention, give 1.96 for the KV cache alone. Full recomputation also includes the prefix.
TARGETS = {
    "cpu": {"eager-prefix": ("at least", 2.0)},
    "cuda": {
        "four denoising steps, s": ("at most", 0.25),
        "chunk p99, s": ("at most", 0.6),
        "missed chunks": ("at most", 0.0),
        "compiled": ("at least", 2.0),
        "compiled-graphs": ("at least", 2.0),
    },
}


@dataclass(frozen=True)
class Measurements:
    """Measurements of one session.

    Attributes:
        budget_seconds: playback time of a chunk.
        latencies: for each chunk, seconds from its request to its arrival on the host.
        stages: seconds of each chunk, by stage of the engine.
        deadlines_met: share of chunks in time for a viewer who never waits.
        underruns: stalls of a viewer who waits for late chunks.
        worst_stall_seconds: the longest stall.
        first_frame_seconds: seconds from opening the session to the first picture on the host.
        first_audio_seconds: seconds from opening the session to the first sound on the host.
        replays: steps run for each chunk.
        skew_samples: largest distance between the picture, the sound and their time stamps.
        window_chunks: chunks until history and conditioning are full.
        captures: graphs captured by the end of the warm-up and by the end of the session.
        compilations: programs compiled by the end of the warm-up and by the end of the session.
        resident_bytes: resident memory of the process after each chunk; empty if unknown.
        device_bytes: GPU memory allocated after each chunk; empty without a GPU.
        device_segments: segments requested from the driver by the time of each chunk; empty without a GPU.
    """

    budget_seconds: float
    latencies: list[float]
    stages: dict[str, list[float]]
    deadlines_met: float
    underruns: int
    worst_stall_seconds: float
    first_frame_seconds: float
    first_audio_seconds: float
    replays: list[int]
    skew_samples: int
    window_chunks: int
    captures: tuple[int, int]
    compilations: tuple[int, int]
    resident_bytes: list[int] = field(default_factory=list)
    device_bytes: list[int] = field(default_factory=list)
    device_segments: list[int] = field(default_factory=list)

    @property
    def missed(self) -> int:
        """Number of chunks that were late for a viewer who never waits."""
        return round((1 - self.deadlines_met) * len(self.latencies))

    @property
    def rtf(self) -> float:
        """Seconds of work per second of media once the window is full; below 1 is faster than playback."""
        steady = self.latencies[self.window_chunks :] or self.latencies
        return statistics.fmean(steady) / self.budget_seconds if steady else math.nan

    def as_dict(self) -> dict[str, Any]:
        """Return all fields and the figures derived from them as plain JSON values."""
        figures = {f"p{share:g}_seconds": percentile(self.latencies, share) for share in (50, 99)}
        return asdict(self) | figures | {"max_seconds": max(self.latencies), "rtf": self.rtf}


@dataclass(frozen=True)
class Ratio:
    """Speed-up of the engine over a baseline.

    Attributes:
        ratio: seconds of the baseline per second of the engine.
        noise: how far a later measurement of the same code may fall below ``ratio``.
        repeats: the repeated measurements from which both are computed.
    """

    ratio: float
    noise: float
    repeats: list[float]

    @classmethod
    def of(cls, repeats: Sequence[float]) -> "Ratio":
        """Summarise the ratios of independent repeats."""
        middle = statistics.median(repeats)
        spread = statistics.stdev(repeats) if len(repeats) > 1 else 0.0
        return cls(middle, max(NOISE_DEVIATIONS * spread, MIN_NOISE * middle), list(repeats))


@dataclass(frozen=True)
class Verdict:
    """The judgement of one figure.

    Attributes:
        figure: what was measured.
        measured: the measured value with its unit.
        limit: the allowed values, in words.
        passed: whether the value is within the limit.
        remedy: what to do about a failure, or "".
    """

    figure: str
    measured: str
    limit: str
    passed: bool
    remedy: str = ""

    def __str__(self) -> str:
        remedy = f"; {self.remedy}" if self.remedy and not self.passed else ""
        return f"{self.figure} must be {self.limit}, measured {self.measured}{remedy}"


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least ``share`` per cent of the values do not exceed.

    The result is always one of the values: the 99th percentile of 60 values is the largest.
    """
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(share / 100 * len(values)) - 1)]


def skew_samples(chunks: Iterable[tuple[int, ...]]) -> int:
    """Return the largest distance between the streams of a session and their time stamps, in samples.

    Args:
        chunks: for each chunk, in order, its start_sample and the length of each stream in samples.
    """
    worst = 0
    ends: list[int] = []
    for start, *lengths in chunks:
        ends = ends or [0] * len(lengths)
        worst = max(worst, *(abs(start - end) for end in ends))
        ends = [end + length for end, length in zip(ends, lengths, strict=True)]
        worst = max(worst, max(ends) - min(ends))
    return worst


def growth(values: Sequence[float], settled: int) -> float:
    """Return the median of the last ten values minus the median of the first ten after ``settled``.

    Args:
        values: one value per chunk.
        settled: number of chunks to skip at the start.
    """
    steady = values[settled:]
    if not steady:
        return math.nan
    count = min(10, max(1, len(steady) // 2))
    return statistics.median(steady[-count:]) - statistics.median(steady[:count])


def slope(values: Sequence[float], settled: int) -> float:
    """Return the growth of a series per chunk after ``settled``, or NaN if the series is too short.

    This is the Theil-Sen estimate, the median of the slopes between all pairs of values. A single step or an
    alternating value gives no slope, and a leak that grows in steps does.

    Args:
        values: one value per chunk.
        settled: number of chunks to skip at the start.
    """
    steady = list(enumerate(values))[settled:]
    if len(steady) < MIN_STEADY_CHUNKS:
        return math.nan
    return statistics.median(
        (later - earlier) / (end - start)
        for (start, earlier), (end, later) in itertools.combinations(steady, 2)
    )


def judge_session(measured: Measurements, budget_factor: float = 1.0) -> Iterator[Verdict]:
    """Judge the measurements of a session.

    Args:
        measured: the measurements.
        budget_factor: factor on the budget, above 0; below 1 tightens the gate.

    Yields:
        One verdict for each of :data:`SESSION_FIGURES`, in order.
    """
    budget = measured.budget_seconds * budget_factor
    p99 = percentile(measured.latencies, 99)
    yield Verdict(
        "chunk latency p99",
        f"{p99:.3f} s (p50 {percentile(measured.latencies, 50):.3f} s)",
        f"at most {budget:.3f} s (budget {measured.budget_seconds:.3f} s x factor {budget_factor:g})",
        p99 <= budget,
    )
    yield Verdict(
        "missed deadlines",
        f"{measured.missed} of {len(measured.latencies)}; {measured.underruns} underruns, "
        f"worst stall {measured.worst_stall_seconds:.3f} s",
        "0",
        measured.deadlines_met >= 1.0 and measured.underruns == 0,
    )
    rtf = measured.rtf
    yield Verdict("real-time factor", f"{rtf:.3f}", f"below {MAX_RTF:g}", rtf < MAX_RTF)
    seen, heard = measured.first_frame_seconds, measured.first_audio_seconds
    yield Verdict(
        "first media",
        f"picture {seen:.3f} s, sound {heard:.3f} s",
        f"below {MAX_START_SECONDS:g} s",
        seen < MAX_START_SECONDS and heard < MAX_START_SECONDS,
    )
    skew = measured.skew_samples
    yield Verdict("audio-video skew", f"{skew} samples", "0 samples", skew == 0)
    yield _memory(measured)
    for what, (before, after) in (
        ("graphs captured", measured.captures),
        ("programs compiled", measured.compilations),
    ):
        yield Verdict(f"{what} after warm-up", f"{after - before}", "0", after == before)
    # The first chunk commits nothing before it, and the second also commits the sink.
    steady = measured.replays[2:] or measured.replays
    least, most = (min(steady), max(steady)) if steady else (0, -1)
    yield Verdict("steps run per chunk", f"{least} to {most}", "equal for all chunks", least == most)


def judge_ratio(name: str, measured: Ratio | None, recorded: Ratio | None, remedy: str) -> Verdict:
    """Judge the speed-up over a baseline against the recorded speed-up of this machine.

    Args:
        name: name of the baseline.
        measured: speed-up in this run; None if it was not measured.
        recorded: recorded speed-up; None if there is no record.
        remedy: how to write a record.
    """
    figure = f"speed-up over {name}"
    if measured is None:
        return Verdict(figure, NOT_MEASURED, "measured in this run", False)
    if recorded is None:
        least, why = MIN_SPEED_UP, "no record of this machine; the baseline does more work"
    else:
        least = recorded.ratio - recorded.noise
        why = f"recorded {recorded.ratio:.2f}, noise {recorded.noise:.2f}"
    return Verdict(
        figure,
        f"{measured.ratio:.2f}",
        f"at least {least:.2f} ({why})",
        # NaN compares false, so it fails.
        bool(measured.ratio >= least),
        "" if recorded is None else "if the slow-down is intended, " + remedy,
    )


def judge_agreement(name: str, error: float) -> Verdict:
    """Judge whether a baseline computed the same chunk; without that its speed-up means nothing."""
    limit = f"at most {AGREEMENT:g} (relative)"
    return Verdict(f"error of {name} against the engine", f"{error:.1e}", limit, bool(error <= AGREEMENT))


def targets(kind: str, figures: Mapping[str, float]) -> Iterator[Verdict]:
    """Compare figures with the targets of a device type. The report shows the result; the gate ignores it."""
    for name, (bound, aim) in TARGETS.get(kind, {}).items():
        figure = figures.get(name, math.nan)
        met = figure >= aim if bound == "at least" else figure <= aim
        measured = f"{figure:.3g}" if name in figures else NOT_MEASURED
        yield Verdict(name, measured, f"{bound} {aim:g}", bool(met))


def record_path(folder: Path, device: str, preset: str) -> Path:
    """Return the path of the record of a device and preset."""
    slug = re.sub(r"[^a-z0-9]+", "_", device.lower()).strip("_")
    return folder / f"{slug}_{preset}.json"


def read_record(file: Path) -> dict[str, Ratio]:
    """Return the recorded speed-ups by baseline; empty if there is no record.

    Raises:
        ValueError: the file is not a record of this schema.
    """
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text())
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']}")
        return {name: Ratio(**ratio) for name, ratio in content["ratios"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{file} must be a record of schema {SCHEMA}, got {error}; record it again"
        ) from error


def write_record(file: Path, ratios: Mapping[str, Ratio], environment: Mapping[str, Any]) -> None:
    """Write the speed-ups of this run as the record for later runs."""
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "schema": SCHEMA,
        "environment": dict(environment),
        "ratios": {name: asdict(ratio) for name, ratio in ratios.items()},
    }
    file.write_text(json.dumps(content, indent=1) + "\n")


def _memory(measured: Measurements) -> Verdict:
    settled = measured.window_chunks
    parts, kept = [], []
    if measured.resident_bytes:
        rise = slope(measured.resident_bytes, settled)
        kept.append(rise <= MEMORY_TOLERANCE_BYTES)
        parts.append(f"{rise / 2**10:+.1f} KiB resident per chunk")
    if measured.device_bytes:
        grown = growth(measured.device_bytes, settled)
        asked = growth(measured.device_segments, settled)
        kept.append(grown <= 0 and asked <= 0)
        parts.append(f"{grown:+.0f} bytes and {asked:+.0f} segments on the device")
    limit = f"at most {MEMORY_TOLERANCE_BYTES / 2**10:.0f} KiB resident per chunk and 0 on the device"
    return Verdict("memory growth", ", ".join(parts) or NOT_MEASURED, limit, bool(kept) and all(kept))
