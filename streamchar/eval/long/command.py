"""The work of ``streamchar eval long``."""

from collections.abc import Iterable

from rich.console import Console
from rich.progress import track

from ...config import preset
from ...data.speech import Speaker
from ...engine import StreamCharEngine
from ..options import LongOptions
from ..sources import GroundTruth
from ..tables import print_targets, rich_table
from .ablation import ablated
from .report import table_rows
from .run import EvaluationProtocol, LongRun, checkpoint_digest
from .scoring_process import ScoringProcess
from .streams import LongSource, SentenceStream, SpokenStream, TrueStream
from .targets import by_sentence_name, targets


def score_long(options: LongOptions, console: Console) -> None:
    """Speak and score the streams that are missing, and report all streams of the directory.

    Args:
        options: which engine, and which streams.
        console: shows progress, the table and the targets.

    Raises:
        ValueError: options exclude each other, the engine cannot do without a part, or the directory has
            streams of another protocol.
        CheckpointError: the checkpoint cannot be loaded.
    """
    if options.each_sentence and options.interrupt_every is not None:
        raise ValueError(
            "--interrupt-every must be left out with --each-sentence, "
            f"got {options.interrupt_every:g} s; give only one of the two options"
        )
    engine = StreamCharEngine.from_pretrained(options.checkpoint) if options.checkpoint else None
    config, size = preset("tiny"), (options.side, options.side)
    if engine is not None:
        config = engine.preset
        size = (config.picture.height, config.picture.width)
    protocol = EvaluationProtocol(options.minutes, options.identities, options.seed, size, config.seconds)
    run = LongRun(options.out, protocol)
    # Before anything is spoken, because an ablation may be refused.
    source = _engine_source(options, engine) if engine is not None else None

    def progress(indices: Iterable[int], name: str) -> Iterable[int]:
        total = len(list(indices))
        return track(indices, description=name, total=total, console=console, transient=True)

    with ScoringProcess(size, options.identities) as process:
        truth = TrueStream(GroundTruth(*size, Speaker()))
        run.run(truth, options.streams, process, progress=progress)
        if source is not None and options.checkpoint is not None:
            run.run(source, options.streams, process, checkpoint_digest(options.checkpoint), progress)
    sources = run.report()
    console.print(rich_table(table_rows(sources), "streamchar eval long"))
    for other in sources[1:]:
        print_targets(targets(other, sources), other.source, console)


def _engine_source(options: LongOptions, engine: StreamCharEngine) -> LongSource:
    changes = {"sink": options.sink, "motion": options.motion}
    parts = [f"{part} {kept}" for part, kept in changes.items() if kept is not None]
    if options.without_pointer:
        parts.append("without pointer")
    if parts:
        engine = ablated(
            engine, sink=options.sink, motion=options.motion, pointer=not options.without_pointer
        )
    every = options.interrupt_every
    if every is not None:
        parts.append(f"interrupted every {every:g} s")
    name = ", ".join([options.name, *parts])
    if options.each_sentence:
        return SentenceStream(by_sentence_name(name), engine)
    return SpokenStream(name, engine, every)
