"""``streamchar eval``."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import track

if TYPE_CHECKING:
    from ..engine import StreamCharEngine

# Sentences of which frames are shown.
_SHOWN = 4

app = typer.Typer(no_args_is_help=True, help="Score what the engine makes. Needs the extra eval.")


@app.command()
def short(
    checkpoint: Annotated[
        Path | None, typer.Option(help="Directory of the engine to score; ground truth alone without it.")
    ] = None,
    teacher: Annotated[
        Path | None, typer.Option(help="Directory of the many-step engine it was made from.")
    ] = None,
    whisper: Annotated[
        Path | None, typer.Option(help="Directory of Whisper weights for faster-whisper.")
    ] = None,
    sentences: Annotated[int, typer.Option(min=2, help="Half everyday ones, half never seen.")] = 50,
    identities: Annotated[int, typer.Option(min=2, help="Characters to tell apart.")] = 32,
    side: Annotated[int, typer.Option(min=32, help="Pixels of a picture's side without a checkpoint.")] = 96,
    seed: Annotated[int, typer.Option(help="Of sentences, motion and noise.")] = 0,
    out: Annotated[Path, typer.Option("--out", "-o", help="JSON; a table and frames go beside it.")] = Path(
        "eval-short.json"
    ),
) -> None:
    """Speak held-out sentences with every source and write word error rate, lip sync, identity and speed."""
    console = Console()
    try:
        # It loads torch, which help should not wait for.
        from ..media import require_writable

        require_writable(out)
        _short(checkpoint, teacher, whisper, sentences, identities, side, seed, out, console)
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        _say(error, console)
        raise typer.Exit(1) from None


def _short(
    checkpoint: Path | None,
    teacher: Path | None,
    whisper: Path | None,
    sentences: int,
    identities: int,
    side: int,
    seed: int,
    out: Path,
    console: Console,
) -> None:
    # Each of these takes seconds, which other commands should not pay.
    from ..data.speech import Speaker
    from ..engine import StreamCharEngine
    from .align import Aligner
    from .report import as_dict, beside_teacher, table_lines, targets
    from .sheet import save_sheet, spoken_frames
    from .short import evaluate_short
    from .sources import Generated, GroundTruth, Item, RoundTrip, Source, choose_items
    from .tables import markdown, rich_table
    from .wer import Recogniser, Sphinx, Whisper

    recognisers: list[Recogniser] = [Sphinx()]
    if whisper is not None:
        recognisers.append(Whisper(whisper))
    student = StreamCharEngine.from_pretrained(checkpoint) if checkpoint else None
    size = (student.preset.picture.height, student.preset.picture.width) if student else (side, side)
    speaker = Speaker()
    truth = GroundTruth(*size, speaker)
    sources: list[Source] = [truth]
    if student is not None:
        sources.append(RoundTrip(truth, student.vae, student.vocoder))
    if teacher is not None:
        engine = StreamCharEngine.from_pretrained(teacher)
        sources.append(Generated(_label(teacher, engine, "teacher"), engine))
    if checkpoint is not None and student is not None:
        sources.append(Generated(_label(checkpoint, student, "student" if teacher else ""), student))

    def progress(items: Iterable[Item], name: str) -> Iterable[Item]:
        return track(items, description=name, total=sentences, console=console, transient=True)

    aligner = Aligner(speaker.tokenizer.g2p)
    items = choose_items(sentences, identities, seed)
    scores = evaluate_short(sources, items, recognisers, aligner, size, identities, progress)
    result: dict[str, Any] = {
        "sentences": sentences,
        "identities": identities,
        "seed": seed,
        "size": list(size),
        "scores": as_dict(scores),
        "targets": {score.source: targets(score, scores[0]) for score in scores[2:]},
    }
    if student is not None and teacher is not None:
        result["targets"][scores[-1].source] |= beside_teacher(scores[-1], scores[-2])
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    out.with_suffix(".md").write_text(markdown(table_lines(scores)), encoding="utf-8")
    save_sheet(spoken_frames(sources[-1], items[:_SHOWN]), out.with_suffix(".png"))
    console.print(rich_table(table_lines(scores), "streamchar eval short"))
    for source, met in result["targets"].items():
        for target, reached in met.items():
            console.print(f"{'[green]✓[/]' if reached else '[red]✗[/]'} {source}: {target}")


@app.command("long")
def long_streams(
    checkpoint: Annotated[
        Path | None, typer.Option(help="Directory of the engine to score; ground truth alone without it.")
    ] = None,
    name: Annotated[str, typer.Option(help="Of the engine in the table.")] = "student",
    minutes: Annotated[int, typer.Option(min=1, max=60, help="Of a stream.")] = 10,
    streams: Annotated[int, typer.Option(min=1, help="Texts, each with its character.")] = 1,
    identities: Annotated[int, typer.Option(min=2, help="Characters to tell apart.")] = 32,
    side: Annotated[int, typer.Option(min=32, help="Pixels of a picture's side without a checkpoint.")] = 96,
    sink: Annotated[int | None, typer.Option(min=0, help="Latents kept of the first chunk.")] = None,
    motion: Annotated[int | None, typer.Option(min=0, help="Latents kept of the last chunk.")] = None,
    without_pointer: Annotated[
        bool, typer.Option("--without-pointer", help="Go by planned durations alone.")
    ] = False,
    interrupt_every: Annotated[
        float | None,
        typer.Option(min=10, help="Seconds between interruptions in mid-chunk, about; new text follows."),
    ] = None,
    each_sentence: Annotated[
        bool, typer.Option("--each-sentence", help="A session for every sentence: the text without a past.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of texts, motion and noise.")] = 0,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Directory; what is there already is kept.")
    ] = Path("eval-long"),
) -> None:
    """Speak for minutes on end and write how each score goes; run again, it goes on where it was broken off.

    Sources that are spoken into the same directory stand in one table: name one after another.
    """
    console = Console()
    try:
        _long(
            checkpoint,
            name,
            minutes,
            streams,
            identities,
            side,
            sink,
            motion,
            without_pointer,
            interrupt_every,
            each_sentence,
            seed,
            out,
            console,
        )
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        _say(error, console)
        raise typer.Exit(1) from None


def _long(
    checkpoint: Path | None,
    name: str,
    minutes: int,
    streams: int,
    identities: int,
    side: int,
    sink: int | None,
    motion: int | None,
    without_pointer: bool,
    interrupt_every: float | None,
    each_sentence: bool,
    seed: int,
    out: Path,
    console: Console,
) -> None:
    # As above: seconds that other commands should not pay.
    from ..config import preset
    from ..data.speech import Speaker
    from ..engine import StreamCharEngine
    from .judge import Judge
    from .long_report import table_lines
    from .long_run import LongRun, Protocol, digest
    from .long_targets import alone_of, targets
    from .sources import GroundTruth
    from .streams import LongSource, SentenceStream, SpokenStream, TrueStream, ablated
    from .tables import rich_table

    if each_sentence and interrupt_every is not None:
        raise ValueError(
            "--each-sentence must go without --interrupt-every, "
            f"got {interrupt_every:g} s; sentences by themselves are short, leave one of both out"
        )
    engine = StreamCharEngine.from_pretrained(checkpoint) if checkpoint else None
    config = engine.preset if engine else preset("tiny")
    size = (config.picture.height, config.picture.width) if engine else (side, side)
    run = LongRun(out, Protocol(minutes, identities, seed, size, config.seconds))
    # What cannot be left out is refused before anything is spoken.
    spoken: LongSource | None = None
    if engine is not None:
        changes = {"sink": sink, "motion": motion}
        parts = [name, *(f"{part} {kept}" for part, kept in changes.items() if kept is not None)]
        parts += ["without pointer"] if without_pointer else []
        if len(parts) > 1:
            engine = ablated(engine, sink=sink, motion=motion, pointer=not without_pointer)
        parts += [] if interrupt_every is None else [f"interrupted every {interrupt_every:g} s"]
        label = ", ".join(parts)
        label = alone_of(label) if each_sentence else label
        spoken = (
            SentenceStream(label, engine) if each_sentence else SpokenStream(label, engine, interrupt_every)
        )

    def progress(numbers: Iterable[int], source: str) -> Iterable[int]:
        return track(numbers, description=source, total=len(list(numbers)), console=console, transient=True)

    with Judge(size, identities) as judge:
        run.run(TrueStream(GroundTruth(*size, Speaker())), streams, judge, progress=progress)
        if spoken is not None and checkpoint is not None:
            run.run(spoken, streams, judge, digest(checkpoint), progress)
    sources = run.report()
    console.print(rich_table(table_lines(sources), "streamchar eval long"))
    for other in sources[1:]:
        for target, reached in targets(other, sources).items():
            console.print(f"{'[green]✓[/]' if reached else '[red]✗[/]'} {other.source}: {target}")


@app.command("compare")
def compare_sources(
    directory: Annotated[Path, typer.Argument(help="What eval long wrote.")],
    to: Annotated[str, typer.Option(help="The source that all are compared with.")] = "ground truth",
) -> None:
    """Set the means of all sources that eval long spoke into a directory beside one's, and write compare.md.

    Of every measure: the mean, that of the first and of the second half of the minutes, and the difference
    minute by minute with its standard error.
    """
    from .long_run import compare
    from .tables import rich_table

    console = Console()
    try:
        console.print(rich_table(compare(directory, to), f"{directory}, beside {to}"))
    except (ValueError, OSError) as error:
        _say(error, console)
        raise typer.Exit(1) from None


def _label(directory: Path, engine: "StreamCharEngine", part: str) -> str:
    """Say which checkpoint it is, and what part it plays where another is compared with it."""
    return f"{part or directory.resolve().name}, {engine.preset.sampler.steps} steps"


def _say(error: Exception, console: Console) -> None:
    """Say what is wrong, and which extra brings a package that is missing."""
    message = str(error)
    if isinstance(error, ImportError):
        message += f"; pip install 'streamchar[{'whisper' if error.name == 'faster_whisper' else 'eval'}]'"
    console.print(f"[red]{escape(message)}[/]")
