"""Implementation of ``streamchar speak``: speak a text into an MP4 file and show the progress."""

import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..checkpoint import shipped_weights
from ..config import preset
from ..engine import StreamCharEngine
from ..media.image import load_reference
from ..media.mp4 import Mp4Writer, require_writable
from ..text.normalize import check_text
from ..text.tokenizers import default_tokenizer
from ..text.transcript_window import TextWindow
from ..types import Chunk

NOISE = "The weights are random: video and audio are noise. Only the timings are meaningful."

#: Progress while the engine is built: name of the stage, bar, number of the stage and of all stages.
WARM_UP_COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())


@dataclass
class Summary:
    """Measurements taken while a text is spoken.

    Attributes:
        budget_seconds: playback time of a chunk, in which the next one must be made.
        words_asked: number of words of the text.
        random_weights: whether the weights are random, so that the media are noise.
        words_said: number of words that the pointer has passed.
        media_seconds: duration of the media made so far.
        wall_seconds: time since the first chunk was requested.
        first_chunk_seconds: time from the request to the first chunk.
        latencies: latency of each chunk in seconds, without writing the file.
        interrupted: whether Ctrl-C ended the speech; the file contains what was spoken before.
    """

    budget_seconds: float
    words_asked: int
    random_weights: bool = False
    words_said: int = 0
    media_seconds: float = 0.0
    wall_seconds: float = 0.0
    first_chunk_seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    interrupted: bool = False

    @property
    def rtf(self) -> float:
        """Real-time factor: seconds of computation per second of media."""
        return sum(self.latencies) / self.media_seconds if self.media_seconds else 0.0

    @property
    def late(self) -> int:
        """Number of chunks that took longer than their playback time."""
        return sum(latency > self.budget_seconds for latency in self.latencies)


def default_reference(preset_name: str, height: int, width: int) -> torch.Tensor:
    """Return the reference image that ships with a preset's weights, [3, height, width] in [-1, 1].

    A preset without shipped weights has none; the result is then a light oval on a dark background.
    """
    shipped = shipped_weights(preset_name)
    if shipped is not None:
        return load_reference(shipped / "reference.png", height, width)
    y = torch.linspace(-1, 1, height)[:, None]
    x = torch.linspace(-1, 1, width)[None, :]
    oval = torch.sigmoid(12 * (0.62 - ((x / 0.75) ** 2 + y**2).sqrt()))
    ground = torch.tensor([-0.55, -0.45, -0.25])[:, None, None]
    skin = torch.tensor([0.75, 0.45, 0.3])[:, None, None]
    return ground + (skin - ground) * oval


def speak_to_file(
    text: str,
    out: Path,
    *,
    preset_name: str,
    reference: Path | None,
    seed: int,
    seconds: float | None,
    console: Console,
) -> Summary:
    """Speak ``text`` into the MP4 file ``out``. If the speech ends early, the part written so far plays.

    Args:
        text: text to speak.
        out: the MP4 file to write. An existing file stays in place until the first chunk is made.
        preset_name: name of the engine's preset.
        reference: image file of the character; None uses :func:`default_reference`.
        seed: seed of the noise; the same seed gives the same media.
        seconds: stop after this many seconds of media; None speaks the whole text.
        console: shows the progress.

    Returns:
        The measurements.

    Raises:
        ConfigError: there is no such preset.
        TextError: the text cannot be spoken.
        ImageError: the reference cannot be used.
        MediaError: the file cannot be written.
        VoiceUnavailableError: the package that tokenises text for this voice is not installed.
        KeyboardInterrupt: Ctrl-C was pressed before the first chunk was written.
    """
    config = preset(preset_name)
    picture, clock = config.picture, config.clock
    tokenizer = default_tokenizer(config.orchestrator.tokenizer)
    text = check_text(text, tokenizer.script)
    # Refuse text without tokens before spending minutes on building an engine.
    window = TextWindow(tokenizer, config.orchestrator.transcript_tokens)
    window.append(text)
    window.finish()
    require_writable(out)
    image = (
        load_reference(reference, picture.height, picture.width)
        if reference
        else default_reference(preset_name, picture.height, picture.width)
    )
    random_weights = shipped_weights(preset_name) is None
    with Progress(*WARM_UP_COLUMNS, console=console, transient=True) as progress:
        task = progress.add_task(f"{preset_name}: weights", total=None)

        def report(stage: str, number: int, count: int) -> None:
            described = f"warming up: {stage}"
            progress.update(task, description=described, completed=number, total=count, refresh=True)

        engine = StreamCharEngine.from_preset(
            preset_name, random_weights=random_weights, tokenizer=tokenizer, report=report
        )
    summary = Summary(config.seconds, window.words_waiting, random_weights)
    with (
        engine.open(image, seed=seed) as session,
        Live(_panel(summary), console=console, refresh_per_second=4, transient=True) as live,
        ExitStack() as stack,
    ):
        writer: Mp4Writer | None = None
        try:
            for chunk in _timed(session.speak(text, max_seconds=seconds), summary):
                # Created only now, so that an existing file stays until there is something to write.
                if writer is None:
                    size = picture.height, picture.width
                    writer = Mp4Writer(out, *size, clock.frame_rate, clock.sample_rate)
                    stack.enter_context(writer)
                writer.write(chunk.host.video_yuv, chunk.host.audio)
                live.update(_panel(summary))
        except KeyboardInterrupt:
            if writer is None or not writer.samples:
                raise
            summary.interrupted = True
    return summary


def _timed(chunks: Iterator[Chunk], summary: Summary) -> Iterator[Chunk]:
    started = time.perf_counter()
    for chunk in chunks:
        summary.wall_seconds = time.perf_counter() - started
        summary.first_chunk_seconds = summary.first_chunk_seconds or summary.wall_seconds
        summary.latencies.append(chunk.latency["total"])
        summary.media_seconds += summary.budget_seconds
        summary.words_said += len(chunk.words)
        yield chunk


def _panel(summary: Summary) -> Panel:
    grid = Table.grid(padding=(0, 2))
    last = summary.latencies[-1] if summary.latencies else 0.0
    grid.add_row(
        "transcript",
        ProgressBar(summary.words_asked, min(summary.words_said, summary.words_asked), width=30),
        f"{summary.words_said} of {summary.words_asked} words",
    )
    grid.add_row(
        "last chunk",
        ProgressBar(summary.budget_seconds, min(last, summary.budget_seconds), width=30),
        f"{last * 1e3:.0f} of {summary.budget_seconds * 1e3:.0f} ms budget",
    )
    grid.add_row("media", f"{summary.media_seconds:.1f} s", f"RTF {summary.rtf:.2f}")
    return Panel(Group(grid), title="speaking", title_align="left", width=80)


def summary_table(summary: Summary, out: Path) -> Table:
    """Return the measurements as a table."""
    table = Table(title=str(out), title_justify="left", show_header=False)
    ordered = sorted(summary.latencies)
    rows = {
        "media": f"{summary.media_seconds:.2f} s in {len(ordered)} chunks",
        "words passed by the pointer": f"{summary.words_said} of {summary.words_asked}",
        "time to first chunk": f"{summary.first_chunk_seconds * 1e3:.0f} ms",
        "chunk latency, median": f"{statistics.median(ordered) * 1e3:.0f} ms" if ordered else "-",
        "chunk latency, maximum": f"{ordered[-1] * 1e3:.0f} ms" if ordered else "-",
        "playback budget": f"{summary.budget_seconds * 1e3:.0f} ms, missed by {summary.late} chunks",
        "real-time factor": f"{summary.rtf:.2f}",
    }
    for name, value in rows.items():
        table.add_row(name, Text(value))
    return table
