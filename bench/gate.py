"""Decide from what was measured whether the engine keeps its promises. Nothing here touches a clock.

Each figure is judged on its own and says what it is, what it may be, and what it was. A figure that could not
be measured fails: the gate has no way to pass by not looking.

A lead over a baseline is held against the record of the same machine (:func:`bench.environment.record_name`),
and fails when it has fallen by more than the record's noise. A machine without a record, a stranger's or a
runner on its first day, has nothing to fall behind: there the lead is held against :data:`LEAST_LEAD` alone,
which the table says. So it is in the run that writes a record (``--gate-record``).
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
#: Resident memory that may come with every chunk, by :func:`slope`. Six sessions of 60 chunks on a busy CPU
#: rose by 0 to 1.9 KiB a chunk: what the measuring itself notes, and pages of the allocator. One frame of the
#: smallest preset, leaked with every chunk, is 27 KiB.
MEMORY_TOLERANCE_BYTES = 16 * 2**10
#: Fewer chunks than these, once the window is full, do not tell a slope from a step.
LEAST_STEADY_CHUNKS = 10
#: Seconds of work for a second of media once the window is full; seconds from opening to the first media.
LARGEST_RTF, LONGEST_START = 0.8, 2.0
#: Without a record: a baseline does all of our work and more, and must not be faster for it.
LEAST_LEAD = 1.0
#: A recorded ratio's noise is this many standard deviations of its repeats, and at least this share of it.
NOISE_DEVIATIONS, LEAST_NOISE = 3.0, 0.05
#: Contenders compute the same chunk; their latents may differ by what rounding does in four steps.
AGREEMENT = 2e-2
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
    "steps run for a chunk",
)
#: What is aimed at, by kind of device: reported, not judged. On a CPU both sides run the same operations, so
#: a lead is the work saved: of the tiny preset, 4 x (320 + 612 tokens) against 4 x 320 + 288, weighted by
#: their attention, comes to 1.96 for the memory alone. Recomputing everything means the prefix as well.
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
    def missed(self) -> int:
        """Chunks that came too late for a viewer who never waits."""
        return round((1 - self.deadlines_met) * len(self.latencies))

    @property
    def rtf(self) -> float:
        """Seconds of work for a second of media, once the window is full; below 1 is faster than playback."""
        steady = self.latencies[self.window_chunks :] or self.latencies
        return statistics.fmean(steady) / self.budget_seconds if steady else math.nan

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


def skew_samples(chunks: Iterable[tuple[int, ...]]) -> int:
    """Return the most that the streams of a session and their stamp lie apart, in samples.

    Args:
        chunks: of each chunk, in order, its start_sample and how long each of its streams is, in samples.
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


def slope(values: Sequence[float], settled: int) -> float:
    """Return by how much a series rises a chunk once it has settled, NaN where it is too short to tell.

    It is the Theil-Sen estimate, the median of the slopes between all pairs: neither one step nor a value
    that goes to and fro looks like a leak, and a leak that comes in steps does.

    Args:
        values: one a chunk.
        settled: chunks that are left out first.
    """
    steady = list(enumerate(values))[settled:]
    if len(steady) < LEAST_STEADY_CHUNKS:
        return math.nan
    return statistics.median(
        (later - earlier) / (end - start)
        for (start, earlier), (end, later) in itertools.combinations(steady, 2)
    )


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
    yield Verdict(
        "missed deadlines",
        f"{measured.missed} of {len(measured.latencies)}; {measured.underruns} underruns, "
        f"worst stall {measured.worst_stall_seconds:.3f} s",
        "0",
        measured.deadlines_met >= 1.0 and measured.underruns == 0,
    )
    rtf = measured.rtf
    yield Verdict("real-time factor", f"{rtf:.3f}", f"below {LARGEST_RTF:g}", rtf < LARGEST_RTF)
    seen, heard = measured.first_frame_seconds, measured.first_audio_seconds
    yield Verdict(
        "first media",
        f"picture {seen:.3f} s, sound {heard:.3f} s",
        f"in under {LONGEST_START:g} s",
        seen < LONGEST_START and heard < LONGEST_START,
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
    """Judge the lead over a baseline against the lead that was recorded for this machine.

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
        least, why = LEAST_LEAD, "no record of this machine; it does all of our work and more"
    else:
        least = recorded.ratio - recorded.noise
        why = f"recorded {recorded.ratio:.2f}, noise {recorded.noise:.2f}"
    return Verdict(
        figure,
        f"{measured.ratio:.2f}",
        f"at least {least:.2f} ({why})",
        # NaN compares false and so fails.
        bool(measured.ratio >= least),
        "" if recorded is None else "if the slow-down is meant, " + remedy,
    )


def judge_agreement(name: str, error: float) -> Verdict:
    """Judge whether a baseline computed the same chunk: a lead over other work would mean nothing."""
    limit = f"at most {AGREEMENT:g} (relative)"
    return Verdict(f"difference of {name} from ours", f"{error:.1e}", limit, bool(error <= AGREEMENT))


def targets(kind: str, figures: Mapping[str, float]) -> Iterator[Verdict]:
    """Compare figures with what is aimed at on a kind of device; for the report, nothing fails by it."""
    for name, (bound, aim) in TARGETS.get(kind, {}).items():
        figure = figures.get(name, math.nan)
        met = figure >= aim if bound == "at least" else figure <= aim
        yield Verdict(name, f"{figure:.3g}" if name in figures else "nothing", f"{bound} {aim:g}", bool(met))


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
    parts, kept = [], []
    if measured.resident_bytes:
        rise = slope(measured.resident_bytes, settled)
        kept.append(rise <= MEMORY_TOLERANCE_BYTES)
        parts.append(f"{rise / 2**10:+.1f} KiB resident a chunk")
    if measured.device_bytes:
        grown = growth(measured.device_bytes, settled)
        asked = growth(measured.device_segments, settled)
        kept.append(grown <= 0 and asked <= 0)
        parts.append(f"{grown:+.0f} bytes and {asked:+.0f} segments on the device")
    limit = f"at most {MEMORY_TOLERANCE_BYTES / 2**10:.0f} KiB resident a chunk, and 0 on the device"
    return Verdict("memory growth", ", ".join(parts) or "nothing", limit, bool(kept) and all(kept))
