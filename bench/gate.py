"""Decide from what was measured whether the engine keeps its promises. Nothing here touches a clock.

Each figure is judged on its own and says what it is, what it may be, and what it was. A figure that could not
be measured fails: the gate has no way to pass by not looking.
"""

import json
import math
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SCHEMA = 1
#: Growth of resident memory that an allocator's own habits explain. Holding on to the frames of 50 chunks of
#: the smallest preset takes 70 MiB with their YUV copies.
MEMORY_TOLERANCE_BYTES = 24 * 2**20
#: A recorded ratio's noise is this many standard deviations of its repeats, and at least this share of it.
NOISE_DEVIATIONS, LEAST_NOISE = 3.0, 0.05
#: Contenders compute the same chunk; their latents may differ by what rounding does in four steps.
AGREEMENT = 2e-2
#: The figures of a session, in the order of :func:`judge_session`.
SESSION_FIGURES = (
    "chunk latency p99",
    "missed deadlines",
    "audio-video skew",
    "memory growth",
    "graphs captured after warm-up",
    "programs compiled after warm-up",
    "steps run for a chunk",
)
#: What is aimed at, by kind of device: reported, not judged. On a CPU both sides run the same operations, so
#: a lead is the work saved: of the tiny preset, 4 x (320 + 612 tokens) against 4 x 320 + 288, weighted by
#: their attention, comes to 1.96 for the memory alone. Recomputing everything means the prefix as well.
TARGETS = {
    "cpu": {"rtf": 0.8, "first media s": 2.0, "eager-prefix": 2.0},
    "cuda": {"denoise s": 0.25, "chunk p99 s": 0.6, "compiled": 2.0},
}


@dataclass(frozen=True)
class Measurements:
    """What a watched session was measured to do.

    Attributes:
        budget_seconds: playback time of a chunk.
        latencies: seconds from asking for a chunk to having it on the host, one a chunk.
        stages: per stage of the engine, seconds, one a chunk.
        first_frame_seconds: from opening the session to its first picture on the host.
        first_audio_seconds: the same for sound.
        deadlines_met: share of the chunks in time for a viewer who never waits.
        underruns: times that a viewer who does wait ran out of media.
        worst_stall_seconds: the longest of those waits.
        skew_samples: the most that picture, sound and their stamps lay apart.
        window_chunks: chunks until history and conditioning are full.
        captures: graphs captured by the end of warm-up, and by the end of the session.
        compilations: programs compiled, likewise.
        replays: steps run for each chunk.
        resident_bytes: of the process after each chunk; empty where the system does not say.
        device_bytes: allocated on the GPU after each chunk; empty without one.
        device_segments: requests for memory that the allocator had made of the driver, after each chunk.
    """

    budget_seconds: float
    latencies: list[float]
    stages: dict[str, list[float]]
    first_frame_seconds: float
    first_audio_seconds: float
    deadlines_met: float
    underruns: int
    worst_stall_seconds: float
    skew_samples: int
    window_chunks: int
    captures: tuple[int, int]
    compilations: tuple[int, int]
    replays: list[int]
    resident_bytes: list[int] = field(default_factory=list)
    device_bytes: list[int] = field(default_factory=list)
    device_segments: list[int] = field(default_factory=list)

    @property
    def rtf(self) -> float:
        """Seconds of work for a second of media, once the window is full; below 1 is faster than playback."""
        steady = self.latencies[self.window_chunks :] or self.latencies
        return statistics.fmean(steady) / self.budget_seconds

    def as_dict(self) -> dict[str, Any]:
        """Return every field and the figures made of them as plain JSON values."""
        figures = {f"p{share:g}_seconds": percentile(self.latencies, share) for share in (50, 99)}
        return asdict(self) | figures | {"max_seconds": max(self.latencies), "rtf": self.rtf}


@dataclass(frozen=True)
class Ratio:
    """How far ahead of a baseline the engine is, or was when it was recorded.

    Attributes:
        ratio: seconds of the baseline for one of ours.
        noise: how far a later measurement of the same code may lie below it.
        repeats: the ratios that both are made of.
    """

    ratio: float
    noise: float
    repeats: list[float]

    @classmethod
    def of(cls, repeats: Sequence[float]) -> "Ratio":
        """Summarise the ratios of independent repeats."""
        middle = statistics.median(repeats)
        spread = statistics.stdev(repeats) if len(repeats) > 1 else 0.0
        return cls(middle, max(NOISE_DEVIATIONS * spread, LEAST_NOISE * middle), list(repeats))


@dataclass(frozen=True)
class Verdict:
    """The judgement of one figure.

    Attributes:
        figure: what was measured.
        measured: in words, with its unit.
        limit: what it may be, in words.
        passed: whether it is.
        remedy: what to do about a failure, where that is known.
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
    """Return the smallest value that ``share`` per cent of the values do not exceed.

    Of 60 values the 99th percentile is the largest: no sample is averaged away.
    """
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(share / 100 * len(values)) - 1)]


def skew_samples(chunks: Sequence[tuple[int, int, int]], samples_per_frame: int) -> int:
    """Return the most that picture, sound and stamp of a session lie apart, in samples.

    Args:
        chunks: (start_sample, frames, samples) of each chunk, in order.
        samples_per_frame: audio samples under one frame.
    """
    worst = picture = sound = 0
    for start, frames, samples in chunks:
        worst = max(worst, abs(start - picture), abs(start - sound))
        picture += frames * samples_per_frame
        sound += samples
        worst = max(worst, abs(picture - sound))
    return worst


def growth(values: Sequence[float], settled: int) -> float:
    """Return by how much a series rose from when it had settled to its end, judged by medians of ten.

    Args:
        values: one a chunk.
        settled: chunks that are left out first.
    """
    steady = values[settled:]
    if not steady:
        return math.nan
    count = min(10, max(1, len(steady) // 2))
    return statistics.median(steady[-count:]) - statistics.median(steady[:count])


def judge_session(measured: Measurements, budget_factor: float = 1.0) -> Iterator[Verdict]:
    """Judge a watched session.

    Args:
        measured: what it did.
        budget_factor: what the budget is multiplied by, above 0; below 1 tightens the gate.

    Yields:
        one verdict for each of :data:`SESSION_FIGURES`.
    """
    budget = measured.budget_seconds * budget_factor
    p99 = percentile(measured.latencies, 99)
    yield Verdict(
        "chunk latency p99",
        f"{p99:.3f} s (p50 {percentile(measured.latencies, 50):.3f} s)",
        f"at most {budget:.3f} s (budget {measured.budget_seconds:.3f} s x factor {budget_factor:g})",
        p99 <= budget,
    )
    chunks = len(measured.latencies)
    missed = round((1 - measured.deadlines_met) * chunks)
    yield Verdict(
        "missed deadlines",
        f"{missed} of {chunks}; {measured.underruns} underruns, "
        f"worst stall {measured.worst_stall_seconds:.3f} s",
        "0",
        measured.deadlines_met >= 1.0 and measured.underruns == 0,
    )
    skew = measured.skew_samples
    yield Verdict("audio-video skew", f"{skew} samples", "0 samples", skew == 0)
    yield _memory(measured)
    for what, (before, after) in (
        ("graphs captured", measured.captures),
        ("programs compiled", measured.compilations),
    ):
        yield Verdict(f"{what} after warm-up", f"{after - before}", "0", after == before)
    # The first chunk has none to commit before it, the second commits the sink too.
    steady = measured.replays[2:] or measured.replays
    least, most = (min(steady), max(steady)) if steady else (0, -1)
    # The count is the same for every chunk, or some chunk did other work than the rest.
    yield Verdict("steps run for a chunk", f"{least} to {most}", "the same for all", least == most)


def judge_ratio(name: str, measured: Ratio | None, recorded: Ratio | None, remedy: str) -> Verdict:
    """Judge the lead over a baseline against the lead that was recorded for this device.

    Args:
        name: the baseline.
        measured: the lead in this run, None if it was not measured.
        recorded: the lead on record, None if there is no record.
        remedy: how a record is made.
    """
    figure = f"speed-up over {name}"
    if measured is None:
        return Verdict(figure, "nothing", "measured in this run", False)
    if recorded is None:
        return Verdict(figure, f"{measured.ratio:.2f}", "on record for this device", False, remedy)
    limit = recorded.ratio - recorded.noise
    return Verdict(
        figure,
        f"{measured.ratio:.2f}",
        f"at least {limit:.2f} (recorded {recorded.ratio:.2f}, noise {recorded.noise:.2f})",
        # NaN compares false and so fails.
        bool(measured.ratio >= limit),
        "if the slow-down is meant, " + remedy,
    )


def judge_agreement(name: str, error: float) -> Verdict:
    """Judge whether a baseline computed the same chunk: a lead over other work would mean nothing."""
    limit = f"at most {AGREEMENT:g} (relative)"
    return Verdict(f"difference of {name} from ours", f"{error:.1e}", limit, bool(error <= AGREEMENT))


def targets(kind: str, figures: Mapping[str, float]) -> Iterator[Verdict]:
    """Compare figures with what is aimed at on a kind of device; for the report, nothing fails by it."""
    for name, aim in TARGETS.get(kind, {}).items():
        if name in figures:
            lead = name in ("eager-prefix", "compiled")
            limit = f"{'at least' if lead else 'at most'} {aim:g}"
            passed = figures[name] >= aim if lead else figures[name] <= aim
            yield Verdict(name, f"{figures[name]:.3g}", limit, bool(passed))


def record_path(folder: Path, device: str, preset: str) -> Path:
    """Return where the record of a device and preset is kept."""
    slug = re.sub(r"[^a-z0-9]+", "_", device.lower()).strip("_")
    return folder / f"{slug}_{preset}.json"


def read_record(file: Path) -> dict[str, Ratio]:
    """Return the recorded leads by baseline; empty if there is no record.

    Raises:
        ValueError: the file is no record of this schema.
    """
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text())
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']}")
        return {name: Ratio(**ratio) for name, ratio in content["ratios"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{file} must be a record of schema {SCHEMA}, got {error}; write it anew") from error


def write_record(file: Path, ratios: Mapping[str, Ratio], environment: Mapping[str, Any]) -> None:
    """Write the leads of this run as the record that later runs are judged by."""
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "schema": SCHEMA,
        "environment": dict(environment),
        "ratios": {name: asdict(ratio) for name, ratio in ratios.items()},
    }
    file.write_text(json.dumps(content, indent=1) + "\n")


def _memory(measured: Measurements) -> Verdict:
    settled = measured.window_chunks
    parts, passed = [], False
    if measured.resident_bytes:
        grown = growth(measured.resident_bytes, settled)
        passed = grown <= MEMORY_TOLERANCE_BYTES
        parts.append(f"{grown / 2**20:+.1f} MiB resident")
    if measured.device_bytes:
        grown = growth(measured.device_bytes, settled)
        asked = growth(measured.device_segments, settled)
        passed = (passed or not measured.resident_bytes) and grown <= 0 and asked <= 0
        parts.append(f"{grown:+.0f} bytes and {asked:+.0f} segments on the device")
    limit = f"at most {MEMORY_TOLERANCE_BYTES / 2**20:.0f} MiB resident and 0 on the device"
    return Verdict("memory growth", ", ".join(parts) or "nothing", limit, passed)
